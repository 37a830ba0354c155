"""The ten published benchmarks that can be read, and how each of their rows becomes a question.

Field names are those of the files as the public evaluator lmms-eval reads them (github.com/EvolvingLMMs-Lab/lmms-eval, `lmms_eval/tasks/
{coco_cap,textcaps,vqav2,textvqa,scienceqa,mmmu,chartqa,docvqa,refcoco,nextqa}/utils*.py`, parquet files of the Hugging Face hub), and of
the benchmarks' own downloads where those are JSON or CSV. Rows without an answer (test splits) cannot be scored and are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from stagecoach.errors import DataError
from stagecoach.storage import Store
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
        found = limited(self._read(train=False), self.limit)
        if not found:
            raise DataError(
                f"{self.folder.store.uri}: no row of {self.name} with an answer ({self.folder.looked_at}); a test split has none"
            )
        self._pools["others"] = found
        return Suite(
            name=self.name, questions=found, ask=self.ask, groups={self.name: tuple(dict.fromkeys(each.category for each in found))}
        )

    def _read(self, *, train: bool) -> list[Question]:
        """All rows. Raises DataError also for a value that is not of its field's kind: trying again would not make it one."""
        found: list[Question] = []
        try:
            for question in READERS[self.name](self.folder, train=train):
                found.append(question)  # one by one: an error tells how far it came
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.folder.store.uri}: what follows the first {len(found):,} questions is not as {self.name} has it "
                f"({type(error).__name__}: {error}; {self.folder.looked_at})"
            ) from None
        return found

    def ask(self, question: Question, shots: int) -> tuple[Question, Sequence[Question]]:
        """The question and shots of its category where the training files have that."""
        if not shots:
            return question, ()
        if "train" not in self._pools:
            self._pools["train"] = self._read(train=True)
        pool = self._pools["train"] or [other for other in self._pools["others"] if other.id != question.id]
        same = [other for other in pool if other.category == question.category] or pool
        return question, [same[place] for place in draw(self.seed, question, len(same), shots)]


def published_suite(name: str, store: Store, *, seed: int, limit: int | None) -> Suite:
    """The benchmark `name` from the files below `store`."""
    return PublishedSuite(name, Folder(store), seed, limit).build()
