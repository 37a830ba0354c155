"""Where every value of a recipe comes from: `stagecoach plan R --sources`.

A source is a tag of the project's reading list, its grade, and where it stands or why we chose it. Grades: A a paper's text or published
code, B second-hand by people, C second-hand by machines, RU recalled and not verified, ours where the papers are silent. Rules are tried
in order: of the recipe, of its family, common to all; the first whose pattern fits the path holds. There is no catch-all: a new
field without a rule fails a test.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from stagecoach.recipes import recipe_function
from stagecoach.recipes.resolve import Resolved, leaves
from stagecoach.recipes.sources_blip3 import BLIP3
from stagecoach.recipes.sources_mm1 import MM1, MM1_5, MM1_5_VARIANTS, MM1_VARIANTS
from stagecoach.recipes.sources_tiny import TINY

TAGS = {
    "S0": ("A", "MM1.5, ICLR 2025, section 2.1 (excerpt)"),
    "S1": ("A", "MM1, ECCV 2024, body of the paper"),
    "S2": ("B", "news article on MM1.5"),
    "S3": ("B", "summary of xGen-MM v1"),
    "B4": ("A", "BLIP-3, arXiv:2408.08872v4, full text"),
    "OR": ("A-", "ICLR 2025 reviews of MM1.5"),
    "LAVIS": ("A", "github.com/salesforce/LAVIS, branch xgen-mm, d699f7e"),
    "HB": ("A", "github.com/kakaobrain/honeybee, 68a8d84"),
    "TIMM": ("A", "github.com/huggingface/pytorch-image-models, regnet.py"),
    "LV": ("A", "github.com/haotian-liu/LLaVA, c121f04"),
    "AKI": ("B", "github.com/sony/aki, c764231 (third party)"),
    "AX": ("A", "github.com/apple/axlearn (the framework; not MM1's configuration)"),
    "HFM": ("A", "model cards Salesforce/xgen-mm-phi3-mini-*"),
    "HFK": ("A", "dataset card Salesforce/blip3-kale"),
    "HF": ("A", "the published model's configuration on Hugging Face"),
    "I2": ("A", "Idefics2, arXiv:2405.02246"),
    "L1": ("B+", "linsight.cn, notes on MM1 and MM1.5"),
    "N1": ("B-", "machine-written ECCV note on MM1, with appendix facts"),
    "BJ": ("B", "blog.bayjarvis.com on MM1"),
    "M1": ("B", "Medium, Papers Explained 190"),
    "R1": ("B-", "machine-written notes on MM1.5"),
    "R3": ("C+", "long machine-written review of MM1.5, contaminated"),
    "BN": ("B", "Chinese notes on xGen-MM v1"),
    "RU": ("RU", "recalled, unverified"),
    "derived": ("derived", "computed from values with sources"),
    "contract": ("contract", "what this field means here; not a choice"),
    "ours": ("ours", "the papers are silent"),
}


@dataclass(frozen=True, slots=True)
class Source:
    """`tag` (several joined by +), its grade (the weakest of them), where it stands or why we chose so."""

    tag: str
    grade: str
    where: str


@dataclass(frozen=True, slots=True)
class Sourced:
    """One value of a plan and its source."""

    path: str
    value: Any
    source: Source


PUBLISHED = ("edition", "final")  # arguments that choose another published recipe: the rules' sources hold for its values
GRADES = ("set", "contract", "A", "A-", "B+", "B", "B-", "C+", "derived", "RU", "ours")  # from firm to soft

COMMON: tuple[tuple[str, str, str], ...] = (
    ("*.name", "contract", "what settings, folders and the mixture call it"),
    ("*.seed", "ours", "MM1 says that the data's order changed results; any fixed seed will do"),
    ("*.code", "contract", "digest of the researcher's own code; none in a recipe"),
    ("*.init.kind", "contract", "which of parent, pretrained, random"),
    ("*.init.stage", "contract", "the stage before it in the paper"),
    ("*.init.checkpoint", "contract", "pinned when a run is made; none in a recipe"),
    ("*.init.digest", "contract", "pinned when a run is made; none in a recipe"),
    ("*.duration.kind", "contract", "the paper's own unit: steps, epochs or tokens"),
    ("*.batch.unit", "contract", "rows where the paper counts packed sequences, samples where it counts examples"),
    ("*.data.mixture.unit", "contract", "what is drawn by the weights: see the weights"),
    ("*.data.mixture.weights.*.dataset", "contract", "a name in data.datasets"),
    ("*.data.datasets.*.uri", "contract", "pinned when a run is made; none in a recipe"),
    ("*.data.datasets.*.fingerprint", "contract", "pinned when a run is made; none in a recipe"),
    ("*.data.datasets.*.validation_uri", "contract", "pinned when a run is made; none in a recipe"),
    ("*.data.datasets.*.kind", "contract", "how its samples are laid out"),
    ("*.data.datasets.*.category", "contract", "the category its scores are told under"),
    ("*.data.datasets.*.stats.tiles_per_image", "ours", "not published: what a 640 x 480 photo gives under the stage's split"),
    ("*.data.datasets.*.stats.images", "ours", "per-set means are not published; for costs only, `dataset.json` has the real ones"),
    ("*.data.datasets.*.stats.text_tokens", "ours", "per-set means are not published; for costs only, `dataset.json` has the real ones"),
    ("*.data.datasets.*.stats.*_bytes", "ours", "typical stored sizes; for costs only, `dataset.json` has the real ones"),
    ("*.data.datasets.*.stats.frames", "contract", "frames a clip is stored with; see data.frames"),
    ("*.data.packing.window_rows", "ours", "a window this long packs 98 % and more; nothing is learned from it"),
    ("*.data.packing.shuffle_blocks", "ours", "blocks in the shuffle's window: trade of reads against mixing"),
    ("*.data.tokenizer", "contract", "none: the one beside the decoder's weights, or the made corpus' own"),
    ("*.data.tokenizer_fingerprint", "contract", "pinned when a run is made; none in a recipe"),
    ("*.model.encoder.feature_layer", "HB", "recipes.md 1.1: the last layer's patches feed the connector"),
    ("*.model.connector.mlp_ratio", "LAVIS", "recipes.md 3.1: feed-forward x 4; used by perceiver and attention pool only"),
    ("*.model.decoder.*_bias", "ours", "no biases, as Llama; not stated in the papers, and Phi-3 has none"),
    ("*.model.decoder.rope_theta", "ours", "rotary is ours for MM1 (nothing is disclosed); 10,000 is Llama's and Phi-3's"),
    ("*.model.decoder.rope_scaling", "contract", "none: no stage goes beyond the decoder's own length"),
    ("*.model.decoder.norm_eps", "ours", "RMSNorm's usual 1e-5, also Phi-3's"),
    ("*.optimizer.beta1", "ours", "0.9 everywhere it is known (AX default, PyTorch's); Adafactor runs without momentum and ignores it"),
    ("*.optimizer.decay_rate", "ours", "Adafactor's published 0.8; the papers give no constants"),
    ("*.optimizer.clipping_threshold", "ours", "Adafactor's published 1.0; the papers give no constants"),
    ("*.schedule.kind", "N1", "recipes.md 1.5, 1.6: cosine; S0 says cosine to 0 for MM1.5, LAVIS for xGen-MM"),
    ("*.loss.kind", "contract", "cross-entropy, or dpo in the stage of that name"),
    ("*.loss.dpo_beta", "ours", "recipes.md 3.4: not found; DPO's usual 0.1"),
    ("*.loss.noised_image_step", "BN", "recipes.md 3.4: an extra dispreferred response from a noised image in a second step"),
    ("*.layout.*", "ours", "how many GPUs and how the work is shared is not published; chosen to fit 80 GB and to hide the network"),
    ("*.checkpoint.*", "ours", "not published; near the interval `plan` advises"),
    ("*.evaluation.validate_every_steps", "ours", "not published; a few dozen points a curve"),
    ("*.evaluation.validation_samples", "ours", "not published; the same samples each time"),
    ("*.resources.*", "ours", "the machine is not published; costs can be had for others with --hardware"),
    ("*.kind", "contract", "which stage of the paper this is"),
)

_FAMILIES = {"mm1": MM1, "mm1_5": MM1_5, "blip3": BLIP3}
_VARIANTS = {**MM1_VARIANTS, **MM1_5_VARIANTS}


def find_source(recipe: str, family: str, path: str) -> Source | None:
    """The source of one value of the recipe's defaults, or None when no rule fits."""
    for pattern, tag, where in rules_of(recipe, family):
        if fnmatchcase(path, pattern):
            return Source(tag, weakest(tag), where)
    return None


def rules_of(recipe: str, family: str) -> tuple[tuple[str, str, str], ...]:
    """All rules for a recipe, in the order they are tried."""
    tiny = TINY if recipe.endswith(("_tiny", "_tiny_moe")) else ()
    return (*tiny, *_VARIANTS.get(recipe, ()), *_FAMILIES[family], *COMMON)


def weakest(tag: str) -> str:
    """The softest grade of the tags joined by +."""
    return max((TAGS[part][0] for part in tag.split("+")), key=GRADES.index)


def sources_of(resolved: Resolved) -> Iterator[Sourced]:
    """Every value of the plan, in order. What was set, or follows from an argument, says so instead."""
    set_by = {setting.path: setting.text for setting in (*resolved.inherited, *resolved.settings)}
    arguments = " ".join(f"{name}={value}" for name, value in resolved.arguments.items())
    published = {name: value for name, value in resolved.arguments.items() if name in PUBLISHED}
    default = leaves(recipe_function(resolved.recipe)(**published))
    for path, value in leaves(resolved.plan).items():
        yield Sourced(path, value, _source(resolved, path, value, set_by, arguments, default))


def _source(resolved: Resolved, path: str, value: Any, set_by: dict[str, str], arguments: str, default: dict[str, Any]) -> Source:
    if asked := next((text for where, text in set_by.items() if path == where or path.startswith(where + ".")), None):
        return Source("set", "set", asked)
    if default.get(path, ...) != value:
        return Source("set", "set", f"follows from {arguments or 'the settings'}")
    found = find_source(resolved.recipe, resolved.plan.family, path)
    if found is None:
        raise LookupError(f"{resolved.recipe}: no source for {path}; add a rule to recipes/sources*.py")
    return found
