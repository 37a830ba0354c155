"""Which questions a suite's name stands for, and where they lie."""

from collections.abc import Callable
from dataclasses import replace

from stagecoach.contract.dataset import CORPUS_KEY, read_corpus
from stagecoach.contract.evaluation import MADE_SUITES, EvaluationSettings, check_suite
from stagecoach.contract.plan import StagePlan
from stagecoach.errors import ConfigError
from stagecoach.storage import open_store
from stagecoach_workloads.evaluation.made import MadeSplit, MadeSuite, datasets_of, made_suite, only_of
from stagecoach_workloads.evaluation.published.formats import published_suite
from stagecoach_workloads.evaluation.suite import Suite, shuffled_images


def open_suite(settings: EvaluationSettings, plan: StagePlan, *, beat: Callable[[], None] = lambda: None) -> Suite:
    """Reads the questions; `beat` is called between those of a benchmark, which may be very many. Raises ConfigError for a name that is no
    suite, and DataError for files that cannot be read."""
    check_suite(settings.suite)
    suite = _open_made(settings, plan) if settings.suite.partition("+")[0] in MADE_SUITES else _open_published(settings, beat)
    if not suite.questions:
        raise ConfigError(f"suite {settings.suite}: there is no question in {settings.data or 'the stage’s validation splits'}")
    if settings.shuffle_images:
        return replace(suite, questions=shuffled_images(suite.questions, seed=settings.seed, beat=beat))
    return suite


def _open_made(settings: EvaluationSettings, plan: StagePlan) -> Suite:
    """A made corpus: the one that is named, the one that the stage was trained on, else the stage's own validation splits."""
    root = settings.data or (plan.data.tokenizer or "").rpartition("/")[0]
    store = open_store(root) if root else None
    if store is not None and (settings.data is not None or store.exists(CORPUS_KEY)):
        return made_suite(store, read_corpus(store), settings.suite, seed=settings.seed, limit=settings.limit)
    held_out = {each.name: each for each in plan.data.datasets if each.validation_uri is not None}
    wanted = [name for name in datasets_of(settings.suite) if name in held_out]
    if not wanted:
        raise ConfigError(
            f"suite {settings.suite}: the stage has no validation split of {', '.join(datasets_of(settings.suite))}; give --data URI"
        )
    test = [MadeSplit(name, str(held_out[name].validation_uri)) for name in wanted]
    train = {name: MadeSplit(name, str(held_out[name].uri), held_out[name].fingerprint) for name in wanted if held_out[name].uri}
    return MadeSuite(settings.suite, test, train, settings.seed, settings.limit, only=only_of(settings.suite)).build()


def _open_published(settings: EvaluationSettings, beat: Callable[[], None]) -> Suite:
    if settings.data is None:
        raise ConfigError(
            f"suite {settings.suite} is a published benchmark and nothing is downloaded; give --data URI of the folder that holds its files"
        )
    return published_suite(settings.suite, open_store(settings.data), seed=settings.seed, limit=settings.limit, beat=beat)
