"""MM1's learning-rate law (recipes.md 1.5, from section 3.3 of the paper)."""

import math


def peak_lr(non_embedding: float) -> float:
    """eta(N) = exp(-0.4214 ln N - 0.5535), N the decoder's non-embedding parameters; fitted on 8-shot scores of 9M to 1.2B models."""
    return math.exp(-0.4214 * math.log(non_embedding) - 0.5535)


def weight_decay(eta: float) -> float:
    """MM1's lambda = 0.1 eta, in its framework's decoupled convention. PyTorch's AdamW multiplies by the rate itself: pass 0.1 there."""
    return 0.1 * eta
