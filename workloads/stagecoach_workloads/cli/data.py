"""`stagecoach data ...`: make, convert, index, verify, inspect, stats, plan. Results to stdout, progress and narration to stderr."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from stagecoach.contract.plan import StagePlan

as_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout and nothing else.")


class DataGroup(click.Group):
    """Data that is not what a command needs was named by who typed it: exit code 2, where a job would end with 41 (reliability.md, B24)."""

    def invoke(self, ctx: click.Context) -> Any:
        from stagecoach.errors import ConfigError, ContractError, DataError

        try:
            return super().invoke(ctx)
        except (DataError, ContractError) as error:
            raise ConfigError(str(error)) from error


@click.group("data", cls=DataGroup)
def data_group() -> None:
    """Datasets: made, converted, indexed, verified, looked at, planned."""


@data_group.command("make")
@click.argument("uri")
@click.option("--profile", default="tiny", show_default=True, help="tiny, demo, learn or bench: how much, and how hard.")
@click.option("--seed", default=0, show_default=True, help="Equal seeds give equal bytes.")
@click.option("--only", metavar="NAME,...", help="These datasets alone.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 256), help="Processes.")
@as_json_option
def make_command(uri: str, profile: str, seed: int, only: str | None, workers: int, as_json: bool) -> None:
    """Makes the corpus with known answers at URI: training, validation and test data for every stage, with no download.

    Run again after a kill, it goes on; what is finished is left alone. With --json: what corpus.json says.
    """
    from stagecoach.contract.records import to_plain
    from stagecoach_workloads.data.made.corpus import make_corpus

    with progress("making") as report:
        corpus = make_corpus(
            _uri(uri), profile=profile, seed=seed, workers=workers, only=tuple(only.split(",")) if only else (), on_progress=report
        )
    if as_json:
        print_json(to_plain(corpus))
        return
    click.echo(f"{_uri(uri)}: profile {corpus.profile}, seed {corpus.seed}, {len(corpus.datasets)} datasets")
    for name, tasks in corpus.baselines.items():
        scores = ", ".join(f"{task} (chance {base.chance:.2f}, blind {base.blind:.2f})" for task, base in tasks.items())
        click.echo(f"  {name}: {scores}")


@data_group.command("convert")
@click.argument("source")
@click.argument("target")
@click.option("--from", "format", required=True, metavar="FORMAT",
              help="llava, coco, obelics, image-text, pdf, video, jsonl, preference or webdataset.")  # fmt: skip
@click.option("--kind", metavar="KIND", help="Of a webdataset: take samples of this kind alone. Found in its first tar without it.")
@click.option("--images", metavar="URI", help="The folder of images that the data names; the source's own without it.")
@click.option("--category", default="general", show_default=True)
@click.option("--licence", default="unknown", show_default=True, help="Noted in dataset.json.")
@click.option("--budget", default=0.01, show_default=True, type=click.FloatRange(0, 1),
              help="Share of rows that may be unusable. With more, nothing is finished and the exit code is 2: of all rows in the end, and "
                   "before that of the rows so far, once they are 100.")  # fmt: skip
@click.option("--fps", default=1.0, show_default=True, type=click.FloatRange(0.01, 60), help="Frames a second of video.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 256), help="Processes.")
def convert_command(
    source: str,
    target: str,
    format: str,
    kind: str | None,
    images: str | None,
    category: str,
    licence: str,
    budget: float,
    fps: float,
    workers: int,
) -> None:
    """Converts the file or folder SOURCE into a dataset at TARGET. Rows that cannot be used are listed in TARGET/rejected.jsonl.

    Run again after a kill, it goes on where it was. Count tokens for a tokenizer afterwards: `stagecoach data index`.
    """
    from stagecoach_workloads.data.convert import convert

    with progress("converting") as report:
        manifest = convert(
            _uri(source),
            _uri(target),
            format=format,
            kind=kind,
            images=_uri(images) if images is not None else None,
            category=category,
            licence=licence,
            budget=budget,
            fps=fps,
            workers=workers,
            on_unit=lambda done, units: report(source, done, units),
        )
    click.echo(f"{_uri(target)}: {manifest.counts.samples:,} samples, {manifest.counts.images:,} images, {len(manifest.shards)} shards; "
               f"{manifest.rejected:,} rows rejected")  # fmt: skip


@data_group.command("index")
@click.argument("uri")
@click.option("--tokenizer", metavar="URI", help="A Hugging Face tokenizer.json: count tokens for it. Without it only the index is mended.")
@click.option("--template", "templates", multiple=True, help="plain, llava or phi3; repeatable. All three without it.")
@click.option("--without-manifest", is_flag=True, help="dataset.json is lost too: take the shards that stand there for all there were.")
@click.option("--new-fingerprint", is_flag=True, help="Write an index that differs from the lost one; runs that pinned it will refuse.")
def index_command(uri: str, tokenizer: str | None, templates: tuple[str, ...], without_manifest: bool, new_fingerprint: bool) -> None:
    """Makes lost or damaged index parts of the dataset at URI again from its shards, then counts its tokens for planning.

    Counts are kept beside the index, once per tokenizer and template; those that are there are left alone.
    """
    from stagecoach.errors import ConfigError
    from stagecoach.storage import open_store
    from stagecoach_workloads.data.dataset import open_dataset
    from stagecoach_workloads.data.plan.open import read_tokenizer
    from stagecoach_workloads.data.rebuild import mend_index
    from stagecoach_workloads.data.templates import TEMPLATES
    from stagecoach_workloads.data.tokens import count_tokens, read_counts

    unknown = [name for name in templates if name not in TEMPLATES]
    if unknown:
        raise ConfigError(f"--template {unknown[0]}: no such template; there are {', '.join(TEMPLATES)}")
    reader = read_tokenizer(_uri(tokenizer)) if tokenizer is not None else None
    rebuilt = mend_index(open_store(_uri(uri)), without_manifest=without_manifest, new_fingerprint=new_fingerprint)
    if rebuilt.parts:
        changed = "a new fingerprint" if rebuilt.fingerprint_changed else "the fingerprint it had"
        click.echo(f"{_uri(uri)}: {', '.join(rebuilt.parts)} made from the shards, with {changed}, {rebuilt.manifest.fingerprint[:16]}")
    elif reader is None:
        click.echo(f"{_uri(uri)}: every part of the index is as written; with --tokenizer its tokens are counted")
    if reader is None:
        return
    dataset = open_dataset(_uri(uri))
    with progress("counting") as report:
        count_tokens(dataset, reader, templates or TEMPLATES, on_progress=lambda done, of: report(dataset.uri, done, of))
    for name in templates or TEMPLATES:
        total = int(read_counts(dataset, reader, name).runs.sum())
        click.echo(f"{dataset.uri}: {total:,} text tokens in {len(dataset):,} samples under template {name}")


@data_group.command("verify")
@click.argument("uri")
@as_json_option
def verify_command(uri: str, as_json: bool) -> None:
    """Reads every byte of the dataset (or of all datasets of a made corpus) and names every damaged sample. Exit 1 when there is damage."""
    from dataclasses import asdict

    from stagecoach.storage import open_store
    from stagecoach_workloads.data.verify import verify_dataset

    found: list[dict[str, Any]] = []
    addresses = dataset_uris(_uri(uri))
    refuse_nothing(_uri(uri))
    with progress("verifying") as report:
        for done, address in enumerate(addresses):
            report(address, done, len(addresses))
            found += [{"dataset": address, **asdict(damage)} for damage in verify_dataset(open_store(address))]
    if as_json:
        print_json({"datasets": len(addresses), "damage": found})
    for damage in found if not as_json else []:
        click.echo(damage_line(damage))
    if not as_json:
        click.echo(
            f"{len(addresses)} dataset(s): {len(found)} finding(s)" if found else f"{len(addresses)} dataset(s): every byte is as written"
        )
    sys.exit(1 if found else 0)


def refuse_nothing(uri: str) -> None:
    """Raises DataError when no object at all stands under the URI: a slip of the keyboard rather than damage."""
    from stagecoach.contract.dataset import CORPUS_KEY, MANIFEST_KEY
    from stagecoach.errors import DataError
    from stagecoach.storage import open_store

    store = open_store(uri)
    if not store.exists(MANIFEST_KEY) and not store.exists(CORPUS_KEY) and not store.list():
        raise DataError(f"{store.uri_of(MANIFEST_KEY)}: not there; nothing stands under this URI")


def damage_line(damage: dict[str, Any]) -> str:
    """Where, and what. Damage of a whole dataset names its object itself."""
    if damage["key"] == damage["dataset"]:
        return str(damage["says"])
    where = f"sample {damage['sample']}" if damage["sample"] else "the whole"
    return f"{damage['dataset']}/{damage['key']}: {where}: {damage['says']}"


@data_group.command("inspect")
@click.argument("uri")
@click.option("--samples", default=24, show_default=True, type=click.IntRange(1, 500), help="How many, spread evenly.")
@click.option("--out", metavar="FILE", help="A .png or .html file; without it contact-sheet.png in the current folder.")
def inspect_command(uri: str, samples: int, out: str | None) -> None:
    """Writes a contact sheet: samples with their text, boxes drawn. Of a made corpus: some of every dataset. Prints the file's path."""
    from stagecoach_workloads.data.dataset import open_dataset
    from stagecoach_workloads.data.inspect import choose, contact_sheet, html_sheet

    path = Path(out or "contact-sheet.png")
    if path.suffix not in (".png", ".html"):
        raise click.UsageError(f"--out {out}: a sheet is a .png or an .html file")
    addresses = [address for address in dataset_uris(_uri(uri)) if not address.endswith(("/validation", "/test"))] or dataset_uris(
        _uri(uri)
    )
    chosen = choose([open_dataset(address) for address in addresses], samples)
    title = f"{_uri(uri)}: {len(chosen)} samples"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(html_sheet(title, chosen) if path.suffix == ".html" else contact_sheet(chosen))
    click.echo(path.resolve())


@data_group.command("stats")
@click.argument("uri")
@click.option("--tokenizer", metavar="URI", help="Token histograms by this tokenizer.json; a made corpus brings its own.")
@click.option("--template", default="plain", show_default=True, help="plain, llava or phi3: how samples become tokens.")
@click.option("--recipe", metavar="NAME", help="Mixture shares of this recipe's stage over the datasets of a made corpus; with --stage.")
@click.option("--stage", help="The stage's name.")
@as_json_option
def stats_command(uri: str, tokenizer: str | None, template: str, recipe: str | None, stage: str | None, as_json: bool) -> None:
    """Counts, token and image histograms, shares by category, from the index alone; with --recipe and --stage the mixture's shares."""
    from stagecoach_workloads.data.dataset import open_dataset
    from stagecoach_workloads.data.plan.open import read_tokenizer
    from stagecoach_workloads.data.stats import dataset_stats, render_stats
    from stagecoach_workloads.data.templates import TEMPLATES

    if (recipe is None) != (stage is None):
        raise click.UsageError("--recipe and --stage belong together")
    if template not in TEMPLATES:
        raise click.UsageError(f"--template {template}: no such template; there are {', '.join(TEMPLATES)}")
    where = tokenizer or corpus_tokenizer(_uri(uri))
    reader = read_tokenizer(_uri(where)) if where else None
    found: list[dict[str, Any]] = [dataset_stats(open_dataset(address), reader, template) for address in dataset_uris(_uri(uri))]
    shares = mixture_of(recipe, stage, _uri(uri)) if recipe and stage else None
    if as_json:
        print_json({"datasets": found, "mixture": shares} if shares else found)
        return
    for stats in found:
        click.echo("\n".join(render_stats(stats)))
    for name, share in (shares or {}).items():
        epoch = f"{share['steps_per_epoch']:,.0f} steps" if share["steps_per_epoch"] is not None else "not begun in them"
        click.echo(f"{recipe} {stage}: {name}: weight {share['weight']:.1%}; of {share['steps']} steps {share['rows']:.1%} of rows, "
                   f"{share['samples']:.1%} of samples, {share['positions']:.1%} of positions, {share['images']:.1%} of images; "
                   f"an epoch of its {share['epoch_samples']:,} samples is {epoch}")  # fmt: skip


def corpus_tokenizer(uri: str) -> str | None:
    """The made corpus' own tokenizer; None when no made corpus stands at the URI."""
    from stagecoach.contract.dataset import CORPUS_KEY, read_corpus
    from stagecoach.storage import open_store

    store = open_store(uri)
    return store.uri_of(read_corpus(store).tokenizer) if store.exists(CORPUS_KEY) else None


def mixture_of(recipe: str, stage: str, uri: str) -> dict[str, dict[str, Any]]:
    """By source of the stage: its weight, what it is of the first steps, and how many steps go through it once."""
    from stagecoach_workloads.data.plan.open import open_data
    from stagecoach_workloads.data.stats import mixture_shares

    return mixture_shares(open_data(resolve_stage(recipe, stage, ()), data=uri).plan)


@data_group.command("plan")
@click.argument("recipe")
@click.option("--stage", required=True, help="The stage's name.")
@click.option("--data", "data_uri", metavar="URI", help="Root of a made corpus, for datasets whose URI is not in the recipe.")
@click.option("--steps", default="0:10", show_default=True, metavar="A:B", help="Steps A to B (excluded).")
@click.option("--ranks", default=1, show_default=True, type=click.IntRange(1, 100_000))
@click.option("--set", "settings", metavar="PATH=VALUE", multiple=True, help="Override a value of the recipe; repeatable.")
@as_json_option
def plan_command(recipe: str, stage: str, data_uri: str | None, steps: str, ranks: int, settings: tuple[str, ...], as_json: bool) -> None:
    """Which samples each step of a stage reads: hashes, fill, load by rank. `batch_hash` knows neither ranks nor workers."""
    from stagecoach_workloads.data.plan.open import open_data
    from stagecoach_workloads.data.plan.shares import ShareMeter

    first, last = parse_steps(steps)
    opened = open_data(resolve_stage(recipe, stage, settings), data=_uri(data_uri) if data_uri is not None else None)
    found = [opened.plan.describe(step, ranks) for step in range(first, last)]
    rows = [row for step in range(first, last) for row in opened.plan.batch(step)]
    shares, meter = opened.plan.shares(rows), ShareMeter(opened.plan)
    for step in range(first, last):
        meter.add(opened.plan.batch(step))
    matched = meter.report()
    if as_json:
        print_json({"steps": found, "shares": shares, "matched": matched, "dropped": opened.plan.dropped})
        return
    for item in found:
        load = item["load_by_rank"]
        click.echo(f"step {item['step']}: {item['batch_hash']}, {item['rows']} rows, {item['fill']:.1%} filled, {item['images']} images, "
                   f"{min(load)} to {max(load)} a rank")  # fmt: skip
    unit = "rows" if opened.stage.data.mixture.unit == "rows" else "samples"
    click.echo(f"shares of {unit}: " + ", ".join(f"{name} {share:.1%}" for name, share in shares[unit].items()))
    click.echo("shares by kind, and what the mixture wants: "
               + ", ".join(f"{kind} {got:.1%} ({wanted:.1%})" for kind, (got, wanted) in matched["kind"].items()))  # fmt: skip
    if matched["off"]:
        click.echo(f"further from the mixture than chance explains: {', '.join(matched['off'])}")
    if opened.plan.dropped:
        click.echo(f"{opened.plan.dropped} documents larger than a row were dropped")


def resolve_stage(recipe: str, stage: str, settings: tuple[str, ...]) -> "StagePlan":
    """The stage of a recipe, as `stagecoach plan --json` prints it: this room meets recipes in data only."""
    import subprocess
    from dataclasses import fields

    from stagecoach.contract.plan import StagePlan
    from stagecoach.contract.records import validate
    from stagecoach.errors import ConfigError

    overrides = [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "stagecoach.cli", "plan", recipe, "--json", *overrides], capture_output=True, text=True, check=False
    )
    try:
        stages = {item["name"]: item for item in json.loads(done.stdout)["stages"]}
    except ValueError:
        raise ConfigError(done.stderr.strip().removeprefix("stagecoach: ") or f"recipe {recipe} could not be resolved") from None
    if stage not in stages:
        raise ConfigError(f"--stage {stage}: {recipe} has {', '.join(stages)}")
    known = {field.name for field in fields(StagePlan)}
    return validate(StagePlan, {key: value for key, value in stages[stage].items() if key in known}, where=f"{recipe} {stage}")


def parse_steps(text: str) -> tuple[int, int]:
    """ "A:B" as numbers."""
    from stagecoach.contract.names import whole_number

    first, colon, last = text.partition(":")
    begin, end = whole_number(first), whole_number(last)
    if not colon or begin is None or end is None or begin >= end:
        raise click.UsageError(f"--steps {text}: two numbers A:B with A < B, like 0:10")
    return begin, end


def dataset_uris(uri: str) -> list[str]:
    """The dataset at the URI, or every dataset of the made corpus there. Raises DataError when there is neither."""
    from stagecoach.contract.dataset import CORPUS_KEY, read_corpus
    from stagecoach.storage import open_store

    store = open_store(uri)
    if not store.exists(CORPUS_KEY):
        return [uri]
    corpus = read_corpus(store)
    return [store.uri_of(folder) for split in (corpus.datasets, corpus.validation, corpus.test) for folder in split.values()]


def _uri(text: str) -> str:
    """`stagecoach.storage.as_uri`; storage is imported when a command runs."""
    from stagecoach.storage import as_uri

    return as_uri(text)


@contextmanager
def progress(doing: str) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr: the yielded function takes what, done, of."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    with Progress(console=Console(stderr=True), transient=True) as bar:
        known: dict[str, TaskID] = {}

        def report(what: str, done: int, of: int) -> None:
            if what not in known:
                for task in known.values():
                    bar.remove_task(task)
                known.clear()
                known[what] = bar.add_task(f"{doing} {what}", total=of)
            bar.update(known[what], completed=done, total=of)

        yield report


def print_json(value: object) -> None:
    click.echo(json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False))
