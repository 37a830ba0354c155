"""Tiny shapes and published peers that the model tests share."""

import logging
import os
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from stagecoach.contract.plan import Connector, Decoder, Encoder, Image, Model

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns about every processor that would like torchvision
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tiny shapes: threads would only wait for each other


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    """The peer; nothing is downloaded, its models are made at random."""
    peer = pytest.importorskip("transformers", reason="needs transformers, the peer that parity is measured against")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return peer


@pytest.fixture(scope="session")
def tiny_decoder() -> Callable[..., Decoder]:
    """A decoder plan of a few thousand parameters; keywords change it."""

    def build(**changes: object) -> Decoder:
        plan = {"vocab_size": 61, "width": 32, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn_width": 48, "max_positions": 128}
        return Decoder(**{**plan, **changes})  # type: ignore[arg-type]

    return build


@pytest.fixture(scope="session")
def tiny_model(tiny_decoder: Callable[..., Decoder]) -> Callable[..., Model]:
    """A whole model plan; `decoder`, `connector`, ... replace parts."""

    def build(**changes: object) -> Model:
        encoder = Encoder(layout="clip", width=32, layers=2, heads=2, mlp_width=64, patch_size=4, image_size=16)
        connector = Connector(kind="c_abstractor", tokens=4, hidden=32, depth=1, heads=2, head_dim=8)
        parts = {"encoder": encoder, "connector": connector, "decoder": tiny_decoder(added_tokens=2), "image": Image(size=16)}
        return Model(**{**parts, **changes})  # type: ignore[arg-type]

    return build
