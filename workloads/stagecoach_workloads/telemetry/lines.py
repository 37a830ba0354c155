"""Numbers as a person reads them in a log."""

from stagecoach_workloads.telemetry.report import StepReport
from stagecoach_workloads.telemetry.speed import Rates

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def progress_line(report: StepReport, rates: Rates, *, steps: int) -> str:
    """One plain line: `step 120/2000  loss 2.345  grad 0.91  12.3k tokens/s  48 images/s  MFU 41.2 %  12 min left`."""
    parts = [f"step {report.step}/{steps}", f"loss {report.loss:.4f}", f"grad {report.grad_norm:.3g}"]
    if report.rates:
        parts.append(f"lr {max(report.rates.values()):.3g}")
    if rates.tokens_per_s is not None:
        parts.append(f"{short(rates.tokens_per_s)} tokens/s")
    if rates.images_per_s:
        parts.append(f"{short(rates.images_per_s)} images/s")
    if rates.mfu is not None:
        parts.append(f"MFU {rates.mfu:.1%}".replace("%", " %"))
    if rates.eta_s is not None:
        parts.append(f"{time_left(rates.eta_s)} left")
    if not report.taken:
        parts.append("(skipped: no weight changed)")
    return "  ".join(parts)


def short(number: float) -> str:
    """Three figures and a unit: 12.3k."""
    for size, unit in _UNITS:
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def time_left(seconds: float) -> str:
    """In the two largest units: 45 s, 12 min, 3 h 20 min, 5 d 4 h."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes:.0f} min"
    if hours < 48:
        return f"{int(hours)} h {int(minutes) % 60} min"
    return f"{int(days)} d {int(hours) % 24} h"
