"""Chance for pauses between tries. It has a generator of its own: Python's is part of a rank's saved state, and must be where training left
it, however often a thread beside it asked the bucket again."""

import random

jitter = random.Random()
