"""Compilation, block by block: equal blocks share one compiled program, and the first step waits for a few of them only."""

import torch
from torch import nn


def compile_blocks(blocks: list[nn.Module], *, backend: str = "inductor") -> None:
    """Compiles each block's `forward` in place, inside of what sharding hooks onto the block. Call it before sharding.

    Shapes that vary (rows of a microbatch, images of a step) are traced once as symbols.
    """
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
    for block in blocks:
        block.forward = torch.compile(block.forward, backend=backend, dynamic=None)
