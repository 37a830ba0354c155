"""The plan: the same global batches for any ranks and from any state, exact shares, full rows, balanced ranks."""

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecoach.contract.plan import Batch, Image, Mixture, Packing, Split, StagePlan, Weight
from stagecoach.errors import DataError
from stagecoach.recipes.tiny import mm1_5_tiny, mm1_tiny
from stagecoach.storage import open_store
from stagecoach_workloads.data.plan.assign import assign
from stagecoach_workloads.data.plan.layout import Layout, LayoutSettings, cut
from stagecoach_workloads.data.plan.mixing import Mixer
from stagecoach_workloads.data.plan.open import open_data
from stagecoach_workloads.data.plan.packing import fewest_rows, pack
from stagecoach_workloads.data.plan.plan import DataPlan
from stagecoach_workloads.data.plan.shares import ShareMeter
from stagecoach_workloads.data.plan.source import Source
from stagecoach_workloads.data.plan.states import load_state_table, states_key, write_state_table
from stagecoach_workloads.data.plan.streams import Row, Slice
from stagecoach_workloads.data.tokens import RunLengths


class FakeIndex:
    """An index of made-up sizes: what a Layout and a Source read of one."""

    def __init__(self, count: int, *, seed: int, images: tuple[int, int] = (1, 1), bytes_each: int = 60_000) -> None:
        rng = np.random.default_rng(seed)
        self.num_samples = count
        per = rng.integers(images[0], images[1] + 1, count)
        self.image_start = np.concatenate([[0], np.cumsum(per)]).astype(np.int64)
        self.widths = rng.integers(200, 1600, per.sum()).astype(np.int32)
        self.heights = rng.integers(200, 1600, per.sum()).astype(np.int32)
        size = np.full(count, bytes_each, np.int64)
        place = np.cumsum(size) - size
        self.shard, self.offset = (place // 64_000_000).astype(np.int32), place % 64_000_000


def fake_source(
    name: str,
    count: int,
    *,
    seed: int = 0,
    text: tuple[int, int] = (10, 120),
    images: tuple[int, int] = (1, 1),
    kind: str = "pairs",
    split: Split | None = None,
    tokens: int = 144,
    shuffle_blocks: int = 4,
) -> Source:
    index = FakeIndex(count, seed=seed, images=images)
    runs_each = np.diff(index.image_start) + 1
    start = np.concatenate([[0], np.cumsum(runs_each)]).astype(np.int64)
    runs = np.random.default_rng(seed + 1).integers(text[0], text[1] + 1, start[-1]).astype(np.int32)
    image = Image(size=336, split=split or Split())
    layout = Layout(index, RunLengths(start, runs), LayoutSettings(image, tokens), kind=kind)  # type: ignore[arg-type]
    return Source(name, layout, seed=7, fingerprint="f" + name, shuffle_blocks=shuffle_blocks)


def fake_plan(
    *, unit: str = "rows", seed: int = 0, rows: int = 16, seq_len: int = 1024, batch_unit: str = "rows", window_rows: int = 32
) -> DataPlan:
    sources = [
        fake_source("pairs", 3000, seed=1),
        fake_source("docs", 500, seed=2, images=(1, 5), text=(20, 90), kind="interleaved"),
        fake_source("text", 2000, seed=3, images=(0, 0), text=(50, 1500), kind="text"),
    ]
    weights = tuple(Weight(dataset=name, weight=weight) for name, weight in (("pairs", 0.45), ("docs", 0.45), ("text", 0.1)))
    return DataPlan(
        sources,
        mixture=Mixture(unit=unit, weights=weights),  # type: ignore[arg-type]
        packing=Packing(images_per_row=8, window_rows=window_rows, over_budget="split"),
        batch=Batch(size=rows, seq_len=seq_len),
        seed=seed,
    )


@pytest.mark.parametrize("unit", ["rows", "samples"])
def test_any_step_from_any_state_is_the_step_of_an_uninterrupted_plan(unit: str) -> None:
    whole = fake_plan(unit=unit)
    hashes = [whole.hash(whole.batch(step)) for step in range(40)]
    assert len(set(hashes)) == 40
    for step in (0, 1, 17, 39):
        state = json.loads(json.dumps(whole.state(step)))
        assert len(json.dumps(state)) < 1000
        resumed = fake_plan(unit=unit)
        resumed.go_to(state)
        assert [resumed.hash(resumed.batch(later)) for later in range(step, 40)] == hashes[step:]
        fresh = fake_plan(unit=unit)
        assert fresh.hash(fresh.batch(step)) == hashes[step]  # without a state, from the seed alone
        assert fresh.state(step) == whole.state(step)


def test_one_epoch_shows_every_sample_once_and_the_next_in_another_order() -> None:
    source = fake_source("pairs", 3000)
    first, epochs = source.take(0, 3000)
    second, later = source.take(3000, 3000)
    assert sorted(first) == sorted(second) == list(range(3000))
    assert (first != second).any()
    assert set(epochs) == {0}
    assert set(later) == {1}
    assert (source.take(1234, 50)[0] == first[1234:1284]).all()


def test_nothing_is_lost_or_doubled_by_packing_and_splitting() -> None:
    plan = fake_plan(unit="samples", rows=24)
    seen: Counter[tuple[int, int, int]] = Counter()
    for step in range(40):
        for row in plan.batch(step):
            assert row.positions <= 1024
            assert row.images <= 8
            for part in row.slices:
                seen[part.source, part.sample, part.epoch] += part.stop - part.start
    whole = {key: plan.sources[key[0]].layout.sizes(np.array([key[1]]))[0][0] for key in seen}
    complete = sum(seen[key] == whole[key] for key in seen)
    assert all(seen[key] <= whole[key] for key in seen)
    assert complete > 0.9 * len(seen)  # all but those that reach over the last window


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), ranks=st.integers(1, 9), rows=st.integers(1, 40), microbatch=st.integers(1, 3))
def test_every_row_goes_to_exactly_one_rank_whatever_the_ranks(seed: int, ranks: int, rows: int, microbatch: int) -> None:
    rng = np.random.default_rng(seed)
    made = [Row((Slice(0, n, 0, 0, int(rng.integers(2, 900)), int(rng.integers(0, 17))),)) for n in range(rows)]
    dealt = assign(made, ranks, microbatch_rows=microbatch)
    assert sorted(n for rank in dealt for micro in rank for n in micro) == list(range(rows))
    assert {len(rank) for rank in dealt} == {-(-rows // (ranks * microbatch))}
    assert all(len(micro) <= microbatch for rank in dealt for micro in rank)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 50), step=st.integers(0, 8), ranks=st.sampled_from([1, 2, 3, 4, 8]))
def test_global_batches_know_no_ranks(seed: int, step: int, ranks: int) -> None:
    plan = fake_plan(seed=seed)
    rows = plan.batch(step)
    assert plan.describe(step, ranks)["batch_hash"] == fake_plan(seed=seed).describe(step, 1)["batch_hash"]
    gathered = sorted(number for rank in plan.assign(rows, ranks) for micro in rank for number in micro)
    assert [rows[number] for number in gathered] == rows


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 100), st.integers(0, 4)), min_size=1, max_size=80))
def test_packing_keeps_both_budgets_and_every_document(documents: list[tuple[int, int]]) -> None:
    positions, images = [d[0] for d in documents], [d[1] for d in documents]
    rows = pack(positions, images, max_positions=100, max_images=4)
    assert sorted(n for row in rows for n in row) == list(range(len(documents)))
    assert all(sum(positions[n] for n in row) <= 100 and sum(images[n] for n in row) <= 4 for row in rows)
    assert len(rows) >= fewest_rows(positions, images, max_positions=100, max_images=4)


def test_rows_are_at_least_98_percent_full_where_images_do_not_bind() -> None:
    rng = np.random.default_rng(0)
    positions = rng.integers(20, 900, 3000).tolist()
    images = rng.integers(0, 3, 3000).tolist()
    rows = pack(positions, images, max_positions=4096, max_images=16)
    assert sum(positions) / (len(rows) * 4096) >= 0.98


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=9), st.integers(1, 600))
def test_every_block_of_the_mixture_is_within_one_unit_of_its_shares(weights: list[int], block: int) -> None:
    mixer = Mixer([float(w) for w in weights], block=block, seed=1, label="t")
    counts = mixer.counts(0, 50)
    assert (counts.sum(axis=1) == block).all()
    wanted = np.array(weights) / sum(weights) * block
    assert (np.abs(counts - wanted) <= 1 + 1e-6).all()
    assert (mixer.before(50) == counts.sum(axis=0)).all()
    assert (np.bincount(mixer.deal(7), minlength=len(weights)) == counts[7]).all()


def test_achieved_shares_match_the_mixture() -> None:
    plan = fake_plan()
    shares = plan.shares([row for step in range(100) for row in plan.batch(step)])["rows"]
    for name, weight in (("pairs", 0.45), ("docs", 0.45), ("text", 0.1)):
        assert abs(shares[name] - weight) < 0.01


def test_ranks_are_balanced_per_step_and_per_microstep() -> None:
    rng = np.random.default_rng(0)
    rows = [Row((Slice(0, n, 0, 0, 4000, int(np.clip(rng.normal(11, 3), 0, 16))),)) for n in range(512)]
    dealt = assign(rows, 64)
    load = [sum(rows[n].images for micro in rank for n in micro) for rank in dealt]
    assert max(load) / np.mean(load) <= 1.05
    micro = [[sum(rows[n].images for n in rank[m]) for rank in dealt] for m in range(8)]
    assert sum(map(max, micro)) / sum(np.mean(m) for m in micro) <= 1.10


def test_a_document_is_never_cut_inside_an_image() -> None:
    source = fake_source("docs", 50, images=(3, 6), text=(100, 300), kind="interleaved")
    for sample in range(50):
        pieces, at = source.layout.pieces(sample), 0
        total = pieces[-1].start + pieces[-1].length
        assert (total, sum(p.tiles for p in pieces)) == tuple(int(v[0]) for v in source.layout.sizes(np.array([sample])))
        while at < total:
            stop, images = cut(pieces, first=at, positions=512, tiles=2)
            assert at < stop <= at + 512
            assert images <= 2
            assert not any(piece.tiling and piece.start < stop < piece.start + piece.length for piece in pieces)
            at = stop


def test_splitting_counts_tiles_only_below_three_images() -> None:
    dynamic = Split(kind="dynamic", min_tiles=4, max_tiles=9, overview="after")
    few, many = (fake_source("s", 200, images=(n, n), split=dynamic).layout.sizes(np.arange(200))[1] for n in (2, 3))
    assert (few >= 2 * 5).all()
    assert (many == 3).all()


def counted(calls: list[int], pack_window: Callable[[int], list[Row]]) -> Callable[[int], list[Row]]:
    """The same function; what it is called with is kept."""
    return lambda window: calls.append(window) or pack_window(window)  # type: ignore[func-returns-value]


def test_a_step_far_away_is_reached_at_once_with_the_table_of_states(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[int] = []
    store = open_store(f"memory://states-{os.getpid()}")
    key = states_key("pretrain")
    plan = fake_plan(rows=64)
    assert load_state_table(store, key, plan) == 0  # nothing there yet
    wanted = {step: plan.hash(plan.batch(step)) for step in (3, 40, 150)}
    assert write_state_table(store, key, plan) > 150
    resumed = fake_plan(rows=64)
    resumed.go_to(plan.state(150))
    resumed.batch(170)
    assert write_state_table(store, key, resumed) > write_state_table(store, key, fake_plan(rows=64)) - 1  # merged, never shortened
    fresh = fake_plan(rows=64)
    assert load_state_table(store, key, fresh) > 170
    for stream in fresh._streams:  # counted, not timed: benchmarks/data_plan.py has the seconds
        monkeypatch.setattr(stream, "_pack", counted(packed, stream._pack))
    assert {step: fresh.hash(fresh.batch(step)) for step in (150, 3, 40)} == wanted
    assert len(packed) <= 3 * 2 * len(fresh._streams)  # a step's rows lie in one window of a stream, or reach into the next
    assert fresh.state(40) == plan.state(40)


def test_a_table_of_states_of_another_plan_is_no_use_and_a_damaged_one_is_refused() -> None:
    store, key = open_store(f"memory://other-states-{os.getpid()}"), states_key("sft")
    plan = fake_plan(seed=1)
    plan.batch(5)
    write_state_table(store, key, plan)
    assert load_state_table(store, key, fake_plan(seed=2)) == 0
    assert load_state_table(store, key, fake_plan(seed=1)) > 0
    store.publish(key, store.read(key)[:-9])
    with pytest.raises(DataError, match="damaged"):
        load_state_table(store, key, fake_plan(seed=1))
    wrong = fake_plan(seed=1)
    wrong.batch(5)
    with pytest.raises(DataError, match="one of the states is of another plan"):
        wrong.learn_marks({name: [(1, before + 1) for window, before in marks if window == 1] for name, marks in plan.marks().items()})


@pytest.mark.parametrize("unit", ["rows", "samples"])
def test_every_window_of_steps_has_the_shares_of_the_mixture_within_chance(unit: str) -> None:
    plan = fake_plan(unit=unit, rows=64)
    for source in plan.sources:
        source.layout.index.categories = (["a", "b"], (np.arange(source.num_samples) % 4 == 0).astype(int))  # type: ignore[misc]
    meter = ShareMeter(plan)
    for first, stop in ((0, 7), (7, 30), (30, 31)):
        meter.reset()
        for step in range(first, stop):
            meter.add(plan.batch(step))
        report = meter.report()
        assert report["off"] == [], (first, stop)
        assert report["steps"] == stop - first
        assert report["kind"].keys() == {"pairs", "interleaved", "text"}
        assert abs(report["kind"]["pairs"][0] - 0.45) < 0.1
    plan.weights = [0.2, 0.7, 0.1]  # what the meter would say if the wrong mixture were consumed
    for step in range(30):
        meter.add(plan.batch(step))
    assert set(meter.report()["off"]) >= {"pairs", "docs"}


def short_and_long_texts() -> DataPlan:
    """Facts are short and lists long, so that packing fills whole rows with either."""
    lists = np.random.default_rng(0).random(4000) < 0.5
    lengths = np.where(lists, np.arange(4000) % 110 + 150, np.arange(4000) % 7 + 30).astype(np.int32)
    index = FakeIndex(4000, seed=1, images=(0, 0))
    index.categories = (["facts", "lists"], lists.astype(int))  # type: ignore[attr-defined]
    layout = Layout(index, RunLengths(np.arange(4001), lengths), LayoutSettings(Image(size=336), 144), kind="text")  # type: ignore[arg-type]
    return DataPlan(
        [Source("text", layout, seed=7, fingerprint="f", shuffle_blocks=4)],
        mixture=Mixture(unit="rows", weights=(Weight(dataset="text", weight=1.0),)),
        packing=Packing(images_per_row=8, window_rows=64, over_budget="split"), batch=Batch(size=8, seq_len=1024), seed=0,
    )  # fmt: skip


def test_samples_that_packing_puts_together_do_not_make_a_share_look_wrong() -> None:
    plan = short_and_long_texts()
    meter, off = ShareMeter(plan), []
    for step in range(200):
        meter.reset()
        meter.add(plan.batch(step))
        off += meter.report()["off"]
    assert off == []


@pytest.mark.parametrize(("steps", "kept"), [(20, 0), (50, 4)])  # of 16 lists so many
def test_a_share_that_is_truly_wrong_is_told_although_packing_puts_samples_together(steps: int, kept: int) -> None:
    plan = short_and_long_texts()
    is_list = plan.sources[0].layout.index.categories[1]
    meter = ShareMeter(plan)
    for step in range(steps):
        rows = [tuple(part for part in row.slices if not is_list[part.sample] or part.sample % 16 < kept) for row in plan.batch(step)]
        meter.add(Row(slices) for slices in rows if slices)
    assert meter.report()["off"] == ["text/facts", "text/lists"]


def test_a_state_of_another_mixture_is_refused() -> None:
    with pytest.raises(DataError, match="a changed mixture is a new stage"):
        fake_plan().go_to(fake_plan(unit="samples").state(3))


def test_a_batch_of_samples_is_that_many_samples(corpus: str) -> None:
    stage = next(stage for stage in mm1_5_tiny().stages if stage.name == "sft")
    assert stage.batch.unit == "samples"
    plan = open_data(stage, data=corpus).plan
    assert all(sum(len(row.slices) for row in plan.batch(step)) == stage.batch.size for step in range(5))


def stage_of(corpus: str) -> StagePlan:
    return mm1_tiny().stages[0]


def test_what_the_plan_cannot_open_is_said_with_what_to_do(corpus: str) -> None:
    stage = stage_of(corpus)
    with pytest.raises(DataError, match="no --data URI was given"):
        open_data(stage)
    small = replace(stage, model=replace(stage.model, decoder=replace(stage.model.decoder, vocab_size=300)))
    with pytest.raises(DataError, match=r"has 520 tokens and the model's vocabulary 308"):
        open_data(small, data=corpus)
    pinned = replace(stage, data=replace(stage.data, datasets=tuple(replace(d, fingerprint="0" * 64) for d in stage.data.datasets)))
    with pytest.raises(DataError, match="the dataset was replaced since"):
        open_data(pinned, data=corpus)
    with pytest.raises(DataError, match="make a corpus with `stagecoach data make"):
        open_data(stage, data="memory://nothing-here")
