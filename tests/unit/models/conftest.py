"""Tiny shapes and published peers that the model tests share."""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
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


@pytest.fixture
def decoder_folder(tiny_model: Callable[..., Model], tmp_path: Path) -> Path:
    """A Llama folder of the tiny decoder, at random."""
    from stagecoach_workloads.models.build import build_model
    from stagecoach_workloads.weights.exporting import export_decoder
    from stagecoach_workloads.weights.sources import TensorsInMemory

    plan = replace(tiny_model().decoder, added_tokens=0)
    model = build_model(replace(tiny_model(), decoder=plan))
    export_decoder(TensorsInMemory(model.state_dict()), plan, str(tmp_path / "hf"), layout="llama")
    return tmp_path / "hf"


@pytest.fixture(scope="session")
def write_tokenizer() -> Callable[[Path, int], Path]:
    """Puts a tokenizer.json of so many ids into a folder."""

    def write(path: Path, ids: int) -> Path:
        path.mkdir(exist_ok=True)
        vocabulary = {f"t{i}": i for i in range(ids - 1)}
        added = [{"id": ids - 1, "content": "<image>"}]
        (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added}))
        (path / "tokenizer_config.json").write_text("{}")
        return path

    return write
