"""The README's table of recipes, generated: `python -m stagecoach.recipes.readme README.md` rewrites what stands between its marks."""

import re
import sys
from pathlib import Path
from typing import Any

from stagecoach.recipes import RECIPES
from stagecoach.recipes.report import recipe_json

MARKS = re.compile(r"(<!-- recipes: begin[^>]*-->\n).*?(<!-- recipes: end -->)", re.DOTALL)


def table() -> str:
    """Markdown: one row a recipe."""
    rows = ["| recipe | stages | parameters | active | pre-training positions | hours |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for name in RECIPES:
        recipe = recipe_json(name)
        parameters, positions = recipe["parameters"], recipe["tokens"][recipe["stages"][0]]
        cells = [f"`{name}`", " → ".join(recipe["stages"]), *map(_short, (parameters["total"], parameters["active"], positions))]
        rows.append(f"| {' | '.join(cells)} | {_hours(recipe)} |")
    return "\n".join(rows) + "\n"


def rewrite(readme: str) -> str:
    """The README's text with the table brought up to date. Raises ValueError when its marks are gone."""
    if not MARKS.search(readme):
        raise ValueError("no line `<!-- recipes: begin … -->` … `<!-- recipes: end -->` to put the table between")
    return MARKS.sub(lambda match: match.group(1) + table() + match.group(2), readme)


def _short(number: float) -> str:
    """Three digits and a unit: 3.73 B."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number:.3g}"


def _hours(recipe: dict[str, Any]) -> str:
    """All stages that can be costed, in hours of the recipe's own hardware."""
    hours = recipe["gpu_hours"]
    return f"{hours:,.0f} {recipe['hardware']}" if hours >= 10 else f"{hours:.2g} {recipe['hardware']}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(rewrite(path.read_text()))
