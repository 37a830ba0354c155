"""What proves an object: the digest of each block, and a checksum made of these."""

import random

import pytest
import xxhash

from stagecoach.storage import Store, digest
from stagecoach.storage.digest import BLOCK_BYTES


def expected(body: bytes) -> tuple[tuple[str, ...], str]:
    """Block digests and checksum, by their definition."""
    blocks = [xxhash.xxh3_128_hexdigest(body[start : start + BLOCK_BYTES]) for start in range(0, len(body), BLOCK_BYTES)]
    return tuple(blocks), xxhash.xxh3_128_hexdigest("".join(blocks).encode() if len(blocks) > 1 else body)


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES, 2 * BLOCK_BYTES + 17])
@pytest.mark.parametrize("piece", [BLOCK_BYTES, 700_001, 3 * BLOCK_BYTES])
def test_pieces_of_any_size_give_the_digests_of_the_whole(size: int, piece: int) -> None:
    body, told = random.Random(size).randbytes(size), digest.ObjectDigest()
    for start in range(0, size, piece):
        told.update(memoryview(body)[start : start + piece])
    assert (told.blocks, told.hex()) == expected(body)
    assert digest.of_object(body) == told.hex()


@pytest.mark.parametrize("size", [1, BLOCK_BYTES, 2 * BLOCK_BYTES + 17])
def test_what_is_published_is_told_with_the_digest_of_each_block(store: Store, size: int) -> None:
    body = random.Random(size).randbytes(size)
    info = store.publish("a", iter([memoryview(body)]))
    assert info.blocks == expected(body)[0]
    assert info.checksum in (None, expected(body)[1])
    assert store.read("a") == body
