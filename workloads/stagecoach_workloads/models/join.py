"""Image features into their places among tokens. B rows, T positions, D model width, N images, C positions of one image.

`image_slots` has one line per image, in the order of the stacked images: row, first position, number of positions. It stays on the CPU:
counts are checked there without waiting for the device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stagecoach.errors import DataError


def slot_positions(image_slots_N3: Tensor, *, length: int) -> Tensor:
    """Returns the places_M (int64) of all images' positions in the flattened B x T, image by image."""
    row_N, start_N, count_N = image_slots_N3.to("cpu", torch.int64).unbind(1)
    total = int(count_N.sum())
    begin_N = count_N.cumsum(0) - count_N
    within_M = torch.arange(total) - begin_N.repeat_interleave(count_N)
    return (row_N * length + start_N).repeat_interleave(count_N) + within_M


def check_slots(
    image_slots_N3: Tensor, *, num_images: int, tokens_per_image: int, rows: int, length: int, sample_ids: Sequence[object] | None = None
) -> None:
    """Raises DataError, naming the row's sample, when slots and images do not match, leave the row, or overlap."""
    slots = image_slots_N3.tolist()
    if len(slots) != num_images:
        raise DataError(f"{len(slots)} image slots for {num_images} images; each stacked image needs one line (row, start, count)")
    taken: dict[int, list[tuple[int, int]]] = {}
    for row, start, count in slots:
        if not 0 <= row < rows:
            raise DataError(f"image slot ({row}, {start}, {count}) names row {row} of {rows}; collate slots with their rows")
        where = describe_row(row, sample_ids)
        if count != tokens_per_image:
            raise DataError(
                f"{where}: a slot of {count} positions at {start}, but the connector makes {tokens_per_image} an image; "
                "build the data with this plan's connector.tokens"
            )
        if start < 0 or start + count > length:
            raise DataError(f"{where}: an image at positions {start} to {start + count} of a row of {length}; pack whole images only")
        taken.setdefault(row, []).append((start, start + count))
    for row, spans in taken.items():
        for (_, end), (start, _) in zip(sorted(spans), sorted(spans)[1:], strict=False):
            if start < end:
                raise DataError(f"{describe_row(row, sample_ids)}: two images share position {start}; each needs positions of its own")


def check_placeholders(
    tokens_BT: Tensor, image_slots_N3: Tensor | None, *, image_token: int, sample_ids: Sequence[object] | None = None
) -> None:
    """Raises DataError, naming the sample, unless each row has the image token exactly at its slots. For batches still on the CPU."""
    expected_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    if image_slots_N3 is not None and len(image_slots_N3):
        expected_BT.view(-1)[slot_positions(image_slots_N3, length=tokens_BT.shape[1])] = True
    actual_BT = tokens_BT == image_token
    if torch.equal(actual_BT, expected_BT):
        return
    row = int((actual_BT != expected_BT).any(1).nonzero()[0])
    first = int((actual_BT[row] != expected_BT[row]).nonzero()[0])
    raise DataError(
        f"{describe_row(row, sample_ids)}: {int(actual_BT[row].sum())} image tokens (id {image_token}) but images for "
        f"{int(expected_BT[row].sum())} positions, first different at {first}; one placeholder per position of each image"
    )


def describe_row(row: int, sample_ids: Sequence[object] | None) -> str:
    """The row by its samples, as far as they are known."""
    if sample_ids is None or row >= len(sample_ids):
        return f"row {row}"
    known = sample_ids[row]
    return f"row {row} (sample {known if isinstance(known, str | int) else ', '.join(map(str, known))})"  # type: ignore[call-overload]


def place_features(embeddings_BTD: Tensor, features_NCD: Tensor, image_slots_N3: Tensor) -> Tensor:
    """Returns embeddings_BTD with the images' features in their slots."""
    B, T, D = embeddings_BTD.shape
    places_M = slot_positions(image_slots_N3, length=T).to(embeddings_BTD.device, non_blocking=True)
    features_MD = features_NCD.reshape(-1, D).to(embeddings_BTD.dtype)
    return embeddings_BTD.reshape(B * T, D).index_copy(0, places_M, features_MD).view(B, T, D)
