"""`stagecoach weights {import,export,inspect}`: Hugging Face folders in and out."""

import json

import click

from stagecoach.errors import CheckpointError, StagecoachError


class WeightsGroup(click.Group):
    """Ends with 1 where weights are damaged: 40 to 49 are what jobs end with, and this waits for none."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except CheckpointError as error:
            raise StagecoachError(str(error)) from error


@click.group("weights", cls=WeightsGroup)
def weights_group() -> None:
    """Weights in and out: Hugging Face safetensors folders. Pickles (.bin, .pt) are refused: reading one runs the code in it."""


@weights_group.command("inspect")
@click.argument("uri")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")
def inspect_command(uri: str, as_json: bool) -> None:
    """Says what a folder of safetensors holds: layout, shapes, parameters."""
    from stagecoach_workloads.weights.inspecting import describe, inspect_folder

    found = inspect_folder(uri)
    click.echo(json.dumps(found, sort_keys=True) if as_json else describe(found))


@weights_group.command("import")
@click.argument("plan")
@click.argument("output")
@click.option("--stage", help="The stage of PLAN whose model to build; the first by default.")
@click.option("--encoder", help="Folder of a CLIP or SigLIP model.")
@click.option("--decoder", help="Folder of a Llama, Qwen2 or Phi-3 model.")
@click.option("--tokenizer", help="Folder with a tokenizer.json; the decoder's by default, where it has one.")
@click.option("--seed", default=0, show_default=True, help="Of the parts that start at random.")
def import_command(
    plan: str, output: str, stage: str | None, encoder: str | None, decoder: str | None, tokenizer: str | None, seed: int
) -> None:
    """Builds the model of PLAN from pre-trained parts and writes it to OUTPUT.

    \b
    stagecoach plan RECIPE --json > plan.json
    stagecoach weights import plan.json OUTPUT --stage STAGE --decoder FOLDER

    PLAN may also be the plan.json of a run's stage. Parts that are not given start at random.
    """
    from stagecoach_workloads.weights.commands import import_parts

    for line in import_parts(plan, output, stage=stage, encoder=encoder, decoder=decoder, tokenizer=tokenizer, seed=seed):
        click.echo(line, err=True)
    click.echo(output)


@weights_group.command("export")
@click.argument("model")
@click.argument("output")
@click.option("--part", type=click.Choice(["model", "encoder", "decoder"]), default="model", show_default=True)
@click.option("--layout", type=click.Choice(["llama", "qwen2", "phi3"]), help="Of the decoder; guessed from its biases when not given.")
@click.option("--tokenizer", help="Folder with a tokenizer.json; MODEL's own by default.")
@click.option("--name", help="Title of the model card.")
def export_command(model: str, output: str, part: str, layout: str | None, tokenizer: str | None, name: str | None) -> None:
    """Writes MODEL (a folder that import or export wrote) to OUTPUT: whole, or one part in its Hugging Face layout."""
    from stagecoach_workloads.weights.commands import export_part

    export_part(model, output, part=part, layout=layout, tokenizer=tokenizer, name=name)
    click.echo(output)
