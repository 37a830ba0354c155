"""From a recipe's name and `--set` texts to a checked plan.

A setting is `path=value`. A path without a dot is an argument of the recipe (`connector=perceiver`, `edition=2025`); any other starts
with a stage's name and walks the plan's fields (`pretrain.optimizer.peak_lr=6e-5`). Entries of lists are addressed by name
(`pretrain.data.mixture.weights.obelics=0.3`); a dataset that is given as an object under a new name is one more source.
`STAGE.steps` is short for `STAGE.duration.steps`. Values are JSON; a word that is not JSON is text; `null` or `None` is none. What is
set under `STAGE.model.{encoder,connector,decoder}` also holds for the stages that start from that one, unless they set it themselves:
they continue the same weights.
"""

import copy
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, cast, get_type_hints

from pydantic import ValidationError

from stagecoach.contract.names import whole_number
from stagecoach.contract.plan import Parent, PipelinePlan, StagePlan
from stagecoach.contract.records import adapter, did_you_mean, label_of, rule_of, shortened, to_plain, union_members, validate, walk_leaves
from stagecoach.costs import hardware as known_hardware
from stagecoach.errors import ConfigError
from stagecoach.recipes import recipe_function
from stagecoach.recipes.addresses import check_addresses
from stagecoach.redaction import redact

SOURCES, WEIGHTS = "data.datasets.", "data.mixture.weights."
INHERITED = ("model.encoder.", "model.connector.", "model.decoder.")


@dataclass(frozen=True, slots=True)
class Setting:
    """One override: its full dotted path, its value, and what the user wrote."""

    path: str
    value: Any
    text: str

    @property
    def stage(self) -> str:
        return self.path.partition(".")[0]

    @property
    def inside(self) -> str:
        """The path below the stage."""
        return self.path.partition(".")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A plan and how it came about."""

    recipe: str
    plan: PipelinePlan
    default: PipelinePlan  # the recipe without arguments or settings
    arguments: Mapping[str, Any]
    settings: tuple[Setting, ...]  # as asked
    inherited: tuple[Setting, ...]  # what followed for stages that start from a changed one


def resolve(recipe: str, settings: Sequence[str] = (), *, hardware: str | None = None) -> Resolved:
    """Raises ConfigError for an unknown recipe, argument or path, a wrong value, and two settings that contradict each other."""
    function = recipe_function(recipe)
    parsed = [parse_setting(text) for text in settings]
    arguments = recipe_arguments(recipe, [setting for setting in parsed if "." not in setting.path])
    default, base = function(), function(**arguments)
    asked = [setting for setting in parsed if "." in setting.path]
    if hardware is not None:
        known_hardware(hardware)
        asked += [Setting(f"{stage.name}.resources.hardware", hardware, f"--hardware {hardware}") for stage in base.stages]
    refuse_contradictions(asked)
    plan, inherited = apply_settings(base, asked)
    for stage in plan.stages:
        check_addresses(stage)
    for setting in asked:
        refuse_secrets(setting)
    return Resolved(recipe=recipe, plan=plan, default=default, arguments=arguments, settings=tuple(asked), inherited=tuple(inherited))


# --- reading settings --------------------------------------------------------------------------------------------------------


def parse_setting(text: str) -> Setting:
    """`path=value`, with `STAGE.steps` written out. Raises ConfigError when it is not of that form."""
    path, separator, value = text.partition("=")
    path = path.strip()
    if not separator or not path or any(not part for part in path.split(".")):
        raise ConfigError(f"--set {text!r}: write PATH=VALUE, such as pretrain.optimizer.peak_lr=6e-5 or sft.batch.seq_len=2048")
    stage, _, inside = path.partition(".")
    if inside == "steps":
        path = f"{stage}.duration.steps"
    return Setting(path, parse_value(value.strip()), f"--set {text}")


def parse_value(text: str) -> Any:
    """JSON; `None` is null; a word that is not JSON is text. Control characters and surrogates (bytes that are not UTF-8) are refused."""
    if text == "None":
        return None
    try:
        value = _json_or_text(text)
        odd = next((part for part in _texts(value) if not part.isprintable()), None)
    except RecursionError:
        raise ConfigError(f"--set value {text[:40]!r}...: it is nested too deeply; no field holds such a value") from None
    if odd is not None:
        raise ConfigError(f"--set value {shortened(ascii(odd))}: it has characters that cannot be printed; write plain UTF-8 text")
    return value


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value:
            yield from _texts(inner)
        if isinstance(value, dict):
            yield from _texts(list(value.values()))


def recipe_arguments(recipe: str, settings: Sequence[Setting]) -> dict[str, Any]:
    """Arguments of the recipe function, strictly typed by its signature."""
    function = recipe_function(recipe)
    hints, known = get_type_hints(function), list(inspect.signature(function).parameters)
    arguments: dict[str, Any] = {}
    written: dict[str, str] = {}
    for setting in settings:
        name = setting.path
        if name not in known:
            stages = [stage.name for stage in function().stages]
            if name in stages:
                raise ConfigError(f"{setting.text}: `{name}` is a stage; set a field of it, such as {name}.steps or {name}.batch.size")
            near = did_you_mean(name, [*known, *stages])
            raise ConfigError(f"{setting.text}: `{name}` is no argument of recipe {recipe} (fields are written STAGE.path){near}")
        try:
            value = adapter(hints[name]).validate_python(setting.value, strict=True)
        except ValidationError as invalid:
            raise ConfigError(f"{setting.text}: `{name}` = {json.dumps(setting.value)}: {rule_of(invalid.errors()[0])}") from None
        if name in arguments and arguments[name] != value:
            raise ConfigError(f"`{written[name]}` and `{setting.text}` contradict each other; keep one")
        arguments[name], written[name] = value, setting.text
    return arguments


def refuse_contradictions(settings: Sequence[Setting]) -> None:
    """Raises ConfigError when one path is set to two values, or a path and something inside it are both set."""
    for index, later in enumerate(settings):
        for earlier in settings[:index]:
            same = earlier.path == later.path and not _equal(earlier.value, later.value)
            nested = later.path.startswith(earlier.path + ".") or earlier.path.startswith(later.path + ".")
            if same or nested:
                raise ConfigError(f"`{earlier.text}` and `{later.text}` contradict each other; keep one")


def refuse_secrets(setting: Setting) -> None:
    """Raises ConfigError for a value that looks like a secret: a plan is stored, hashed and printed."""
    for text in _texts(setting.value):
        if redact(text) != text:
            says = f"`{setting.path}` = {redact(text)!r}: holds what looks like a secret, and a plan is stored for all to read"
            raise ConfigError(f"{says}; give it to the job by the environment or a cluster secret")


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


# --- applying them -----------------------------------------------------------------------------------------------------------


def apply_settings(base: PipelinePlan, settings: Sequence[Setting]) -> tuple[PipelinePlan, list[Setting]]:
    """The changed plan, and the settings that followed for descendants."""
    names = [stage.name for stage in base.stages]
    for setting in settings:
        if setting.stage not in names:
            raise ConfigError(f"{setting.text}: {base.name} has no stage `{setting.stage}`{did_you_mean(setting.stage, names)}")
    effective: dict[str, list[Setting]] = {}
    stages, inherited = [], []
    for stage in base.stages:
        own = [setting for setting in settings if setting.stage == stage.name]
        plain = _with_settings(to_plain(stage), own)
        followed = _inherit(stage, plain, own, effective) + _copies_follow(stage, own)
        plain = _with_settings(plain, followed)
        where = "; ".join(setting.text for setting in own + followed) or base.name
        stages.append(validate(StagePlan, plain, where=where, prefix=stage.name))
        inherited += followed
        effective[stage.name] = own + followed
    return PipelinePlan(name=base.name, family=base.family, stages=tuple(stages)), inherited


def _inherit(stage: StagePlan, plain: dict[str, Any], own: Sequence[Setting], effective: Mapping[str, list[Setting]]) -> list[Setting]:
    """Settings of the parent's architecture that this stage does not set itself. A stage that begins with weights of its own kind, as a
    fork's first does, has them from where the recipe starts it."""
    init = plain.get("init")
    parent = init.get("stage") if isinstance(init, dict) and init.get("kind") == "parent" else None
    if parent == stage.name and isinstance(stage.init, Parent):
        parent = stage.init.stage
    mine = {setting.inside for setting in own}
    return [
        Setting(f"{stage.name}.{setting.inside}", setting.value, f"{setting.text} (followed from stage {parent})")
        for setting in effective.get(str(parent), [])
        if setting.inside.startswith(INHERITED) and setting.inside not in mine
    ]


def _copies_follow(stage: StagePlan, own: Sequence[Setting]) -> list[Setting]:
    """Where each machine holds a copy of the state, another number of machines means as many copies."""
    given = {setting.inside: setting for setting in own}
    nodes = given.get("layout.nodes")
    if nodes is None or "layout.dp_replicate" in given or stage.layout.dp_replicate != stage.layout.nodes:
        return []
    return [Setting(f"{stage.name}.layout.dp_replicate", nodes.value, f"{nodes.text} (each machine holds a copy)")]


def _with_settings(plain: dict[str, Any], settings: Sequence[Setting]) -> dict[str, Any]:
    """A changed copy. Which member a union is comes first, so that its fields find their place in any order."""
    changed = copy.deepcopy(plain)
    _choose_members(changed, settings)
    for setting in sorted(settings, key=lambda setting: not setting.inside.startswith(SOURCES)):  # a new source comes before its weight
        if not _adds_source(changed, setting):
            _assign(changed, setting)
    return changed


def _adds_source(plain: dict[str, Any], setting: Setting) -> bool:
    """A source that the recipe has not: its dataset as an object (a mistyped name of one that is there sets a value), then its weight."""
    data, name = plain["data"], setting.inside.rpartition(".")[2]
    names = [dataset["name"] for dataset in data["datasets"]]
    if setting.inside == f"{SOURCES}{name}" and isinstance(setting.value, dict) and name not in names:
        data["datasets"].append({"name": name, **setting.value})
        return True
    weights = data["mixture"]["weights"]
    weighted = [weight["dataset"] for weight in weights]
    if setting.inside == f"{WEIGHTS}{name}" and name in names and name not in weighted and not isinstance(setting.value, dict):
        weights.append({"dataset": name, "weight": setting.value})
        return True
    return False


def _choose_members(plain: dict[str, Any], settings: Sequence[Setting]) -> None:
    """`init` and `duration` have one of several shapes: setting `kind`, or a field that only one other shape has, selects it."""
    for union, members in _unions().items():
        chosen: dict[str, Setting] = {}
        for setting in settings:
            parts = setting.inside.split(".")
            if len(parts) != 2 or parts[0] != union:
                continue
            current = plain[union].get("kind")
            fitting = [kind for kind, names in members.items() if parts[1] in names]
            if parts[1] == "kind":
                chosen[str(setting.value)] = setting
            elif current in fitting and not any(other.inside == f"{union}.kind" for other in settings):
                chosen[str(current)] = setting
            elif len(fitting) == 1:
                chosen[fitting[0]] = setting
        if len(chosen) > 1:
            one, other = list(chosen.values())[:2]
            raise ConfigError(f"`{one.text}` and `{other.text}` contradict each other: `{one.stage}.{union}` is one or the other; keep one")
        kind = next(iter(chosen), None)
        if kind in members and kind != plain[union].get("kind"):
            plain[union] = {"kind": kind}


def _unions() -> dict[str, dict[str, list[str]]]:
    """Field of a stage -> kind -> its field names, for the fields that may have several shapes."""
    found = {}
    for name, hint in get_type_hints(StagePlan, include_extras=True).items():
        members = [member for member in union_members(hint) if is_dataclass(member)]
        if len(members) > 1:
            shapes = [cast(Any, member) for member in members]
            found[name] = {
                str(next(f.default for f in fields(shape) if f.name == "kind")): [f.name for f in fields(shape)] for shape in shapes
            }
    return found


def _assign(plain: dict[str, Any], setting: Setting) -> None:
    """Puts one value into plain data; what does not fit a field is found by `validate` afterwards."""
    *above, last = setting.inside.split(".")
    here: Any = plain
    walked = setting.stage
    for part in above:
        here = _enter(here, part, walked, setting)
        walked = f"{walked}.{part}"
    if isinstance(here, list):
        index = _index(here, last, walked, setting)
        if isinstance(here[index], dict) and set(here[index]) == {"dataset", "weight"} and not isinstance(setting.value, dict):
            here[index]["weight"] = setting.value  # a mixture's entry by its dataset's name
        else:
            here[index] = setting.value
    else:
        here[last] = setting.value


def _enter(here: Any, part: str, walked: str, setting: Setting) -> Any:
    """One step down. An optional record that is none yet starts empty."""
    if isinstance(here, list):
        here = here[_index(here, part, walked, setting)]
    else:
        if here.get(part) is None:
            here[part] = {}
        here = here[part]
    if not isinstance(here, dict | list):
        raise ConfigError(f"{setting.text}: `{walked}.{part}` is a value ({json.dumps(here)}); it has nothing inside to set")
    return here


def _index(entries: list[Any], part: str, walked: str, setting: Setting) -> int:
    """The entry of that name in a list, or at that place."""
    labels = [label_of(entry, index) for index, entry in enumerate(entries)]
    if part in labels:
        return labels.index(part)
    place = whole_number(part)
    if place is not None and place < len(entries):
        return place
    raise ConfigError(f"{setting.text}: unknown key `{walked}.{part}`{did_you_mean(part, labels, walked)}")


# --- comparing ---------------------------------------------------------------------------------------------------------------


def leaves(plan: PipelinePlan) -> dict[str, Any]:
    """Every value of every stage by its dotted path."""
    found: dict[str, Any] = {}
    for stage in plan.stages:
        plain = to_plain(stage)
        walk_leaves(plain, found.__setitem__, stage.name)
    return found


def difference(one: PipelinePlan, other: PipelinePlan) -> list[tuple[str, Any, Any]]:
    """(path, value here, value there) wherever they differ; `...` where a plan has no such value."""
    here, there = leaves(one), leaves(other)
    return [
        (path, here.get(path, ...), there.get(path, ...))
        for path in [*here, *(path for path in there if path not in here)]
        if here.get(path, ...) != there.get(path, ...)
    ]
