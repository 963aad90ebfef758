"""Pictures: masks drawn on their images, in strips and sheets; the README's from a finished run."""

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmnet.data.dataset import evaluation_items, read_mask
from mmnet.data.loader import read
from mmnet.evaluate.pictures import BLUE, ORANGE, SIDE, comparison, overlay, sheet, strip
from mmnet.evaluate.predict import predict, predict_masks, predict_splits
from mmnet.model.build import build_model
from support.tiny import ROOT, Tiny
from support.training import identity_like, inputs_of, run_in

CPU = torch.device("cpu")


def picture_of(height: int, width: int) -> Tensor:
    return torch.full((3, height, width), 128, dtype=torch.uint8)


def count(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == colour).all(-1).sum())


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6000), (6000, 4000), (7, 5), (480, 640)])
def test_images_of_any_size_are_drawn(height: int, width: int) -> None:
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[height // 2 :, width // 2 :] = True
    drawn = overlay(picture_of(height, width), mask, ORANGE)
    assert max(drawn.size) == SIDE
    assert drawn.width / drawn.height == pytest.approx(
        max(1 / SIDE, min(SIDE, width / height)), rel=0.01
    )
    assert count(drawn, ORANGE) > 0
    assert max(comparison("x", picture_of(height, width), mask, {}).size) < 3 * SIDE


def test_a_mask_is_tinted_inside_outlined_and_paled_outside() -> None:
    mask = torch.zeros(240, 240, dtype=torch.bool)
    mask[60:120, 80:160] = True
    image = torch.zeros(3, 240, 240, dtype=torch.uint8)
    image[0] = 200
    drawn = np.asarray(overlay(image, mask, BLUE)).astype(int)
    assert (drawn[60:62, 80:160] == BLUE).all()
    assert (drawn[60:120, 158:160] == BLUE).all()
    assert (drawn[59, 80:160] == 255).all()
    assert (drawn[70:110, 90:150] == [round(0.7 * 200), round(0.3 * 114), round(0.3 * 178)]).all()
    outside = drawn[130:]
    assert (outside == outside[0, 0, 0]).all()  # grey
    assert outside[0, 0, 0] > 140


def test_empty_and_full_masks_are_drawn() -> None:
    image = picture_of(30, 40)
    nothing = overlay(image, torch.zeros(30, 40, dtype=torch.bool), BLUE)
    assert count(nothing, BLUE) == 0
    whole = overlay(image, torch.ones(30, 40, dtype=torch.bool), BLUE)
    assert count(whole, BLUE) == 2 * 2 * (240 + 180) - 4 * 4  # two pixels along the border
    speck = torch.zeros(2000, 2000, dtype=torch.bool)
    speck[500:504, 700:704] = True
    assert count(overlay(picture_of(2000, 2000), speck, BLUE), BLUE) > 0


@pytest.mark.parametrize(
    "sentence",
    ["", "word", "many words " * 100, "x" * 3000, "naïve café", "赤い\n\u0000 \ud800 🐶"],
)
def test_any_sentence_is_a_title_within_the_strips_width(sentence: str) -> None:
    tile = Image.new("RGB", (100, 60), "red")
    drawn = strip(sentence, {"one": tile, "two": tile})
    assert drawn.width == 208
    assert drawn.height <= 60 + 2 * 21 + 4 + 19
    assert count(drawn, (255, 0, 0)) == 2 * 100 * 60


def test_accents_are_left_out_where_the_font_lacks_them() -> None:
    tile = Image.new("RGB", (300, 60), "red")
    plain, accented = strip("naive cafe", {"one": tile}), strip("naïve café", {"one": tile})
    assert np.array_equal(np.asarray(plain), np.asarray(accented))


def test_a_sheet_has_room_for_all_its_pictures() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    small, wide, tall = (
        Image.new("RGB", size, colour)
        for size, colour in zip([(10, 10), (50, 10), (10, 90)], colours, strict=True)
    )
    drawn = sheet([[small, wide], [tall]])
    assert [count(drawn, colour) for colour in colours] == [100, 500, 900]


def test_the_masks_of_chosen_sentences_are_those_that_are_counted(tiny: Tiny) -> None:
    torch.manual_seed(0)
    model = build_model(tiny.config.model, tiny.config.tower, weights=None)
    items = evaluation_items(tiny.config, tiny.table, tiny.images, splits=["val"])
    rows = predict(model, read(items, batch_size=None, workers=0), threshold=0.35, device=CPU)
    chosen = [int(sent_id) for sent_id in rows["sent_id"][::3]]
    masks = predict_masks(
        model,
        read(items, batch_size=None, workers=0),
        sent_ids=chosen,
        threshold=0.35,
        device=CPU,
    )
    assert sorted(masks) == sorted(chosen)
    merged = pd.merge(rows, items.rows[["sent_id", "counts", "height", "width"]], on="sent_id")
    for row in merged[merged["sent_id"].isin(chosen)].itertuples():
        truth = read_mask(row.counts, row.height, row.width)
        assert row.intersection == int((masks[row.sent_id] & truth).sum())
        assert row.union == int((masks[row.sent_id] | truth).sum())


def test_the_pictures_of_the_readme_are_drawn_from_a_finished_run(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    examples = importlib.import_module("make_pictures").examples
    torch.manual_seed(0)
    model = build_model(tiny.config.model, tiny.config.tower, weights=None)
    run, inputs = run_in(tmp_path, tiny.config), inputs_of(tiny)
    run.folder.mkdir(parents=True)
    content = {"model": model.state_dict(), "identity": identity_like(tiny.config)}
    torch.save(content, run.checkpoint)
    predict_splits(tiny.config, inputs, checkpoint=run.checkpoint, output=run.rows, device=CPU)
    drawn = examples(tiny.config, run, inputs)
    assert len(drawn) == 3
    assert all(count(picture, BLUE) > 50 for picture in drawn)


def test_arrays_are_drawn_as_tensors_are() -> None:
    image = torch.randint(0, 255, (3, 30, 40), dtype=torch.uint8)
    mask = torch.rand(30, 40) > 0.5
    drawn = overlay(image, mask, BLUE)
    assert np.array_equal(drawn, overlay(image.numpy(), mask.numpy(), BLUE))
    as_strided = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # as decoded images lie
    assert np.array_equal(drawn, overlay(as_strided, mask, BLUE))
