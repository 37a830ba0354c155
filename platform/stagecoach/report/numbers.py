"""Numbers out of a bucket, as a person reads them, and where an axis has its marks."""

import math
from collections.abc import Sequence

GREATEST = 1e300  # what is larger could not be summed


def finite(value: object) -> float | None:
    """A number of JSON that nobody checked. None for what is none, for NaN and infinity, and for integers that no float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < GREATEST:
        return None
    return float(value)


def count(value: float) -> str:
    """1,234 and 56.7 k, 8.9 M, 1.2 B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{significant(value / (1e3 if unit == 'k' else size))} {unit}"
    return f"{value:,.0f}"


def significant(value: float, digits: int = 3) -> str:
    """Three significant digits, without an exponent where there is room."""
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if not -4 < size < 6:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    text = f"{value:,.{max(0, digits - 1 - size)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(fraction: float) -> str:
    """42 %, 12.5 %, 4.2 %."""
    value = 100 * fraction
    if abs(value) >= 19.95 or value == round(value):
        return f"{value:.0f}\u00a0%"
    return f"{value:.1f}\u00a0%".replace(".0\u00a0%", "\u00a0%") if abs(value) >= 0.95 else f"{value:.2g}\u00a0%"


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, below, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers within [low, high], about `wanted` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / max(1, wanted)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round((first + index) * step, 12) + 0.0 for index in range(int((high - first * step) / step + 1e-9) + 1)]


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """The range of an axis that shows all of `values`."""
    low, high = min(values), max(values)
    room = (high - low) * share or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < room * 2 else low - room), high + room
