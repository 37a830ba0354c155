"""Where held-out documents are cut, and the boxes that texts name."""

import numpy as np
import pytest
import torch

from stagecoach_workloads.data.work.collate import IGNORE_INDEX, Batch
from stagecoach_workloads.models.prompts import Prompt, PromptImage
from stagecoach_workloads.train.samples import boxes_in, examples_of, picture

IMAGE = 9  # the placeholder's number
NO = IGNORE_INDEX


def batch(labels_BT: list[list[int]]) -> Batch:
    """One row: a document of an image in two positions and three words, one of four words, padding."""
    ids_BT = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, -1]])
    return Batch(
        tokens_BT=torch.tensor([[1, IMAGE, IMAGE, 4, 5, 6, 1, 7, 8, 2, 0]]), labels_BT=torch.tensor(labels_BT), document_ids_BT=ids_BT,
        positions_BT=ids_BT.clamp(min=0), pixel_values=[torch.full((1, 3, 8, 8), 50, dtype=torch.uint8)],
        image_slots=torch.tensor([[0, 1, 2]]), image_regions=torch.tensor([[0, 0, 4, 8]]), pairs_P3=torch.zeros(0, 3, dtype=torch.int64),
        num_targets=5, num_images=1, sample_ids=[["a", "b"]], document_sources=[[3, 1]],
    )  # fmt: skip


def test_documents_are_cut_behind_their_image_or_in_their_middle() -> None:
    seen, told = examples_of(batch([[NO, NO, 4, 5, 6, NO, 7, 8, 2, NO, NO]]), answers_only=False)
    assert (seen.name, seen.source, list(seen.prompt.tokens), list(seen.target)) == ("a", 3, [1, IMAGE, IMAGE], [4, 5, 6])
    assert [(image.position, image.region) for image in seen.prompt.images] == [(1, (0, 0, 4, 8))]
    assert (told.name, told.source, list(told.prompt.tokens), list(told.target)) == ("b", 1, [1, 7, 8], [2])
    assert not told.prompt.images


def test_where_answers_alone_are_learned_the_question_belongs_to_the_prompt() -> None:
    seen, told = examples_of(batch([[NO, NO, NO, NO, 6, NO, NO, 8, 2, NO, NO]]), answers_only=True)
    assert (list(seen.prompt.tokens), list(seen.target)) == ([1, IMAGE, IMAGE, 4, 5], [6])
    assert (list(told.prompt.tokens), list(told.target)) == ([1, 7], [8, 2])


def test_a_document_without_targets_is_no_example() -> None:
    assert list(examples_of(batch([[NO] * 11]), answers_only=False)) == []


def test_boxes_of_a_text_are_on_a_canvas_of_a_thousand() -> None:
    assert boxes_in("at [0, 250, 500, 1000] and [1,2,3]", 20, 40) == [(0.0, 10.0, 10.0, 40.0)]


@pytest.mark.parametrize(("tiles", "is_drawn_on"), [(1, True), (2, False)])
def test_true_and_predicted_boxes_are_drawn_where_the_image_is_one_tile(tiles: int, is_drawn_on: bool) -> None:
    image = PromptImage(pixels_CHW=torch.zeros(3, 64, 64, dtype=torch.uint8), position=1, region=(0, 0, 32, 64))
    shown_HWC = picture(Prompt(tokens=[1, IMAGE], images=[image] * tiles), "[100, 500, 400, 900]", "maybe [500, 500, 900, 900]")
    assert shown_HWC.shape == (32, 64, 3)
    colours = {tuple(pixel) for pixel in np.unique(shown_HWC.reshape(-1, 3), axis=0).tolist()}
    assert ({(230, 25, 75), (60, 180, 75)} <= colours) == is_drawn_on
