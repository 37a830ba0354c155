"""Tables of where a promise is tested name tests that are there."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[2]
NAMED = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


def test_every_test_that_the_readme_names_exists() -> None:
    named = NAMED.findall((TESTS / "README.md").read_text())
    assert len(named) > 30
    missing = [f"{file}::{name}" for file, name in named if not _is_there(TESTS / file, name)]
    assert missing == []


def _is_there(path: Path, name: str) -> bool:
    return path.exists() and re.search(rf"^def {name}\(", path.read_text(), re.MULTILINE) is not None
