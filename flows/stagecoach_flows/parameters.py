"""What each flow is asked for: typed, checked before a run starts, and a form in Prefect's UI (field titles and descriptions)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from stagecoach.cli.options import site_launcher
from stagecoach.contract.names import check_run_id
from stagecoach.errors import StagecoachError
from stagecoach.recipes import RECIPES
from stagecoach.recipes.resolve import parse_setting
from stagecoach.site import check_root, root_uri
from stagecoach.stages.pipeline import PipelineRequest
from stagecoach.storage.uris import UriPolicy


def _as_value_error(error: StagecoachError) -> ValueError:
    """pydantic gathers ValueErrors by field; ours carry the sentence."""
    return ValueError(str(error))


def _run_id(value: str) -> str:
    try:
        return check_run_id(value)
    except StagecoachError as error:
        raise _as_value_error(error) from None


def _root(value: str) -> str:
    try:
        return check_root(value, "root")
    except StagecoachError as error:
        raise _as_value_error(error) from None


def _uri(value: str) -> str:
    try:
        UriPolicy().check(value)
    except StagecoachError as error:
        raise _as_value_error(error) from None
    return value


def _setting(value: str) -> str:
    try:
        parse_setting(value)
    except StagecoachError as error:
        raise _as_value_error(error) from None
    return value


def recipes_of(family: str) -> list[str]:
    """Names of the family's recipes, miniatures last."""
    return sorted((name for name, entry in RECIPES.items() if entry.family == family), key=lambda name: RECIPES[name].is_miniature)


Uri = Annotated[str, AfterValidator(_uri)]
SettingText = Annotated[str, AfterValidator(_setting)]


class RunParameters(BaseModel):
    """One run of a pipeline."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str = Field(title="Recipe", description="`stagecoach recipes` lists them.")
    root: Annotated[str, AfterValidator(_root)] | None = Field(
        default=None, title="Root", description="Where runs are kept, such as s3://bucket/prefix. Empty: the site's."
    )
    run_id: Annotated[str, AfterValidator(_run_id)] | None = Field(
        default=None, title="Run id", description="The same id again attaches to the run or goes on with it. Empty: a new run."
    )
    data: Uri | None = Field(default=None, title="Data", description="Root of a made corpus; datasets named in the plan win over it.")
    launcher: str = Field(
        default_factory=site_launcher, title="Launcher", description="local, jobset, kubernetes or ray. Empty: the site's."
    )
    nodes: int | None = Field(default=None, ge=1, title="Nodes", description="Empty: the recipe's.")
    ranks_per_node: int | None = Field(default=None, ge=1, title="Ranks per node", description="Empty: the recipe's.")
    stages: tuple[str, ...] = Field(default=(), title="Stages", description="Only these. Empty: all.")
    from_checkpoint: Uri | None = Field(default=None, title="From checkpoint", description="Folder of another run's stage or checkpoint.")
    verify: Literal["quick", "full"] = Field(
        default="quick", title="Verify", description="Of checkpoints: sizes and checksums, or every byte."
    )
    settings: tuple[SettingText, ...] = Field(default=(), title="Settings", description="PATH=VALUE, such as sft.optimizer.peak_lr=1e-5.")
    code: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$", title="Code", description="Digest of a code bundle (`stagecoach run --code`)."
    )

    def request(self, *, run_id: str | None = None) -> PipelineRequest:
        """The same for `stages.pipeline`. `run_id` is used where none was asked for."""
        return PipelineRequest(
            recipe=self.recipe, root=root_uri(self.root), run_id=self.run_id or run_id, settings=self.settings, data=self.data,
            launcher=self.launcher, nodes=self.nodes, ranks_per_node=self.ranks_per_node, stages=self.stages,
            from_checkpoint=self.from_checkpoint, depth=self.verify, code=self.code,
        )  # fmt: skip


def parameters_of(request: PipelineRequest, family: str) -> "RunParameters":
    """The flow's parameters for a request. Raises pydantic's ValidationError."""
    return MODELS[family](
        recipe=request.recipe, root=request.root, run_id=request.run_id, data=request.data, launcher=request.launcher, nodes=request.nodes,
        ranks_per_node=request.ranks_per_node, stages=tuple(request.stages), from_checkpoint=request.from_checkpoint,
        verify=request.depth, settings=tuple(request.settings), code=request.code,
    )  # fmt: skip


def _one_of(family: str) -> AfterValidator:
    def check(value: str) -> str:
        known = recipes_of(family)
        if value not in known:
            raise ValueError(f"{value!r} is no recipe of this pipeline; there are {', '.join(known)}")
        return value

    return AfterValidator(check)


class Mm1Parameters(RunParameters):
    """MM1: pre-training, then fine-tuning."""

    recipe: Annotated[str, _one_of("mm1")] = Field(title="Recipe", json_schema_extra={"enum": list(recipes_of("mm1"))})


class Mm15Parameters(RunParameters):
    """MM1.5: pre-training, continual pre-training at high resolution, fine-tuning, then video and UI from it."""

    recipe: Annotated[str, _one_of("mm1_5")] = Field(title="Recipe", json_schema_extra={"enum": list(recipes_of("mm1_5"))})


class Blip3Parameters(RunParameters):
    """xGen-MM (BLIP-3): pre-training, fine-tuning. Stages that are not built yet are refused when the run is planned."""

    recipe: Annotated[str, _one_of("blip3")] = Field(title="Recipe", json_schema_extra={"enum": list(recipes_of("blip3"))})


class StageParameters(RunParameters):
    """One stage of any recipe; `stages` is set by the flow."""

    recipe: str = Field(title="Recipe", json_schema_extra={"enum": list(RECIPES)})

    def only(self, stage: str) -> "StageParameters":
        """The same for that stage alone."""
        return self.model_copy(update={"stages": (stage,)})


MODELS: dict[str, type[RunParameters]] = {"mm1": Mm1Parameters, "mm1_5": Mm15Parameters, "blip3": Blip3Parameters}


class ResumeParameters(BaseModel):
    """Finds runs that should be running and are not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Annotated[str, AfterValidator(_root)] | None = Field(default=None, title="Root", description="Empty: the site's.")
    run_id: Annotated[str, AfterValidator(_run_id)] | None = Field(default=None, title="Run id", description="Only this run. Empty: all.")
    watch_s: float = Field(
        default=40.0, ge=0, title="Watch", description="How long a controller's beat may stand still before it counts as gone."
    )


class EvaluateParameters(BaseModel):
    """Evaluates a finished stage's suites again, or for the first time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: Annotated[str, AfterValidator(_run_id)] = Field(title="Run id")
    stage: str = Field(title="Stage")
    root: Annotated[str, AfterValidator(_root)] | None = Field(default=None, title="Root", description="Empty: the site's.")


class GcParameters(BaseModel):
    """Removes checkpoints that no run keeps, pins or reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Annotated[str, AfterValidator(_root)] | None = Field(default=None, title="Root", description="Empty: the site's.")
    run_id: Annotated[str, AfterValidator(_run_id)] | None = Field(default=None, title="Run id", description="Only this run. Empty: all.")
    dry_run: bool = Field(default=False, title="Only look", description="Say what would be removed.")
