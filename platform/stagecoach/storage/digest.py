"""XXH3-128: 23 GiB/s on one core, against 1.7 for SHA-256. It finds damage; it does not stop an adversary (a commit's SHA-256 does).

The checksum of an object is that of its body; of a body larger than a block it is that of its blocks' digests (hexadecimal, one after the
other), so that one pass over a checkpoint gives both what proves each block and what a store keeps beside the whole.
"""

import xxhash

BLOCK_BYTES = 8 << 20


def checksum_name(size: int) -> str:
    """What the checksum of an object of this size is kept as: two names, so that neither is taken for the other."""
    return "xxh3-128" if size <= BLOCK_BYTES else "xxh3-128-blocks"


def of(body: bytes | memoryview) -> str:
    """32 hex digits of these bytes, however many."""
    return xxhash.xxh3_128_hexdigest(body)


def of_object(body: bytes | memoryview) -> str:
    """The checksum of an object with this body."""
    checksum = ObjectDigest()
    checksum.update(body)
    return checksum.hex()


class Digest:
    """`of`, over pieces."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def update(self, piece: bytes | memoryview) -> None:
        self._state.update(piece)

    def hex(self) -> str:
        return self._state.hexdigest()


class ObjectDigest:
    """`of_object`, over pieces of any size."""

    def __init__(self) -> None:
        self._blocks: list[str] = []
        self._state, self._filled = Digest(), 0

    def update(self, piece: bytes | memoryview) -> None:
        with memoryview(piece).cast("B") as view:
            at = 0
            while at < view.nbytes:
                part = view[at : at + BLOCK_BYTES - self._filled]
                self._state.update(part)
                at, self._filled = at + part.nbytes, self._filled + part.nbytes
                if self._filled == BLOCK_BYTES:
                    self._blocks.append(self._state.hex())
                    self._state, self._filled = Digest(), 0

    @property
    def blocks(self) -> tuple[str, ...]:
        """The digest of each block so far, the last of which may be short."""
        return (*self._blocks, self._state.hex()) if self._filled else tuple(self._blocks)

    def hex(self) -> str:
        blocks = self.blocks
        return blocks[0] if len(blocks) == 1 else of("".join(blocks).encode())
