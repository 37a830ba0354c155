"""Fills a module from a source, piece by piece.

Targets may be sharded (DTensor): every rank reads a tensor, keeps its part and drops the rest.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stagecoach.errors import CheckpointError
from stagecoach_workloads.weights.layouts import Piece
from stagecoach_workloads.weights.sources import TensorSource

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What came and what did not. `kept`: ours that no piece fills (routers, connector), left as they are."""

    loaded: int
    grown: dict[str, int] = field(default_factory=dict)  # name of ours: rows added
    ignored: list[str] = field(default_factory=list)  # theirs that our model has no use for
    kept: list[str] = field(default_factory=list)


@torch.no_grad()
def load_pieces(
    module: nn.Module,
    pieces: Sequence[Piece],
    source: TensorSource,
    *,
    prefix: str = "",
    ignore: Callable[[str], bool] = lambda _: False,
    beat: Callable[[], object] = lambda: None,
) -> LoadReport:
    """Copies every piece into `module`. Peak extra memory: one tensor beside the open shard. `beat` is called for each.

    `prefix` stands before their names. Raises CheckpointError that lists all missing and unexpected names, the nearest beside each,
    and all wrong shapes, before anything is copied.
    """
    shapes = source.shapes()
    targets = dict(module.named_parameters())
    _check_names(pieces, shapes, prefix, ignore, source.uri)
    _check_shapes(pieces, shapes, targets, prefix, source.uri)
    order = {name: place for place, name in enumerate(shapes)}
    grown: dict[str, int] = {}
    for piece in sorted(pieces, key=lambda piece: order[prefix + piece.theirs]):
        beat()
        if added := _load_piece(targets[piece.ours], piece, source, prefix):
            grown[piece.ours] = added
    used = {prefix + piece.theirs for piece in pieces}
    filled = {piece.ours for piece in pieces}
    return LoadReport(
        loaded=len(filled),
        grown=grown,
        ignored=[name for name in shapes if name not in used],
        kept=[name for name in targets if name not in filled],
    )


def _load_piece(target: Tensor, piece: Piece, source: TensorSource, prefix: str) -> int:
    """Returns by how many rows it grew. A function of its own, so that its tensor is gone before the next one is read."""
    value = source.read(prefix + piece.theirs, piece.start, piece.stop)
    added = target.shape[0] - value.shape[0] if piece.grows else 0
    if piece.experts:
        value = value.T.expand(target.shape)
    elif added:
        value = grow_rows(value, target.shape[0])
    assign(target, value)
    return added


def grow_rows(rows_VD: Tensor, count: int) -> Tensor:
    """Adds rows that are the mean of those there: a new token starts as likely as an average one and moves no old logit's rank
    (Hewitt 2021, "Initializing new word embeddings for pretrained language models")."""
    mean_1D = rows_VD.float().mean(0, keepdim=True).to(rows_VD.dtype)
    return torch.cat((rows_VD, mean_1D.expand(count - rows_VD.shape[0], -1)))


def assign(target: Tensor, value: Tensor) -> None:
    """Copies a full tensor into a parameter, or its own part of it into a sharded one, without communication."""
    if not isinstance(target, DTensor):
        target.detach().copy_(value)
        return
    local = target.to_local()
    part = value[local_slices(target)]
    if local.numel():
        local.detach().copy_(part)


def local_slices(target: DTensor) -> tuple[slice, ...]:
    """Which part of the full tensor this rank holds."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(target.shape, target.device_mesh, target.placements)
    return tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))


def _check_names(pieces: Sequence[Piece], shapes: Shapes, prefix: str, ignore: Callable[[str], bool], uri: str) -> None:
    there = list(shapes)
    wanted = {prefix + piece.theirs for piece in pieces}
    missing = sorted(wanted - set(there))
    unexpected = sorted(name for name in there if name not in wanted and not ignore(name))
    if not missing and not unexpected:
        return
    lines = [f"missing `{name}`{_nearest(name, unexpected or there)}" for name in missing]
    lines += [f"unexpected `{name}`{_nearest(name, missing)}" for name in unexpected]
    shown = "; ".join(lines[:12]) + (f"; and {len(lines) - 12} more" if len(lines) > 12 else "")
    raise CheckpointError(f"{uri} does not hold this model: {shown}. Compare config.json with the plan (layers, biases, tied embeddings)")


def _check_shapes(pieces: Sequence[Piece], shapes: Shapes, targets: dict[str, nn.Parameter], prefix: str, uri: str) -> None:
    problems = []
    for piece in pieces:
        theirs = shapes[prefix + piece.theirs]
        ours = tuple(targets[piece.ours].shape)
        rows = theirs[0] if piece.stop is None else piece.stop - piece.start
        given = (rows, *theirs[1:]) if theirs else ()
        if piece.experts:
            given = (ours[0], *reversed(given))
        fits = given[1:] == ours[1:] and given[0] <= ours[0] if piece.grows else given == ours
        if not fits or (piece.stop is not None and piece.stop > theirs[0]):
            problems.append(f"`{piece.theirs}` is {theirs}, which gives {given} where `{piece.ours}` is {ours}")
    if problems:
        raise CheckpointError(f"{uri} has other shapes than the plan: {'; '.join(problems[:6])}. Give the plan config.json's widths")


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (nearest: `{near[0]}`)" if near else ""
