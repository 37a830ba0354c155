"""What differs between two specs of one name, for the person who meets NameTaken."""

from typing import Any

from stagecoach.contract.launch import LaunchSpec, NameTaken
from stagecoach.contract.records import to_plain, walk_leaves

ABSENT = "nothing"


def spec_differences(there: LaunchSpec, asked: LaunchSpec) -> list[str]:
    """`path: there A, asked B` for every value that differs, by dotted path. Values of environment variables are not shown."""
    old, new = _leaves(there), _leaves(asked)
    return [
        f"{path}: differs" if path.startswith("environment.") else f"{path}: there {old.get(path, ABSENT)}, asked {new.get(path, ABSENT)}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path, ABSENT) != new.get(path, ABSENT)
    ]


def name_taken(name: str, there: LaunchSpec, asked: LaunchSpec) -> NameTaken:
    """The error that says what differs and what to do."""
    differences = spec_differences(there, asked) or ["nothing the contract knows"]
    return NameTaken(
        f"a job named {name!r} exists with another spec ({'; '.join(differences)}); "
        "wait for it or cancel it, then submit again, or submit exactly what it was started with to attach to it"
    )


def _leaves(spec: LaunchSpec) -> dict[str, str]:
    found: dict[str, str] = {}

    def visit(path: str, value: Any) -> None:
        found[path] = repr(value)

    walk_leaves(to_plain(spec), visit)
    return found
