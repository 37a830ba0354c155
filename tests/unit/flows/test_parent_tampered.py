"""A parent that somebody tampered with: the next stage is refused before anything of it is written or submitted, and the error names
what differs. (A flipped byte that only full reading finds reaches the ranks: tests/distributed/train/test_flipped_byte.py.)"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stagecoach.contract.ledger import Runs
from stagecoach.errors import StagecoachError
from stagecoach.storage import open_store
from stagecoach.testing.fake_launcher import FakeCluster
from stagecoach.testing.flow_world import TOY_SETTINGS, Counter, TrainingLauncher
from stagecoach_flows.parameters import Mm1Parameters
from stagecoach_flows.pipeline import plain_stage, run_pipeline
from stagecoach_flows.surroundings import Outcome, Surroundings, surrounded


@dataclass
class Scene:
    """A finished pretrain stage below `root`, and a corpus whose tokenizer may be written to."""

    root: Path
    corpus: Path

    @property
    def checkpoint(self) -> Path:
        told = json.loads(self.stage_json.read_text())
        return Path(told["checkpoint"]["uri"].removeprefix("file://"))

    @property
    def stage_json(self) -> Path:
        return self.root / "runs/toy/stages/00-pretrain/stage.json"

    def run(self, stages: tuple[str, ...], cluster: FakeCluster, **changes: Any) -> list[dict[str, Any]]:
        asked: dict[str, Any] = {
            "recipe": "mm1_tiny", "root": self.root.as_uri(), "run_id": "toy", "data": self.corpus.as_uri(), "settings": TOY_SETTINGS,
        }  # fmt: skip
        around = Surroundings(
            launcher=lambda *_: TrainingLauncher(cluster, Counter()), evaluation=lambda *_: None, poll_s=0.0, retry_delays_s=(),
            outcome=Outcome(),
        )  # fmt: skip
        with surrounded(around):
            return run_pipeline(Mm1Parameters(**{**asked, "stages": stages, **changes}), run_one=plain_stage)


@pytest.fixture
def scene(tmp_path: Path, corpus: str) -> Scene:
    copied = tmp_path / "corpus"
    copied.mkdir()
    for entry in Path(corpus.removeprefix("file://")).iterdir():
        if entry.is_dir():
            (copied / entry.name).symlink_to(entry)
        else:
            shutil.copy(entry, copied)
    made = Scene(tmp_path / "root", copied)
    made.run(("pretrain",), FakeCluster())
    return made


def cut_off(scene: Scene) -> dict[str, Any]:
    path = scene.checkpoint / "model-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return {}


def grown(scene: Scene) -> dict[str, Any]:
    path = scene.checkpoint / "model-00001.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    return {}


def flipped(scene: Scene) -> dict[str, Any]:
    path = scene.checkpoint / "model-00001.safetensors"
    body = bytearray(path.read_bytes())
    body[-3] ^= 4
    path.write_bytes(body)
    return {"verify": "full"}


def manifest_edited(scene: Scene) -> dict[str, Any]:
    path = scene.checkpoint / "MANIFEST.json"
    path.write_bytes(path.read_bytes().replace(b'"attempt": 1', b'"attempt": 2', 1))
    return {}


def replaced(scene: Scene, path: Path, body: bytes) -> None:
    """By somebody who goes through the storage, so that its stored checksum is right."""
    open_store(scene.root.as_uri()).publish(path.relative_to(scene.root).as_posix(), body)


def manifest_and_its_seal_edited(scene: Scene) -> dict[str, Any]:
    body = (scene.checkpoint / "MANIFEST.json").read_bytes().replace(b'"attempt"', b' "attempt"', 1)
    replaced(scene, scene.checkpoint / "COMMITTED", hashlib.sha256(body).hexdigest().encode())
    replaced(scene, scene.checkpoint / "MANIFEST.json", body)
    return {}


def hand_over_edited(scene: Scene) -> dict[str, Any]:
    told = json.loads(scene.stage_json.read_text())
    told["checkpoint"]["digest"] = "0" * 64
    replaced(scene, scene.stage_json, json.dumps(told).encode())
    return {}


def one_vocabulary_entry(scene: Scene) -> dict[str, Any]:
    path = scene.corpus / "tokenizer.json"
    told = json.loads(path.read_text())
    vocabulary = told["model"]["vocab"]
    word = next(reversed(vocabulary))
    vocabulary[f"{word}x"] = vocabulary.pop(word)
    path.write_text(json.dumps(told))
    return {}


def another_tokenizer(scene: Scene) -> dict[str, Any]:
    other = scene.corpus.with_name("other-tokenizer.json")
    other.write_text(json.dumps({**json.loads((scene.corpus / "tokenizer.json").read_text()), "truncation": None, "version": "9"}))
    return {"settings": (*TOY_SETTINGS, f"sft.data.tokenizer={other.as_uri()}")}


def half_copied(scene: Scene) -> dict[str, Any]:
    """A copy to another bucket that stopped before its last file."""
    elsewhere = scene.root.with_name("elsewhere") / scene.stage_json.parent.relative_to(scene.root)
    shutil.copytree(scene.stage_json.parent, elsewhere)
    (elsewhere / scene.checkpoint.relative_to(scene.stage_json.parent) / "model-00001.safetensors").unlink()
    (elsewhere / "stage.json").unlink()
    return {"from_checkpoint": elsewhere.as_uri(), "run_id": "toy2"}


def copied_without_its_commit(scene: Scene) -> dict[str, Any]:
    changes = half_copied(scene)
    for seal in Path(changes["from_checkpoint"].removeprefix("file://")).rglob("COMMITTED"):
        seal.unlink()
    return changes


TAMPERED: dict[Callable[[Scene], dict[str, Any]], str] = {
    cut_off: r"model-00001\.safetensors .*cut off",
    grown: r"model-00001\.safetensors .*added",
    flipped: r"model-00001\.safetensors: block 0 .*other bytes than were committed",
    manifest_edited: r"MANIFEST\.json",
    manifest_and_its_seal_edited: r"stage\.json names manifest digest",
    hand_over_edited: r"stage\.json names manifest digest 0000000000000000",
    one_vocabulary_entry: r"sft: data\.tokenizer .* has digest .* trained with",
    another_tokenizer: r"sft: data\.tokenizer .*other-tokenizer\.json has digest .* trained with",
    half_copied: r"model-00001\.safetensors is missing",
    copied_without_its_commit: r"--from-checkpoint .*: no committed checkpoint there",
}


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda tamper: tamper.__name__)
def test_a_tampered_parent_is_refused_before_anything_is_submitted(scene: Scene, tamper: Callable[[Scene], dict[str, Any]]) -> None:
    changes, cluster = tamper(scene), FakeCluster()
    with pytest.raises(StagecoachError, match=TAMPERED[tamper]):
        scene.run(("sft",), cluster, **changes)
    assert cluster.jobs == {}
    runs = Runs.open(scene.root.as_uri())
    assert [run for run in runs.ids() if (known := runs.run(run)) and runs.stage(known, "sft").plan() is not None] == []
    assert runs.ids() == ["toy"]


def test_an_untouched_parent_is_taken(scene: Scene) -> None:
    """Else all the others would prove nothing."""
    assert [one["stage"] for one in scene.run(("sft",), FakeCluster(), verify="full")] == ["sft"]
