"""`stagecoach data make`: every dataset of the made corpus, its tokenizer, and `corpus.json`, which is written last.

{root}/{dataset}/{split}/   datasets
{root}/tokenizer.json       a small BPE trained on the corpus
{root}/corpus.json          which dataset stands where; chance and image-blind optimum of every category
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from stagecoach import __version__
from stagecoach.contract.dataset import CORPUS_KEY, Baseline, Corpus, read_corpus
from stagecoach.contract.records import encode
from stagecoach.errors import ConfigError, DataError
from stagecoach.storage import Store, open_store
from stagecoach_workloads.data.made import pages, scenes, sequences
from stagecoach_workloads.data.made.draw import Brush
from stagecoach_workloads.data.made.level import PROFILES, SPLITS, Level, Profile, stream
from stagecoach_workloads.data.made.task import Case, Task, baselines, boxes_of
from stagecoach_workloads.data.samples import Sample
from stagecoach_workloads.data.writer import WriteSettings, spawn_pool, write_dataset

TOKENIZER_KEY = "tokenizer.json"

# name: (kind, tasks). The names are those that the miniatures' mixtures use.
DATASETS: dict[str, tuple[str, tuple[type[Task], ...]]] = {
    "captions": ("pairs", (scenes.Caption,)),
    "captions_synthetic": ("pairs", (scenes.LongCaption,)),
    "interleaved": ("interleaved", (sequences.FewShot, sequences.FewShot, sequences.Story)),
    "text": ("text", (sequences.Facts, sequences.Lists)),
    "ocr_pages": ("pairs", (pages.Page, pages.TablePage)),
    "sft_general": ("conversation", (scenes.Colour, scenes.Shape, scenes.Exists, scenes.Count, scenes.Where)),
    "sft_text_rich": ("conversation", (pages.Sign, pages.Chart, pages.Table, pages.Form)),
    "sft_refer_ground": ("conversation", (scenes.Ground, scenes.Refer)),
    "sft_science": ("conversation", (scenes.Sides, scenes.Mix)),
    "sft_math": ("conversation", (pages.Sum, scenes.Difference)),
    "sft_code": ("conversation", (pages.Program,)),
    "sft_multi_image": ("conversation", (scenes.Same, scenes.More, scenes.Odd)),
    "sft_text": ("conversation", (sequences.TextSum, sequences.Repeat)),
    "video": ("video", (sequences.Direction, sequences.Mover, sequences.Order)),
    "ui": ("conversation", (pages.FindWidget, pages.NameWidget, pages.TapWidget)),
    "preference": ("preference", (sequences.Preference,)),
    "safety": ("conversation", (pages.Danger, pages.DangerousRequest)),
}


@dataclass(frozen=True)
class MakeJob:
    """Samples of one dataset and split; unit u makes `profile.unit` of them. Sample n depends on (seed, dataset, split, n) alone."""

    profile_name: str
    dataset: str
    split: str
    seed: int

    @property
    def profile(self) -> Profile:
        return PROFILES[self.profile_name]

    @property
    def samples(self) -> int:
        if self.split == "train":
            return self.profile.train
        tested = self.profile.tested * len(DATASETS[self.dataset][1]) if self.split == "test" else 0
        return max(self.profile.held_out, tested)

    @property
    def units(self) -> int:
        return -(-self.samples // self.profile.unit)

    def __call__(self, unit: int) -> Iterator[Sample]:
        first = unit * self.profile.unit
        for number in range(first, min(first + self.profile.unit, self.samples)):
            yield self.sample(number)

    def sample(self, number: int) -> Sample:
        """Draws sample `number`."""
        rng = stream(self.seed, self.dataset, self.split, number)
        kind, tasks = DATASETS[self.dataset]
        task_type = tasks[number % len(tasks)]
        task, level = task_type(), self.profile.level
        case = rng.choice(cases_of(task_type, level, self.split))
        made = task.build(case, Brush(level, self.split, rng))
        quality = None if task.lossless and self.profile_name != "bench" else level.quality
        extra: dict[str, Any] = {"question": case.question, "answer": task.answer(case), "boxes": boxes_of(made.pictures), **made.extra}
        if kind == "video":
            extra["times"] = [round(n * 0.25, 2) for n in range(len(made.pictures))]
        return Sample(
            key=f"{self.dataset}-{number:07d}",
            kind=kind,
            category=task.category,
            turns=made.turns,
            images=tuple(picture.encoded(quality=quality) for picture in made.pictures),
            extra=extra,
        )


_CASES: dict[tuple[type[Task], Level, str], Sequence[Case]] = {}


def cases_of(task: type[Task], level: Level, split: str) -> Sequence[Case]:
    """A task's cases, listed once a process."""
    if (task, level, split) not in _CASES:
        _CASES[task, level, split] = task().cases(level, split)
    return _CASES[task, level, split]


def corpus_baselines(level: Level, split: str) -> dict[str, dict[str, Baseline]]:
    """Chance and image-blind optimum of every category, exact."""
    return {
        name: {task.category: Baseline(metric=task.metric, **baselines(cases_of(task, level, split))) for task in tasks}
        for name, (_, tasks) in DATASETS.items()
    }


def make_corpus(
    uri: str,
    *,
    profile: str = "tiny",
    seed: int = 0,
    workers: int = 1,
    only: Sequence[str] = (),
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Corpus:
    """Makes (or finishes) the corpus at `uri`. Raises ConfigError for an unknown profile or dataset, or when another stands there."""
    names = _names(profile, only)
    store = open_store(uri)
    wanted = _corpus(profile, seed, names)
    _check_free(store, wanted)
    with spawn_pool(workers) if workers > 1 else nullcontext() as pool:
        for name in names:
            for split in SPLITS:
                _make_dataset(store.child(f"{name}/{split}"), MakeJob(profile, name, split, seed), pool, on_progress)
    from stagecoach_workloads.data.tokens import count_corpus_tokens, train_corpus_tokenizer

    train_corpus_tokenizer(store, wanted)
    count_corpus_tokens(store, wanted)
    store.publish(CORPUS_KEY, encode(wanted))
    return wanted


def _make_dataset(store: Store, job: MakeJob, pool: Executor | None, on_progress: Callable[[str, int, int], None] | None) -> None:
    version = 2 if job.profile.level.open_vocabulary else 4  # of what is drawn
    settings = WriteSettings(
        kind=DATASETS[job.dataset][0],
        recipe={"made": job.dataset, "split": job.split, "profile": job.profile_name, "seed": job.seed, "version": version},
        licence="Apache-2.0",
        made_by=f"stagecoach data make {__version__}",
    )

    def report(done: int, units: int) -> None:
        if on_progress:
            on_progress(f"{job.dataset}/{job.split}", done, units)

    write_dataset(store, settings, units=job.units, job=job, on_unit=report, pool=pool)


def _names(profile: str, only: Sequence[str]) -> list[str]:
    if profile not in PROFILES:
        raise ConfigError(f"--profile {profile}: no such profile; there are {', '.join(PROFILES)}")
    unknown = sorted(set(only) - set(DATASETS))
    if unknown:
        raise ConfigError(f"--only {unknown[0]}: no such dataset; there are {', '.join(DATASETS)}")
    return [name for name in DATASETS if not only or name in only]


def _corpus(profile: str, seed: int, names: Sequence[str]) -> Corpus:
    folders = {split: {name: f"{name}/{split}" for name in names} for split in SPLITS}
    known = corpus_baselines(PROFILES[profile].level, "test")
    return Corpus(
        profile=profile,
        seed=seed,
        datasets=folders["train"],
        validation=folders["validation"],
        test=folders["test"],
        tokenizer=TOKENIZER_KEY,
        baselines={name: known[name] for name in names},
    )


def _check_free(store: Store, wanted: Corpus) -> None:
    try:
        found = read_corpus(store)
    except DataError:
        return
    if found != wanted:
        what = f"profile {found.profile}, seed {found.seed}, the datasets {', '.join(found.datasets)}"
        raise ConfigError(f"{store.uri}: another made corpus stands here ({what}); ask for the same (--only too), or choose another URI")
