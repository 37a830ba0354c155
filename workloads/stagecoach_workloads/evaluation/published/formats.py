"""The ten published benchmarks that can be read, and how each of their rows becomes a question.

Field names are those of the files as the public evaluator lmms-eval reads them (github.com/EvolvingLMMs-Lab/lmms-eval, `lmms_eval/tasks/
{coco_cap,textcaps,vqav2,textvqa,scienceqa,mmmu,chartqa,docvqa,refcoco,nextqa}/utils*.py`, parquet files of the Hugging Face hub), and of
the benchmarks' own downloads where those are JSON or CSV. Rows without an answer (test splits) cannot be scored and are left out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from stagecoach.errors import DataError
from stagecoach.storage import Store, open_store
from stagecoach_workloads.evaluation.published import captions, choices, questions
from stagecoach_workloads.evaluation.published.folder import Folder, Reader, evaluation_split
from stagecoach_workloads.evaluation.published.shots import ShotPool
from stagecoach_workloads.evaluation.question import Question
from stagecoach_workloads.evaluation.suite import Suite, limited

READERS: dict[str, Reader] = {
    "coco_captions": captions.coco,
    "textcaps": captions.textcaps,
    "vqav2": questions.vqav2,
    "textvqa": questions.textvqa,
    "docvqa": questions.docvqa,
    "chartqa": questions.chartqa,
    "refcoco": questions.refcoco,
    "scienceqa": choices.scienceqa,
    "mmmu": choices.mmmu,
    "nextqa": choices.nextqa,
}


@dataclass
class PublishedSuite:
    """Questions of one benchmark; shots from its training files, else from the others it could ask. Those of several evaluation splits
    are several categories, ids and groups (`refcoco_testa`): a benchmark tells them one by one."""

    name: str
    folder: Folder
    seed: int
    limit: int | None
    _others: ShotPool = field(init=False)
    _trained: ShotPool | None = None  # read when the first shot is wanted
    _categories: dict[str, str] = field(default_factory=dict)  # with its split's name -> as it was read
    _ids: dict[str, str] = field(default_factory=dict)  # likewise
    _groups: dict[str, list[str]] = field(default_factory=dict)  # categories by the benchmark's name with their split's

    def build(self) -> Suite:
        """Raises DataError when no row can be asked."""
        found, splits = [], []
        for question in self.questions(train=False):
            found.append(question)
            splits.append(evaluation_split(self.folder.reading))
        if not found:
            raise self.nothing_to_ask()
        self._others = ShotPool(found)
        apart = len(set(splits)) > 1
        told = [self._in_split(question, split if apart else "") for question, split in zip(found, splits, strict=True)]
        groups = {name: tuple(categories) for name, categories in self._groups.items()}
        return Suite(name=self.name, questions=limited(told, self.limit), ask=self.ask, groups=groups, splits_apart=apart)

    def _in_split(self, question: Question, split: str) -> Question:
        """Ids too: two splits may use the same ones."""
        told = replace(question, id=_with(question.id, split), category=_with(question.category, split)) if split else question
        self._categories[told.category], self._ids[told.id] = question.category, question.id
        group = self._groups.setdefault(_with(self.name, split), [])
        if told.category not in group:
            group.append(told.category)
        return told

    def _as_read(self, question: Question) -> Question:
        return replace(question, id=self._ids[question.id], category=self._categories[question.category])

    def questions(self, *, train: bool) -> Iterator[Question]:
        """One by one, as files are read. Raises DataError also for a value that is not of its field's kind: trying again would not make
        it one."""
        read = 0
        try:
            for question in READERS[self.name](self.folder, train=train):
                yield question
                read += 1
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.folder.store.uri}: what follows the first {read:,} questions is not as {self.name} has it "
                f"({type(error).__name__}: {error}; {self.folder.looked_at})"
            ) from None

    def nothing_to_ask(self) -> DataError:
        return DataError(f"{self.folder.store.uri}: no row of {self.name} with an answer ({self.folder.looked_at}); a test split has none")

    def ask(self, question: Question, shots: int) -> tuple[Question, Sequence[Question]]:
        """The question and shots of its category where the training files have that."""
        if not shots:
            return question, ()
        if self._trained is None:
            self._trained = ShotPool(list(self.questions(train=True)))
        pool = self._trained if self._trained.questions else self._others
        return question, pool.draw(self.seed, self._as_read(question), shots)


def _with(name: str, split: str) -> str:
    return f"{name}_{split}" if split else name


def published_suite(name: str, store: Store, *, seed: int, limit: int | None, beat: Callable[[], None] = lambda: None) -> Suite:
    """The benchmark `name` from the files below `store`. `beat` is called while they are read, also when the first shot is wanted."""
    return PublishedSuite(name, Folder(store, beat), seed, limit).build()


def check_first_question(name: str, uri: str) -> None:
    """Reads as far as the first question, before a job is asked for. Raises DataError for files that are not the benchmark's."""
    suite = PublishedSuite(name, Folder(open_store(uri)), seed=0, limit=1)
    if next(suite.questions(train=False), None) is None:
        raise suite.nothing_to_ask()
