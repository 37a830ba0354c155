"""Kubernetes' quantities: 500m, 16Gi, 64."""

import re

_SUFFIX = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
           "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}  # fmt: skip
_QUANTITY = re.compile(r"([0-9.]+(?:e[0-9]+)?)([A-Za-z]*)")


def parse_quantity(text: str | int | float) -> float:
    """In units (cores, bytes, devices). Raises ValueError for what is none."""
    found = _QUANTITY.fullmatch(str(text))
    if not found or found.group(2) not in _SUFFIX:
        raise ValueError(f"{text!r} is no Kubernetes quantity")
    return float(found.group(1)) * _SUFFIX[found.group(2)]


def show_quantity(resource: str, amount: float) -> str:
    """For a person: memory in GiB, everything else as a number."""
    return f"{amount / 2**30:,.0f} GiB" if resource in ("memory", "ephemeral-storage") else f"{amount:,.4g}"
