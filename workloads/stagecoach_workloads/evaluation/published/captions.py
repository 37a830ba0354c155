"""COCO captions and TextCaps: an image and several people's captions, scored by CIDEr."""

from collections import defaultdict
from collections.abc import Iterator

from stagecoach_workloads.evaluation.published.folder import Folder, asked, texts_of
from stagecoach_workloads.evaluation.question import Picture, Question


def coco(folder: Folder, *, train: bool) -> Iterator[Question]:
    """Parquet rows (`question_id`, `image`, `answer`: the captions), or COCO's own `captions_*.json` (`images`: `id`, `file_name`;
    `annotations`: `image_id`, `caption`) with the images beside it."""
    own = [key for key in folder.keys(train=train) if key.rpartition("/")[2].startswith("captions_") and key.endswith(".json")]
    if own:
        for key in own:
            yield from _instances(folder, key)
        return
    for where, row in folder.rows("image", "answer", train=train):
        if captions := texts_of(row["answer"]):
            yield _caption("coco_captions", str(row.get("question_id") or where), folder.image(row), captions)


def textcaps(folder: Folder, *, train: bool) -> Iterator[Question]:
    """Parquet rows (`image_id`, `image`, `caption_str`: the captions), or TextCaps' own JSON (`data`: `image_id`, `reference_strs`)."""
    told: set[str] = set()
    for where, row in folder.rows("image_id", train=train):
        captions = texts_of(row.get("reference_strs")) or texts_of(row.get("caption_str"))
        name = str(row["image_id"])
        if not captions or name in told:  # its own JSON repeats an image for each caption
            continue
        told.add(name)
        picture = folder.image(row, f"{name}.jpg", f"{name}.png")
        yield _caption("textcaps", f"{name}@{where}", picture, captions)


def _instances(folder: Folder, key: str) -> Iterator[Question]:
    loaded = folder.json(key)
    captions: dict[int, list[str]] = defaultdict(list)
    for annotation in loaded.get("annotations", []):
        captions[annotation["image_id"]] += texts_of(annotation["caption"])
    for image in loaded.get("images", []):
        if captions.get(image["id"]):
            yield _caption("coco_captions", str(image["id"]), folder.image({}, image["file_name"]), captions[image["id"]])


def _caption(name: str, number: str, picture: Picture, captions: list[str]) -> Question:
    return Question(
        id=f"{name}/{number}", category=name, metric="cider", form="caption", turns=asked({"image": 0}), answer=captions[0].strip(),
        gold={"answers": captions}, images=(picture,),
    )  # fmt: skip
