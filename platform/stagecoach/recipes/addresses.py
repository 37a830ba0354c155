"""Addresses in a plan: refused here, where they are typed, and not first inside a job that opens them."""

from collections.abc import Iterator

from stagecoach.contract.plan import Parent, Pretrained, StagePlan
from stagecoach.errors import ConfigError
from stagecoach.storage import UriPolicy, UriRefused
from stagecoach.storage.uris import SCHEMES

WEIGHTS = UriPolicy(schemes=(*SCHEMES, "hf"))  # hf://name is a Hugging Face folder that an image or a bucket mirrors
DATA = UriPolicy()


def check_addresses(stage: StagePlan) -> None:
    """Raises ConfigError for a scheme that executes or reaches too far, and for credentials: a plan is stored, hashed and printed."""
    for path, uri, policy in addresses(stage):
        try:
            policy.check(uri)
        except UriRefused as refused:
            raise ConfigError(f"`{stage.name}.{path}` = {refused}") from None


def addresses(stage: StagePlan) -> Iterator[tuple[str, str, UriPolicy]]:
    """(path below the stage, URI, what it may be) of everything that a run of the stage would open."""
    if isinstance(stage.init, Pretrained):
        for part in ("encoder", "decoder"):
            uri = getattr(stage.init, part)
            if uri is not None and "://" in uri:  # weights may also lie at a plain local path
                yield f"init.{part}", uri, WEIGHTS
    if isinstance(stage.init, Parent) and stage.init.checkpoint is not None:
        yield "init.checkpoint", stage.init.checkpoint, DATA
    for dataset in stage.data.datasets:
        for key in ("uri", "validation_uri"):
            if (uri := getattr(dataset, key)) is not None:
                yield f"data.datasets.{dataset.name}.{key}", uri, DATA
    if stage.data.tokenizer is not None:
        yield "data.tokenizer", stage.data.tokenizer, DATA
