"""The ten published benchmarks that can be read, and how each of their rows becomes a question.

Field names are those of the files as the public evaluator lmms-eval reads them (github.com/EvolvingLMMs-Lab/lmms-eval, `lmms_eval/tasks/
{coco_cap,textcaps,vqav2,textvqa,scienceqa,mmmu,chartqa,docvqa,refcoco,nextqa}/utils*.py`, parquet files of the Hugging Face hub), and of
the benchmarks' own downloads where those are JSON or CSV. Rows without an answer (test splits) cannot be scored and are left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from stagecoach.errors import DataError
from stagecoach.storage import Store, open_store
from stagecoach_workloads.evaluation.published import captions, choices, questions
from stagecoach_workloads.evaluation.published.folder import Folder, Reader
from stagecoach_workloads.evaluation.question import Question
from stagecoach_workloads.evaluation.suite import Suite, draw, limited

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
    """Questions of one benchmark; shots from its training files, else from the others it asks."""

    name: str
    folder: Folder
    seed: int
    limit: int | None
    _pools: dict[str, list[Question]] = field(default_factory=dict)

    def build(self) -> Suite:
        """Raises DataError when no row can be asked."""
        found = limited(list(self.questions(train=False)), self.limit)
        if not found:
            raise self.nothing_to_ask()
        self._pools["others"] = found
        return Suite(
            name=self.name, questions=found, ask=self.ask, groups={self.name: tuple(dict.fromkeys(each.category for each in found))}
        )

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
        if "train" not in self._pools:
            self._pools["train"] = list(self.questions(train=True))
        pool = self._pools["train"] or [other for other in self._pools["others"] if other.id != question.id]
        same = [other for other in pool if other.category == question.category] or pool
        return question, [same[place] for place in draw(self.seed, question, len(same), shots)]


def published_suite(name: str, store: Store, *, seed: int, limit: int | None) -> Suite:
    """The benchmark `name` from the files below `store`."""
    return PublishedSuite(name, Folder(store), seed, limit).build()


def check_first_question(name: str, uri: str) -> None:
    """Reads as far as the first question, before a job is asked for. Raises DataError for files that are not the benchmark's."""
    suite = PublishedSuite(name, Folder(open_store(uri)), seed=0, limit=1)
    if next(suite.questions(train=False), None) is None:
        raise suite.nothing_to_ask()
