"""One self-contained HTML file about a run, made from its bucket alone: `build_page(read_story(target))`. No torch, no script, no network.

`story.py` reads (bounded, never raises for one bad object), `page.py` and its neighbours draw. Every text goes through `html.py`, which
escapes whatever is not markup of our own.
"""
