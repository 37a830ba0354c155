"""The work: tensors that follow the plan, loss on answers only, bad samples as padding, caches that verify."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stagecoach.contract.plan import StagePlan
from stagecoach.errors import DataError
from stagecoach.recipes.tiny import blip3_tiny, mm1_5_tiny, mm1_tiny
from stagecoach.storage import open_store
from stagecoach_workloads.data.plan.open import OpenData, open_data
from stagecoach_workloads.data.samples import Sample, SampleError, Turn, from_json, image
from stagecoach_workloads.data.tar import ShardError, header, read_members
from stagecoach_workloads.data.tokens import TextTokenizer
from stagecoach_workloads.data.work.cache import BlockCache
from stagecoach_workloads.data.work.collate import IGNORE_INDEX, BadSample
from stagecoach_workloads.data.work.fetch import Fetcher, FetchSettings, Origin
from stagecoach_workloads.data.work.loader import LoadedStep, StepLoader, WorkSettings
from stagecoach_workloads.data.work.quarantine import QuarantineBudget, quarantine_lines
from stagecoach_workloads.data.work.tasks import TaskMaker
from stagecoach_workloads.models.join import check_placeholders, check_slots

STAGES = [(pipeline.name, stage) for pipeline in (mm1_tiny(), mm1_5_tiny(), blip3_tiny()) for stage in pipeline.stages]
HERE = WorkSettings(workers=0)


def stage(recipe: str, name: str) -> StagePlan:
    return next(found for pipeline, found in STAGES if (pipeline, found.name) == (recipe, name))


def steps(data: OpenData, stop: int) -> Iterator[LoadedStep]:
    return iter(StepLoader(data, stop=stop, settings=HERE))


@pytest.mark.parametrize("number", range(len(STAGES)), ids=[f"{recipe}-{found.name}" for recipe, found in STAGES])
def test_every_miniature_stage_gets_batches_that_the_model_takes(number: int, corpus: str) -> None:
    plan = STAGES[number][1]
    data = open_data(plan, data=corpus)
    for step in steps(data, 3):
        assert step.bad == []
        for batch in step.batches:
            rows, length = batch.tokens_BT.shape
            check_slots(
                batch.image_slots, num_images=batch.num_images, tokens_per_image=plan.model.connector.tokens, rows=rows, length=length
            )
            check_placeholders(batch.tokens_BT, batch.image_slots, image_token=data.tokenizer.image_id)
            assert length == plan.batch.seq_len
            assert all(
                pixels.dtype == torch.uint8 and pixels.shape[1:] == (3, plan.model.image.size, plan.model.image.size)
                for pixels in batch.pixel_values
            )
            assert batch.num_targets == int((batch.labels_BT != IGNORE_INDEX).sum()) > 0
            assert len(batch.image_regions) == batch.num_images
            assert (batch.labels_BT[batch.document_ids_BT < 0] == IGNORE_INDEX).all()
            assert not torch.isin(batch.labels_BT, torch.tensor([data.tokenizer.image_id])).any()


def test_labels_are_the_answers_shifted_by_one_inside_their_document(corpus: str) -> None:
    data = open_data(stage("blip3_tiny", "sft"), data=corpus)
    batch = next(steps(data, 1)).batches[0]
    for row in range(len(batch.tokens_BT)):
        for document in range(int(batch.document_ids_BT[row].max()) + 1):
            mine = batch.document_ids_BT[row] == document
            tokens, labels, positions = batch.tokens_BT[row][mine], batch.labels_BT[row][mine], batch.positions_BT[row][mine]
            assert positions.tolist() == list(range(len(tokens)))
            assert labels[-1] == IGNORE_INDEX
            targets = labels[:-1] != IGNORE_INDEX
            assert (labels[:-1][targets] == tokens[1:][targets]).all()
            answer = data.tokenizer.inner.decode(labels[labels >= 0].tolist(), skip_special_tokens=False)
            text = data.tokenizer.inner.decode(tokens.tolist(), skip_special_tokens=False)
            assert text.split("<|assistant|>\n")[-1] == answer  # nothing but what the assistant says


def test_a_preference_pair_is_two_documents_with_one_prompt(corpus: str) -> None:
    data = open_data(stage("blip3_tiny", "dpo"), data=corpus)
    batch = next(steps(data, 1)).batches[0]
    assert len(batch.pairs_P3)
    for row, chosen, rejected in batch.pairs_P3.tolist():
        texts = [
            data.tokenizer.inner.decode(batch.tokens_BT[row][batch.document_ids_BT[row] == n].tolist(), skip_special_tokens=False)
            for n in (chosen, rejected)
        ]
        prompts, answers = zip(*(text.split("<|assistant|>") for text in texts), strict=True)
        assert prompts[0] == prompts[1]
        assert answers[0] != answers[1]


def test_a_damaged_sample_becomes_padding_of_its_size_and_nothing_else_moves(tmp_path: Path, corpus: str) -> None:
    folder = tmp_path / "corpus"
    os.system(f"cp -r {corpus.removeprefix('file://')} {folder}")
    plan = stage("mm1_tiny", "pretrain")
    good = list(steps(open_data(plan, data=corpus), 4))
    data = open_data(plan, data=f"file://{folder}")
    victims = {}
    for place, dataset in enumerate(data.datasets):
        if data.plan.sources[place].name == "captions":
            for number in range(0, len(dataset), 10):
                row = dataset.index.row(number)
                path = folder / "captions/train" / dataset.manifest.shards[row.shard].key
                body = bytearray(path.read_bytes())
                body[row.offset + row.length // 2] ^= 1
                path.write_bytes(body)
                victims[f"captions/{row.key}"] = number
    damaged = list(steps(data, 4))
    bad = [line for step in damaged for line in step.bad]
    assert bad
    assert {line.sample for line in bad} <= set(victims)
    for before, after in zip(good, damaged, strict=True):
        for one, other in zip(before.batches, after.batches, strict=True):
            assert one.sample_ids == other.sample_ids
            same = other.document_ids_BT >= 0
            assert (one.tokens_BT[same] == other.tokens_BT[same]).all()
            assert (other.labels_BT[~same] == IGNORE_INDEX).all()
    lines = [json.loads(line) for line in quarantine_lines(bad).splitlines()]
    assert all(line["reason"].count("damaged") and line["sample"] in victims for line in lines)


def test_over_the_budget_every_rank_stops_with_the_list() -> None:
    ranks = [QuarantineBudget(share=0.01) for _ in range(2)]
    lines = [BadSample(8, "captions/x", "its bytes do not have the checksum")]
    for budget in ranks:
        budget.add(bad=3, seen=300, step=7)
        with pytest.raises(DataError, match=r"step 8: 5 of 400 samples are bad.*captions/x: its bytes"):
            budget.add(bad=2, seen=100, step=8, lines=lines)
    assert ranks[0].state() == {"bad": 5, "seen": 400}
    assert DataError.exit_code == 41


def test_the_list_of_bad_samples_says_how_many_it_leaves_out_and_where_they_are_without_one() -> None:
    lines = [BadSample(8, f"captions/{number}", "why") for number in range(23)]
    with pytest.raises(DataError, match=r"captions/19: why; and 3 more; run `stagecoach data verify`"):
        QuarantineBudget().add(bad=23, seen=100, step=8, lines=lines)
    with pytest.raises(DataError, match=r"the `quarantined` events of all ranks name them"):
        QuarantineBudget().add(bad=23, seen=100, step=8)


def test_token_counts_of_another_tokenizer_stop_the_run(corpus: str) -> None:
    plan = stage("mm1_tiny", "sft")
    data = open_data(plan, data=corpus)
    other = data.tokenizer.body.replace(b'"version"', b'"version" ')
    with pytest.raises(DataError, match=r"data index .* --template llava"):
        _reopen_with(other, corpus, plan)
    with pytest.raises(DataError, match="not a tokenizer.json that can be read"):
        TextTokenizer(b"{}")


def test_a_token_id_past_the_vocabulary_is_told_with_the_sample(corpus: str) -> None:
    """A tokenizer that is too large is refused before; what a template adds, or a stage that was edited, is found here."""
    data = open_data(stage("mm1_tiny", "sft"), data=corpus)
    work = StepLoader(data, settings=HERE).work
    collator = work.parts()[1]
    collator.settings = replace(collator.settings, vocabulary=300)
    rows = data.plan.batch(0)
    task = TaskMaker(data.datasets, data.layouts).tasks(0, rows, [[0]])[0]
    first = task.rows[0][0]
    label = f"{data.plan.sources[first.source].name}/{first.stretch.key}"
    with pytest.raises(DataError, match=rf"^{label}: token id \d{{3}} with a vocabulary of 300 \(model\.decoder\)$"):
        work.batch(task)


def _reopen_with(body: bytes, corpus: str, plan: StagePlan) -> None:
    open_store("memory://tokenizers").publish("t.json", body)
    open_data(replace(plan, data=replace(plan.data, tokenizer="memory://tokenizers/t.json")), data=corpus)


def test_blocks_are_read_once_and_hold_what_ranges_hold(corpus: str, tmp_path: Path) -> None:
    data = open_data(stage("mm1_tiny", "sft"), data=corpus)
    rows = data.plan.batch(0)
    task = TaskMaker(data.datasets, data.layouts).tasks(0, rows, [list(range(len(rows)))])[0]
    documents = [document for row in task.rows for document in row]
    origins = [Origin(dataset.store, dataset.manifest.fingerprint) for dataset in data.datasets]
    exact = Fetcher(origins, FetchSettings(read="ranges"))
    cached = FetchSettings(read="blocks", cache_folder=str(tmp_path))
    blocks, again = Fetcher(origins, cached), Fetcher(origins, cached)
    bodies = exact.fetch(documents)
    assert bodies == blocks.fetch(documents) == blocks.fetch(documents) == again.fetch(documents)
    distinct = {(document.source, document.stretch.shard, document.block[0]) for document in documents}
    assert blocks.counts.requests == len(distinct) < len(documents)
    assert (again.counts.requests, again.counts.cache_hits) == (0, len(distinct))
    for fetcher in (exact, blocks, again):
        fetcher.close()


def test_blocks_in_memory_stay_within_their_bound_and_what_went_is_read_again(corpus: str) -> None:
    data = open_data(stage("mm1_tiny", "sft"), data=corpus)
    maker = TaskMaker(data.datasets, data.layouts)
    documents = []
    for step in range(6):
        rows = data.plan.batch(step)
        documents += [document for row in maker.tasks(step, rows, [list(range(len(rows)))])[0].rows for document in row]
    origins = [Origin(dataset.store, dataset.manifest.fingerprint) for dataset in data.datasets]
    blocks = {(document.source, document.stretch.shard, document.block[0]): document.block[1] for document in documents}
    bound = max(blocks.values()) + 1
    assert len(blocks) > 1
    exact, tight = Fetcher(origins, FetchSettings(read="ranges")), Fetcher(origins, FetchSettings(read="blocks", memory_bytes=bound))
    for document in documents:  # one by one, so that what is needed never stands in the way
        assert tight.fetch([document]) == exact.fetch([document])
        assert sum(len(future.result()) for future in tight._blocks.values()) <= bound
    assert tight.counts.requests > len(blocks)
    for fetcher in (exact, tight):
        fetcher.close()


def test_the_cache_discards_what_does_not_verify_and_stays_bounded(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, max_bytes=10_000)
    cache.write("block", b"x" * 500)
    path = tmp_path / "block"
    path.write_bytes(path.read_bytes()[:300])  # killed in the middle, as if renames were not atomic
    assert cache.read("block") is None
    assert not path.exists()
    for number in range(60):
        cache.write(f"b{number}", bytes([number]) * 900)
    assert sum(item.stat().st_size for item in tmp_path.iterdir()) <= 11_000
    assert cache.read("b59") == bytes([59]) * 900


def test_two_sound_cache_files_of_one_size_that_changed_places_are_read_again(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, max_bytes=10_000)
    for name in ("one", "other", "third"):
        cache.write(name, name[0].encode() * 500)
    os.rename(tmp_path / "one", tmp_path / "kept")
    os.rename(tmp_path / "other", tmp_path / "one")
    os.rename(tmp_path / "kept", tmp_path / "other")
    assert (cache.read("one"), cache.read("other"), cache.read("third")) == (None, None, b"t" * 500)
    cache.write("one", b"o" * 500)
    assert cache.read("one") == b"o" * 500


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\x1f\x8b" + bytes(100), "is gzip"),
        (b"no tar" * 200, "not a tar"),
        (header("a.json", 2) + b"{}" + bytes(510), "without the two zero blocks"),
        (header("a.json", 2) + b"{}" + bytes(510) + b"x" * 1024, "not a tar|no member follows|without the two"),
        (header("a.json", 9000) + b"{}" + bytes(510 + 1024), "truncated|damaged"),
        (header("../a.json", 2) + b"{}" + bytes(510 + 1024), "points out of the shard"),
        (header("/etc/a.json", 2) + b"{}" + bytes(510 + 1024), "points out of the shard"),
        (header("a.pkl", 2) + b"{}" + bytes(510 + 1024), "pickle"),
        (header("a.npy", 2) + b"{}" + bytes(510 + 1024), "pickle"),
    ],
)
def test_hostile_shards_are_refused(body: bytes, says: str) -> None:
    with pytest.raises(ShardError, match=says):
        list(read_members(body, shard="s.tar"))


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"6", b"S"])  # hard link, symlink, device, fifo, sparse
def test_links_devices_and_sparse_files_are_refused(kind: bytes) -> None:
    head = bytearray(header("a.json", 0))
    head[156:157] = kind
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    with pytest.raises(ShardError):
        list(read_members(bytes(head) + bytes(1024), shard="s.tar"))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"[1]", "not an object"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested deeper"),
        (
            b'{"kind":"pairs","turns":["' + b"x" * (5 << 20) + b'"]}',
            "bytes; at most 4,194,304 are read",
        ),
        (b'{"kind":"none"}', "kinds are"),
        (b'{"kind":"text","category":"c","turns":[{"role":"boss","content":[]}]}', "roles are"),
        (b'{"kind":"text","category":"c","turns":[{"role":"document","content":[{"image":3}, "t"]}]}', "shows image 3 and has 0"),
    ],
)
def test_hostile_sample_json_is_refused_with_the_limit(body: bytes, says: str) -> None:
    with pytest.raises(SampleError, match=says):
        from_json(body, key="k", images=())


def test_an_image_token_in_a_text_is_no_image(corpus: str) -> None:
    tokenizer = open_data(stage("mm1_tiny", "sft"), data=corpus).tokenizer
    sample = Sample(
        key="k",
        kind="conversation",
        category="c",
        turns=(Turn("user", (image(0), "what <image> is it?")), Turn("assistant", ("it",))),
        images=(b"",),
    )
    rendered = tokenizer.documents(sample, "llava")[0]
    assert len(rendered.images) == 1
    assert not any(tokenizer.image_id in run for run in rendered.runs)
