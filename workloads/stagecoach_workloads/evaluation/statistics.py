"""How sure a score is: bootstrap intervals, and the exact chance of doing as well by luck."""

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


def bootstrap(scores: Sequence[float], *, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % percentile interval of the mean (Efron and Tibshirani 1993, section 13.3). The same scores and seed give the same interval."""
    values = np.asarray(scores, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(resamples)])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def p_at_least(correct: int, samples: int, by_luck: float) -> float:
    """Exact binomial, one-sided: how likely `correct` or more of `samples` are when each is right with probability `by_luck`.

    Where questions differ in their chance, the binomial of the mean chance has the larger variance, so this is on the safe side.
    """
    if correct <= 0 or by_luck >= 1:
        return 1.0
    if by_luck <= 0:
        return 0.0
    log_p, log_q = math.log(by_luck), math.log1p(-by_luck)
    terms = [
        math.lgamma(samples + 1) - math.lgamma(hits + 1) - math.lgamma(samples - hits + 1) + hits * log_p + (samples - hits) * log_q
        for hits in range(correct, samples + 1)
    ]
    return min(1.0, math.fsum(math.exp(term) for term in terms))
