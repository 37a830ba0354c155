"""Imports of large libraries, in four fifths of the time."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Python's garbage collector rests while modules are imported, and never looks through what they made again.

    Of 3.0 s of CPU that a rank's imports took it had 0.6, looking for garbage where there is next to none; and each of its full rounds
    later, in the middle of a step, went through all of that again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
