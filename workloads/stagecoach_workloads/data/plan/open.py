"""From a stage plan and the datasets' URIs to an open `DataPlan`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from stagecoach.contract.dataset import read_corpus
from stagecoach.contract.plan import StagePlan
from stagecoach.errors import DataError
from stagecoach.storage import Store, UriPolicy, open_store
from stagecoach.storage.errors import NotFound
from stagecoach_workloads.data.dataset import Dataset, open_dataset
from stagecoach_workloads.data.plan.layout import Layout, LayoutSettings
from stagecoach_workloads.data.plan.plan import DataPlan
from stagecoach_workloads.data.plan.source import Source
from stagecoach_workloads.data.plan.states import load_state_table, states_key
from stagecoach_workloads.data.tokens import TextTokenizer, read_counts


@dataclass(frozen=True)
class OpenData:
    """The plan, and what the work needs to carry it out: datasets and layouts in the order of the plan's sources."""

    plan: DataPlan
    datasets: list[Dataset]
    layouts: list[Layout]
    tokenizer: TextTokenizer
    stage: StagePlan


def locate(stage: StagePlan, corpus_uri: str | None, *, split: str = "train") -> tuple[dict[str, str], str | None]:
    """(dataset URI by name, tokenizer URI) of the stage's mixture: those pinned in the plan, else the corpus' own.

    Raises DataError that names what has no address.
    """
    wanted = [weight.dataset for weight in stage.data.mixture.weights if weight.weight > 0]
    where = {"train": "uri", "validation": "validation_uri"}.get(split, "")
    pinned = {dataset.name: uri for dataset in stage.data.datasets if (uri := getattr(dataset, where, None))}
    found: dict[str, str] = {}
    tokenizer = stage.data.tokenizer
    if corpus_uri:
        store = open_store(corpus_uri)
        corpus = read_corpus(store)
        folders: Mapping[str, str] = {"train": corpus.datasets, "validation": corpus.validation, "test": corpus.test}[split]
        found = {name: store.uri_of(folder) for name, folder in folders.items()}
        tokenizer = tokenizer or store.uri_of(corpus.tokenizer)
    found |= pinned
    missing = [name for name in wanted if name not in found]
    if missing:
        there = f"{corpus_uri} has {', '.join(sorted(found))}" if corpus_uri else "no --data URI was given"
        raise DataError(
            f"data.mixture names `{missing[0]}` and nothing says where it is: {there}; give --data, or data.datasets.{missing[0]}.uri"
        )
    return {name: found[name] for name in wanted}, tokenizer


def open_data(
    stage: StagePlan,
    *,
    data: str | None = None,
    split: str = "train",
    policy: UriPolicy | None = None,
    fingerprints: bool = True,
    states: Store | None = None,
) -> OpenData:
    """Opens indexes, token counts and the plan. `data` is the root of a made corpus. Pinned fingerprints must match (training split).

    `states` is the job's store: the table of states that `write_state_table` keeps there is taken up, so any step in it is reached at once.

    Raises DataError for data that is missing, damaged, replaced, not counted, or does not fit the model.
    """
    uris, tokenizer_uri = locate(stage, data, split=split)
    if tokenizer_uri is None:
        raise DataError("data.tokenizer is not set and no made corpus brings one; set it to the URI of a tokenizer.json")
    tokenizer = read_tokenizer(tokenizer_uri)
    tokenizer.check_fits(stage.model.decoder.vocab_size + stage.model.decoder.added_tokens)
    settings = LayoutSettings(
        image=stage.model.image,
        tokens_per_tile=stage.model.connector.tokens,
        frames=stage.data.frames,
        indicator_length=indicator_length(tokenizer),
    )
    pins = {d.name: d.fingerprint for d in stage.data.datasets} if fingerprints and split == "train" else {}
    datasets, layouts, sources = [], [], []
    for name, uri in uris.items():
        dataset = open_dataset(uri, fingerprint=pins.get(name), policy=policy)
        layout = Layout(dataset.index, read_counts(dataset, tokenizer, stage.data.template), settings, kind=dataset.manifest.kind)
        sources.append(
            Source(
                name,
                layout,
                seed=stage.seed,
                fingerprint=dataset.manifest.fingerprint,
                shuffle_blocks=stage.data.packing.shuffle_blocks,
            )
        )
        datasets.append(dataset)
        layouts.append(layout)
    plan = DataPlan(
        sources,
        mixture=stage.data.mixture,
        packing=stage.data.packing,
        batch=stage.batch,
        seed=stage.seed,
        microbatch_rows=stage.layout.microbatch_rows,
    )
    if states is not None:
        load_state_table(states, states_key(stage.name), plan)
    return OpenData(plan, datasets, layouts, tokenizer, stage)


def read_tokenizer(uri: str) -> TextTokenizer:
    """Raises DataError when it is missing or no tokenizer.json."""
    folder, _, key = uri.rpartition("/")
    store: Store = open_store(folder)
    try:
        return TextTokenizer(store.read(key), source=uri)
    except NotFound:
        raise DataError(f"{uri}: no tokenizer there (data.tokenizer); give the URI of a tokenizer.json") from None


def indicator_length(tokenizer: TextTokenizer) -> Callable[[str], int]:
    """Token counts of tile indicators."""
    return lru_cache(maxsize=4096)(lambda text: len(tokenizer.encode(text)) if text else 0)
