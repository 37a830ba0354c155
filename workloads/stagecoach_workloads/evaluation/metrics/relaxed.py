"""Relaxed accuracy: ChartQA's metric (Masry et al. 2022, arXiv:2203.10244, end of section 5.1)."""

TOLERANCE = 0.05


def relaxed(answer: str, value: str) -> float:
    """1 for a number within 5 % of the right one, or for the same text without regard to case.

    Percentages are read as fractions of 1, as the published evaluators do; a right answer of 0 is compared as text, as they do.
    """
    said, right = answer.strip(), value.strip()
    number, target = _number(said), _number(right)
    if number is not None and target:
        return float(abs(number - target) / abs(target) <= TOLERANCE)
    return float(said.lower() == right.lower())


def _number(text: str) -> float | None:
    try:
        number = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return number if abs(number) != float("inf") and number == number else None
