"""What training has come to: all that a step changes, and how it is written to a checkpoint and read back."""

import base64
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from stagecoach.checkpoints.tensors import WeightsDigest
from stagecoach.contract.identity import identity_fields
from stagecoach.contract.plan import StagePlan
from stagecoach.errors import CheckpointError
from stagecoach.storage.digest import Digest
from stagecoach_workloads.checkpoints.state import CheckpointState, dtype_name
from stagecoach_workloads.data.work.quarantine import QuarantineBudget
from stagecoach_workloads.models.multimodal import MultimodalModel
from stagecoach_workloads.train.guard import Guard
from stagecoach_workloads.train.optimizers.build import Optimizer

STATE_FORMAT = "stagecoach.train_state/1"


@dataclass
class TrainState:
    """Equal on all ranks, but for what is sharded and for random numbers."""

    model: MultimodalModel
    optimizer: Optimizer
    guard: Guard
    quarantine: QuarantineBudget = field(default_factory=QuarantineBudget)
    step: int = 0  # optimizer steps behind us, skipped ones included
    tokens: int = 0  # positions of documents
    images: int = 0
    data: dict[str, Any] | None = None  # the data plan's state before the next step; None: from the beginning
    rewinds: list[dict[str, int]] = field(default_factory=list)  # windows left out: {"from_step", "to_step"}
    last_loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # of the last validation

    @property
    def data_step(self) -> int:
        """Which of the data plan's steps comes next."""
        return self.step + self.guard.batches_skipped

    def tensors(self) -> CheckpointState:
        """Where a checkpoint is loaded into: parameters and the optimizer's state, in place."""
        return CheckpointState(
            model={name: parameter.detach() for name, parameter in self.model.named_parameters()}, optimizer=self.optimizer.state_tensors()
        )

    def to_checkpoint(self, plan: StagePlan) -> CheckpointState:
        """What is saved. The plan goes with it, so that a plan that was changed can be told apart field by field."""
        state = self.tensors()
        state.shared = {
            "format": STATE_FORMAT,
            "step": self.step,
            "tokens": self.tokens,
            "images": self.images,
            "loss": self.last_loss,
            "metrics": self.metrics,
            "data": self.data,
            "guard": self.guard.state(),
            "rewinds": self.rewinds,
            "quarantine": self.quarantine.state(),
            "plan": identity_fields(plan),
        }
        state.own = {"random": random_state()}
        return state

    def take_up(self, shared: dict[str, Any]) -> None:
        """Goes on from the values of a checkpoint. Raises CheckpointError for values of another format (F40)."""
        if shared.get("format") != STATE_FORMAT:
            raise CheckpointError(
                f"state.json of the checkpoint has the format {shared.get('format')!r}; this program reads {STATE_FORMAT}: go on with the "
                "version that wrote it"
            )
        self.step, self.tokens, self.images = int(shared["step"]), int(shared["tokens"]), int(shared["images"])
        self.last_loss, self.data, self.rewinds = shared["loss"], shared["data"], list(shared["rewinds"])
        self.metrics = dict(shared["metrics"])
        self.guard.load_state(shared["guard"])
        self.quarantine.bad, self.quarantine.seen = int(shared["quarantine"]["bad"]), int(shared["quarantine"]["seen"])


# --- random numbers ------------------------------------------------------------------------------------------------------------


def random_state() -> dict[str, str]:
    """This rank's generators, as text."""
    version, internal, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=True)
    _, keys, place, has_gauss, numpy_gauss = numpy_state
    states = {
        "torch": _text(torch.get_rng_state().numpy().tobytes()),
        "numpy": _text(keys.tobytes() + int(place).to_bytes(4, "little")),
        "numpy_gauss": repr(float(numpy_gauss)) if has_gauss else "-",  # normal numbers are drawn two at a time: the second one waits
        "python": f"{version} {gauss if gauss is not None else '-'} {_text(np.array(internal, np.uint64).tobytes())}",
    }
    if torch.cuda.is_available():
        states["cuda"] = _text(torch.cuda.get_rng_state().numpy().tobytes())
    return states


def set_random_state(states: dict[str, str]) -> None:
    """Takes up what `random_state` gave."""
    torch.set_rng_state(_tensor(states["torch"]))
    numpy_state = base64.b64decode(states["numpy"])
    keys = np.frombuffer(numpy_state[:-4], np.uint32)
    waiting = states.get("numpy_gauss", "-")  # older checkpoints do without
    pair = (0, 0.0) if waiting == "-" else (1, float(waiting))
    np.random.set_state(("MT19937", keys, int.from_bytes(numpy_state[-4:], "little"), *pair))
    version, gauss, internal = states["python"].split(" ")
    numbers = tuple(int(number) for number in np.frombuffer(base64.b64decode(internal), np.uint64))
    random.setstate((int(version), numbers, None if gauss == "-" else float(gauss)))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(states["cuda"]))


def derive_random_state(seed: int, step: int, rank: int) -> None:
    """Seeds this rank's generators from where training is: at the beginning, and where the ranks are others than those that saved."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)  # CUDA's too
    np.random.seed(int.from_bytes(digest[8:12], "little"))
    random.seed(digest)


def _text(body: bytes) -> str:
    return base64.b64encode(body).decode("ascii")


def _tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


# --- digests -------------------------------------------------------------------------------------------------------------------


def full_value(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on every rank: a collective for a sharded one."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


@torch.no_grad()
def weights_digest(model: MultimodalModel, rank: int, world_size: int, beat: Callable[[], object] = lambda: None) -> str:
    """The digest that `stage.json` holds: the same for any number of ranks. A collective; each rank hashes its share of the tensors.
    `beat` is called for each of them."""
    parameters = sorted(model.named_parameters())
    checksums = torch.zeros((len(parameters), 16), dtype=torch.int64)
    for number, (_, parameter) in enumerate(parameters):
        beat()
        value = full_value(parameter)
        if number % world_size == rank:
            digest = Digest()
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            checksums[number] = torch.tensor(list(bytes.fromhex(digest.hex())))
    dist.all_reduce(checksums)
    total = WeightsDigest()
    for (name, parameter), checksum in zip(parameters, checksums.tolist(), strict=True):
        total.add(name, dtype_name(parameter), tuple(parameter.shape), bytes(checksum).hex())
    return total.hex()
