"""What is generated stands as generated."""

from pathlib import Path

from stagecoach.recipes.readme import rewrite

README = Path(__file__).parents[2] / "README.md"


def test_the_readmes_table_of_recipes_is_up_to_date() -> None:
    shown = README.read_text()
    assert rewrite(shown) == shown, "run `make verify`, look at the difference and commit it"
