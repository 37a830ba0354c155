"""`stagecoach checkpoint export`: the one checkpoint command that builds a model. The others are the platform's and need no torch."""

import click


@click.command("export")
@click.argument("uri")
@click.argument("output")
@click.option("--tokenizer", metavar="URI", help="Folder with a tokenizer.json; the one that plan.json pins by default.")
@click.option("--name", help="Title of the model card.")
def export_command(uri: str, output: str, tokenizer: str | None, name: str | None) -> None:
    """Writes the model of a checkpoint to OUTPUT as a Hugging Face folder: safetensors, config, tokenizer, model card.

    URI is one checkpoint, or a job's folder for its newest. Every byte is verified first; adapters are merged.
    """
    from stagecoach.checkpoints.addresses import find_one
    from stagecoach_workloads.weights.from_checkpoint import export_checkpoint

    job, ref = find_one(uri)
    verified = export_checkpoint(job, ref, output, tokenizer=tokenizer, name=name)
    click.echo(f"step {ref.step}, attempt {ref.attempt}: {verified.num_bytes:,} bytes verified", err=True)
    click.echo(output)
