"""XXH3-128: 23 GiB/s on one core, against 1.7 for SHA-256. It finds damage; it does not stop an adversary (a commit's SHA-256 does)."""

import xxhash


def of(body: bytes | memoryview) -> str:
    """32 hex digits."""
    return xxhash.xxh3_128_hexdigest(body)


class Digest:
    """The same, over pieces."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def update(self, piece: bytes | memoryview) -> None:
        self._state.update(piece)

    def hex(self) -> str:
        return self._state.hexdigest()
