"""The model card that stands beside exported weights: what it is, what it was made from, how to load it, what it is not."""

from dataclasses import dataclass

from stagecoach.contract.plan import Model as ModelPlan
from stagecoach.contract.records import Record
from stagecoach.costs.parameters import count_parameters


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts(Record):
    """What a card says beyond the plan. Empty values are left out."""

    name: str
    recipe: str = ""
    stage: str = ""
    steps: int = 0
    licence: str = ""
    base_models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    metrics: tuple[tuple[str, float], ...] = ()


LOADING = """## Loading

```python
from stagecoach_workloads.weights.importing import load_model

model = load_model("this folder's URI")
```"""

LIMITS = """## Limits

It repeats what its training data says, errors and prejudices included, and reads images worse the less they look like those it was
trained on. Check its answers before anything depends on them."""


def model_card(plan: ModelPlan, facts: ModelFacts) -> str:
    """The card as Markdown, with the metadata block that the Hugging Face hub reads."""
    counts = count_parameters(plan)
    encoder, connector, decoder = plan.encoder, plan.connector, plan.decoder
    shape = [
        ("parameters", f"{counts.total:,} ({counts.active:,} active per token)"),
        ("image encoder", f"ViT ({encoder.layout}), {encoder.layers} layers, width {encoder.width}, patch {encoder.patch_size}"),
        ("connector", f"{connector.kind}, {connector.tokens} tokens an image"),
        ("language model", f"{decoder.layers} layers, width {decoder.width}, {decoder.heads} heads over {decoder.kv_heads}"),
        ("image size", f"{plan.image.size} px, split {plan.image.split.kind}"),
        ("vocabulary", f"{decoder.vocab_size} + {decoder.added_tokens} added"),
    ]
    made = [("recipe", facts.recipe), ("stage", facts.stage), ("steps", f"{facts.steps:,}" if facts.steps else "")]
    made += [("started from", ", ".join(facts.base_models)), ("trained on", ", ".join(facts.datasets))]
    rows = [f"| {name} | {value} |" for name, value in [*shape, *made] if value]
    scores = [f"| {name} | {value:g} |" for name, value in facts.metrics]
    parts = [
        "\n".join(["---", *_metadata(facts), "---"]),
        f"# {facts.name}",
        "A multimodal language model trained with Stagecoach.",
        "\n".join(["| | |", "| --- | --- |", *rows]),
        "\n".join(["| score | |", "| --- | --- |", *scores]) if scores else "It was not scored when it was exported.",
        LOADING,
        LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(facts: ModelFacts) -> list[str]:
    lines = ["library_name: stagecoach", "pipeline_tag: image-text-to-text"]
    if facts.licence:
        lines.append(f"license: {facts.licence}")
    for key, values in (("base_model", facts.base_models), ("datasets", facts.datasets)):
        if values:
            lines += [f"{key}:", *(f"- {value}" for value in values)]
    return lines
