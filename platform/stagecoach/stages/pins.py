"""From a recipe's stage to one that names its data: URIs, fingerprints, measured counts, and a number of steps.

Done before anything is written: what is missing, damaged or too small is told to the person who asked, not to a job.
"""

import hashlib
from dataclasses import replace

from stagecoach.contract.dataset import DatasetManifest, read_corpus, read_manifest
from stagecoach.contract.plan import DatasetRef, Pretrained, StagePlan, Steps
from stagecoach.costs.load import stage_steps
from stagecoach.errors import ConfigError, DataError
from stagecoach.storage import NotFound, open_store


def pin_data(plan: StagePlan, corpus_uri: str | None) -> StagePlan:
    """The plan with every drawn dataset pinned (URI, fingerprint, counts), the tokenizer too, and its duration in steps.

    `corpus_uri` is the root of a made corpus (`--data`); addresses that stand in the plan win over it. Raises ConfigError that names what
    has no address, is not there or is damaged; StorageError when the bucket does not answer.
    """
    train, validation, tokenizer = _addresses(corpus_uri)
    drawn = {weight.dataset for weight in plan.data.mixture.weights if weight.weight > 0}
    datasets = tuple(
        _pinned(plan, dataset, train, validation, corpus_uri) if dataset.name in drawn else dataset for dataset in plan.data.datasets
    )
    tokenizer_uri = plan.data.tokenizer or tokenizer or _beside_decoder(plan)
    if tokenizer_uri is None:
        raise ConfigError(
            f"{plan.name}.data.tokenizer is not set, and neither a made corpus (--data) nor a pre-trained decoder brings one; "
            f"give the URI of a tokenizer.json with --set {plan.name}.data.tokenizer=URI"
        )
    data = replace(plan.data, datasets=datasets, tokenizer=tokenizer_uri, tokenizer_fingerprint=_fingerprint(plan, tokenizer_uri))
    pinned = replace(plan, data=data)
    return replace(pinned, duration=Steps(steps=stage_steps(pinned)))


def data_fingerprint(plan: StagePlan) -> str:
    """SHA-256 over names and fingerprints of the plan's pinned datasets."""
    lines = [f"{dataset.name} {dataset.fingerprint}" for dataset in plan.data.datasets if dataset.fingerprint is not None]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _addresses(corpus_uri: str | None) -> tuple[dict[str, str], dict[str, str], str | None]:
    """(training split, validation split, tokenizer) of a made corpus, by URI."""
    if corpus_uri is None:
        return {}, {}, None
    store = open_store(corpus_uri)
    try:
        corpus = read_corpus(store)
    except DataError as error:
        raise ConfigError(f"--data: {error}") from None
    train = {name: store.uri_of(folder) for name, folder in corpus.datasets.items()}
    validation = {name: store.uri_of(folder) for name, folder in corpus.validation.items()}
    return train, validation, store.uri_of(corpus.tokenizer)


def _pinned(plan: StagePlan, dataset: DatasetRef, train: dict[str, str], validation: dict[str, str], corpus_uri: str | None) -> DatasetRef:
    path = f"{plan.name}.data.datasets.{dataset.name}"
    uri = dataset.uri or train.get(dataset.name)
    if uri is None:
        there = f"{corpus_uri} has {', '.join(sorted(train))}" if corpus_uri else "no --data URI was given"
        raise ConfigError(f"{path}.uri: nothing says where this dataset lies ({there}); give --data URI, or --set {path}.uri=URI")
    manifest = _manifest(f"{path}.uri", uri, dataset.fingerprint)
    held_out = dataset.validation_uri or (None if dataset.uri else validation.get(dataset.name))
    if held_out is not None:
        _manifest(f"{path}.validation_uri", held_out, None)
    stats = replace(dataset.stats, samples=max(1, manifest.counts.samples))
    return replace(dataset, uri=uri, fingerprint=manifest.fingerprint, validation_uri=held_out, stats=stats)


def _manifest(path: str, uri: str, fingerprint: str | None) -> DatasetManifest:
    try:
        return read_manifest(open_store(uri), expected_fingerprint=fingerprint)
    except DataError as error:
        raise ConfigError(f"{path}: {error}") from None


def _beside_decoder(plan: StagePlan) -> str | None:
    """A Hugging Face folder has its tokenizer.json beside the weights."""
    if isinstance(plan.init, Pretrained) and plan.init.decoder and "://" in plan.init.decoder:
        return f"{plan.init.decoder.rstrip('/')}/tokenizer.json"
    return None


def _fingerprint(plan: StagePlan, uri: str) -> str:
    """SHA-256 of the tokenizer.json. Raises ConfigError when it is not there, or is another than the one that was pinned."""
    folder, _, key = uri.rpartition("/")
    try:
        found = hashlib.sha256(open_store(folder).read(key)).hexdigest()
    except NotFound:
        raise ConfigError(f"{plan.name}.data.tokenizer: there is no object {uri}; give the URI of a tokenizer.json") from None
    if plan.data.tokenizer_fingerprint not in (None, found):
        raise ConfigError(
            f"{plan.name}.data.tokenizer: {uri} has digest {found[:16]}, and {str(plan.data.tokenizer_fingerprint)[:16]} was pinned: "
            "it was replaced since; point at the one the run started with"
        )
    return found
