"""What `stagecoach weights` does, without its flags."""

import json
from pathlib import Path

from stagecoach.contract.plan import Decoder as DecoderPlan
from stagecoach.contract.plan import Model as ModelPlan
from stagecoach.contract.plan import PipelinePlan, Pretrained, StagePlan
from stagecoach.contract.records import decode, did_you_mean, validate
from stagecoach.errors import ConfigError, ContractError, NewerFormat
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.weights.card import ModelFacts
from stagecoach_workloads.weights.exporting import export_decoder, export_encoder, export_model
from stagecoach_workloads.weights.folder import Folder
from stagecoach_workloads.weights.importing import import_pretrained, read_model_plan
from stagecoach_workloads.weights.loading import LoadReport
from stagecoach_workloads.weights.sources import SafetensorsFolder, TensorsInMemory


def import_parts(
    plan_uri: str, output: str, *, stage: str | None, encoder: str | None, decoder: str | None, tokenizer: str | None, seed: int
) -> list[str]:
    """Builds the model of a plan file, fills what is given and writes it. Returns what to tell the user."""
    plan, recipe = read_plan(plan_uri, stage)
    model = build_model(plan, seed=seed)
    reports = import_pretrained(model, Pretrained(encoder=encoder, decoder=decoder))
    if tokenizer is None and decoder is not None and "tokenizer.json" in Folder(decoder).names():
        tokenizer = decoder
    bases = tuple(uri for uri in (encoder, decoder) if uri)
    facts = ModelFacts(name=recipe, recipe=recipe, stage=stage or "", base_models=bases)
    export_model(TensorsInMemory(model.state_dict()), plan, output, facts=facts, tokenizer=tokenizer)
    return [line for part, report in reports.items() for line in describe_report(part, report)]


REPORT_FORMAT = "stagecoach.plan-report/"  # what `stagecoach plan --json` prints: plans, each with what it costs
HOW_TO_PLAN = "make one with `stagecoach plan RECIPE --json > plan.json`, or give the plan.json of a run's stage"


def read_plan(uri: str, stage: str | None) -> tuple[ModelPlan, str]:
    """The model in a plan file, and the recipe's or stage's name: what `stagecoach plan --json` printed, a stage's `plan.json`, or a
    stored pipeline's. `stage` None: the first.

    Raises ConfigError when there is no such file or stage, or the file is no plan.
    """
    name, stages, only = _models_in(uri)
    if only and stage not in (None, *stages):
        raise ConfigError(f"{uri} is the plan of stage `{name}` alone, not of `{stage}`; leave --stage out, or give the recipe's plan")
    if stage is not None and stage not in stages:
        raise ConfigError(f"{name} has no stage `{stage}`{did_you_mean(stage, list(stages))}")
    return stages[stage or next(iter(stages))], name


def _models_in(uri: str) -> tuple[str, dict[str, ModelPlan], bool]:
    """(name, model of each stage, whether it is the file of one stage)."""
    folder, _, name = (uri if "/" in uri else f"./{uri}").rpartition("/")
    body = Folder(folder).read(name)
    try:
        loaded = json.loads(body)
        kind = str(loaded.get("format", ""))
        if kind.startswith(REPORT_FORMAT):
            stages = {each["name"]: validate(ModelPlan, each["model"], where=f"{uri}: {each['name']}.model") for each in loaded["stages"]}
            if stages:
                return str(loaded["name"]), stages, False
        if kind.startswith(StagePlan.FORMAT + "/"):
            only = decode(StagePlan, body, uri=uri)
            return only.name, {only.name: only.model}, True
        pipeline = decode(PipelinePlan, body, uri=uri)
        return pipeline.name, {each.name: each.model for each in pipeline.stages}, False
    except NewerFormat as error:
        raise ConfigError(str(error)) from error
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError, ContractError) as error:
        raise ConfigError(f"{uri} is no plan ({error}); {HOW_TO_PLAN}") from error


def describe_report(part: str, report: LoadReport) -> list[str]:
    """What was loaded into a part, as sentences."""
    lines = [f"{part}: {report.loaded} tensors loaded"]
    lines += [f"{part}: {name} grew by {rows} rows, each the mean of those there" for name, rows in report.grown.items()]
    if report.ignored:
        lines.append(f"{part}: {len(report.ignored)} tensors not needed, such as {report.ignored[0]}")
    if report.kept:
        lines.append(f"{part}: {len(report.kept)} tensors start at random, such as {report.kept[0]}")
    return lines


def export_part(model: str, output: str, *, part: str, layout: str | None, tokenizer: str | None, name: str | None) -> None:
    """Writes an exported model again, or one part of it in its Hugging Face layout."""
    folder = Folder(model)
    plan = read_model_plan(folder)
    if tokenizer is None and "tokenizer.json" in folder.names():
        tokenizer = model
    with SafetensorsFolder(model) as source:
        if part == "encoder":
            export_encoder(source, plan.encoder, output)
        elif part == "decoder":
            export_decoder(source, plan.decoder, output, layout=layout or guess_layout(plan.decoder), tokenizer=tokenizer)
        else:
            training = folder.read_json("config.json").get("training", {})
            title = name or training.get("name") or Path(model.rstrip("/")).name
            facts = validate(ModelFacts, {**training, "name": title}, where=f"{folder.uri}/config.json: training")
            export_model(source, plan, output, facts=facts, tokenizer=tokenizer)


def guess_layout(plan: DecoderPlan) -> str:
    """qwen2 has biases on queries, keys and values only, phi3 a window or longrope, llama the rest."""
    if plan.qkv_bias and not plan.output_bias:
        return "qwen2"
    if plan.sliding_window or (plan.rope_scaling and plan.rope_scaling.kind == "longrope"):
        return "phi3"
    return "llama"
