"""Rows to ranks and microsteps. Rows with like image counts share a microstep; every rank gets a like sum of images over the step."""

from collections.abc import Sequence

from stagecoach_workloads.data.plan.streams import Row


def assign(rows: Sequence[Row], ranks: int, *, microbatch_rows: int = 1) -> list[list[list[int]]]:
    """rank -> microsteps -> numbers of rows. Every rank has the same number of microsteps; where rows do not divide, some are short or
    empty (a rank without rows still runs its step). Deterministic.

    The encoder's load is the number of encoded images; the decoder's is the same for every row, since rows are as long as each other.
    """
    per_step = ranks * microbatch_rows
    order = sorted(range(len(rows)), key=lambda number: (-rows[number].images, -rows[number].positions, number))
    bands = [order[first : first + per_step] for first in range(0, len(order), per_step)]
    load = [0] * ranks
    dealt: list[list[list[int]]] = [[] for _ in range(ranks)]
    for band in bands:
        groups = _even_groups(band, rows, ranks, microbatch_rows)
        by_load = sorted(range(ranks), key=lambda rank: (load[rank], rank))
        for rank, group in zip(by_load, groups, strict=True):
            dealt[rank].append(sorted(group))
            load[rank] += sum(rows[number].images for number in group)
    return dealt


def _even_groups(band: list[int], rows: Sequence[Row], ranks: int, size: int) -> list[list[int]]:
    """The band as one group a rank, of at most `size` rows and like images, the heaviest group first."""
    if size == 1:
        return [[number] for number in band] + [[] for _ in range(ranks - len(band))]
    groups: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for number in band:
        open_groups = [place for place in range(ranks) if len(groups[place]) < size]
        place = min(open_groups, key=lambda p: (loads[p], len(groups[p]), p))
        groups[place].append(number)
        loads[place] += rows[number].images
    return [groups[place] for place in sorted(range(ranks), key=lambda p: (-loads[p], p))]
