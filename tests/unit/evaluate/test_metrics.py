"""Evaluation: counts at the original size, IoU both ways, and checkpoints that may be trusted."""

import io
import json
import math
import os
import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.io import write_png

from mmnet.config.schema import Config
from mmnet.data.dataset import EvaluationItems, evaluation_items, read_mask, read_square
from mmnet.data.loader import read
from mmnet.data.refer import read_table
from mmnet.data.transforms import logits_to_image, mask_to_grid, normalise, place
from mmnet.evaluate.metrics import METRICS, iou, score, score_run
from mmnet.evaluate.predict import predict, predict_splits
from mmnet.model import checkpoint
from mmnet.model.build import build_model
from mmnet.model.mask_projector import Made
from mmnet.model.mmnet import Queries
from mmnet.runtime.errors import CheckpointError, DataError
from support.tiny import SLICE, Tiny
from support.training import identity_like, inputs_of

CPU = torch.device("cpu")
SPLITS = ["val", "testA", "testB"]


def counts(*pairs: tuple[int, int]) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=["intersection", "union"])


# Metrics.


def test_metrics_are_those_counted_by_hand() -> None:
    scores = score(counts((1, 2), (3, 4), (0, 10), (95, 100)))
    assert set(scores) == set(METRICS)
    assert scores["mIoU"] == pytest.approx((0.5 + 0.75 + 0 + 0.95) / 4)
    assert scores["oIoU"] == pytest.approx(99 / 116)
    # 0.5 itself is not more than 0.5.
    assert [scores[f"Pr@0.{x}"] for x in range(5, 10)] == [0.5, 0.5, 0.5, 0.25, 0.25]


def test_two_empty_masks_agree() -> None:
    assert list(iou(counts((0, 0), (0, 3)))) == [1, 0]


def test_each_split_is_scored_by_its_own_rows(tiny: Tiny, tmp_path: Path) -> None:
    splits = ["val", "val", "testA", "testB", "train"]
    rows = counts((1, 2), (3, 4), (1, 4), (4, 4), (0, 9)).assign(split=splits)
    rows.attrs["config"] = tiny.config.prediction_values()
    rows.to_parquet(tmp_path / "rows.parquet")
    scores = score_run(tiny.config, rows=tmp_path / "rows.parquet")
    assert list(scores["splits"]) == SPLITS
    assert [scores["splits"][split]["sentences"] for split in SPLITS] == [2, 1, 1]
    assert [scores["splits"][split]["mIoU"] for split in SPLITS] == [0.625, 0.25, 1.0]
    assert (scores["experiment"], scores["seed"]) == ("refcoco_vit_b", 0)
    rows[rows["split"] != "testB"].to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="has no split 'testB'"):
        score_run(tiny.config, rows=tmp_path / "rows.parquet")


def test_rows_of_other_values_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    evaluate = tiny.config.evaluate.model_copy(update={"threshold": 0.5})
    rows = counts((1, 2), (1, 4), (4, 4)).assign(split=SPLITS)
    rows.attrs["config"] = tiny.config.model_copy(update={"evaluate": evaluate}).prediction_values()
    rows.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="different parameters"):
        score_run(tiny.config, rows=tmp_path / "rows.parquet")


# Prediction.


class Known:
    """A model whose logits are a plain function of image and words, and which counts its calls."""

    has_scores = False

    def __init__(self) -> None:
        self.images, self.sentences = 0, 0

    def eval(self) -> None:
        pass

    def encode_image(self, images: Tensor) -> tuple[Tensor, ...]:
        self.images += len(images)
        return (F.adaptive_avg_pool2d(images, 16).mean(1),) * 5

    def read(self, features: Any, tokens: Tensor) -> Queries:
        self.sentences += len(tokens)
        pairs = zip(features.v2, tokens, strict=True)
        return with_masks([known_logits(means, row) for means, row in pairs])


def with_masks(y: list[Tensor]) -> Queries:
    """One query that makes these masks, without MMP."""
    one = torch.ones(len(y), 1, 1)
    return Queries(one, one, Made(torch.stack(y), one[..., 0], None, one))


def known_logits(means: Tensor, tokens: Tensor) -> Tensor:
    wave = torch.arange(16.0)[:, None] * int(tokens.sum()) % 7 - torch.arange(16.0) % 5
    return means + wave / 5


def predicted(model: Known, tiny: Tiny, splits: list[str], threshold: float) -> pd.DataFrame:
    items = evaluation_items(tiny.config, tiny.table, tiny.images, splits=splits)
    batches = read(items, batch_size=None, workers=0)
    return predict(model, batches, threshold=threshold, device=CPU)  # type: ignore[arg-type]


def mask_literally(logits: Tensor, height: int, width: int, threshold: float) -> Tensor:
    """Sigmoid everything at the original size, each pixel sought in the square on its own."""
    placement = place(height, width, 64, "letterbox")
    y = placement.top + (torch.arange(height) + 0.5) / height * placement.inner_height
    x = placement.left + (torch.arange(width) + 0.5) / width * placement.inner_width
    where = torch.stack(torch.meshgrid(x / 32 - 1, y / 32 - 1, indexing="xy"), dim=-1)
    sampled = F.grid_sample(
        logits[None, None], where[None], padding_mode="border", align_corners=False
    )
    return sampled[0, 0].sigmoid() > threshold


def test_counts_are_those_of_whole_masks_at_the_original_size(tiny: Tiny) -> None:
    model, threshold = Known(), 0.6
    rows = predicted(model, tiny, SPLITS, threshold).set_index("sent_id")
    # An image is encoded once for all its sentences.
    assert model.images == rows["image_id"].nunique() < model.sentences == len(rows)
    table = read_table(tiny.table, SPLITS)
    assert sorted(rows.index) == sorted(table["sent_id"])
    tokens = evaluation_items(tiny.config, tiny.table, tiny.images, splits=SPLITS)
    words = dict(zip(tokens.rows["sent_id"], tokens.tokens, strict=True))
    for expected in table.itertuples():
        image = read_square(
            tiny.images / expected.file, place(expected.height, expected.width, 64, "letterbox")
        )
        means, *_ = Known().encode_image(normalise(image[None]))
        logits = known_logits(means[0], words[expected.sent_id])
        found = mask_literally(logits, expected.height, expected.width, threshold)
        truth = read_mask(expected.counts, expected.height, expected.width)
        row = rows.loc[expected.sent_id]
        assert row["intersection"] == int((found & truth).sum())
        assert row["union"] == int((found | truth).sum())
        for key in ("split", "ref_id", "ann_id", "image_id"):
            assert row[key] == getattr(expected, key)
    assert 0 < rows["intersection"].sum() < rows["union"].sum()


def test_a_splits_rows_are_the_same_with_or_without_other_splits(tiny: Tiny) -> None:
    torch.manual_seed(0)
    model = build_model(tiny.config.model, tiny.config.tower, weights=None)
    among = predicted(model, tiny, SPLITS, 0.35)  # type: ignore[arg-type]
    alone = predicted(model, tiny, ["val"], 0.35)  # type: ignore[arg-type]
    of_val = among[among["split"] == "val"].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_val, alone)


# The whole path of evaluation, from chosen logits to scores, against a literal reading of
# reading 1 (docs/readings.md).


class Chosen:
    """A model that gives each sentence, in order, the logits chosen for it."""

    has_scores = False

    def __init__(self, logits: list[Tensor]) -> None:
        self.logits = iter(logits)

    def eval(self) -> None:
        pass

    def encode_image(self, images: Tensor) -> tuple[Tensor, ...]:
        return (images[:, 0, 0, 0],) * 5

    def read(self, features: Any, tokens: Tensor) -> Queries:
        return with_masks([next(self.logits) for _ in tokens])


def rows_of(table: pd.DataFrame, images: Path, logits: list[Tensor], size: int) -> pd.DataFrame:
    """Predict with chosen logits, one for each row of a table in the order of its sentences."""
    items = EvaluationItems(
        table.attrs["path"],
        images,
        splits=["val"],
        batch_size=5,
        image_size=size,
        resize="letterbox",
        max_length=17,
    )
    batches = read(items, batch_size=None, workers=0)
    model = Chosen(logits)
    return predict(model, batches, threshold=0.35, device=CPU)  # type: ignore[arg-type]


def write_table(path: Path, objects: list[dict[str, Any]]) -> pd.DataFrame:
    """Write a row of `val` per object: its image, file, height, width and mask's RLE."""
    table = pd.DataFrame(objects).sort_values("image_id", kind="stable", ignore_index=True)
    names = ("ref_id", "ann_id", "sent_id", "category_id")
    table = table.assign(split="val", sentence="a thing", **dict.fromkeys(names, table.index))
    table.to_parquet(path)
    table.attrs["path"] = path
    return table


def encode(mask: Tensor) -> dict[str, Any]:
    rle: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return rle


def counted_literally(found: list[list[bool]], truth: list[list[bool]]) -> tuple[int, int]:
    intersection = union = 0
    for found_row, truth_row in zip(found, truth, strict=True):
        for is_found, is_true in zip(found_row, truth_row, strict=True):
            if is_found and is_true:
                intersection += 1
            if is_found or is_true:
                union += 1
    return intersection, union


def scored_literally(pairs: list[tuple[int, int]]) -> dict[str, float]:
    ious = [Fraction(i, u) if u else Fraction(1) for i, u in pairs]
    scores = {
        "mIoU": sum(ious) / len(ious),
        "oIoU": Fraction(sum(i for i, _ in pairs), sum(u for _, u in pairs)),
    }
    for tenths in (5, 6, 7, 8, 9):
        above = [value for value in ious if value > Fraction(tenths, 10)]
        scores[f"Pr@0.{tenths}"] = Fraction(len(above), len(ious))
    return {name: float(value) for name, value in scores.items()}


def blank() -> Tensor:
    return torch.zeros(32, 32, dtype=torch.bool)


def with_rectangle(top: int, bottom: int, left: int, right: int) -> Tensor:
    mask = blank()
    mask[top:bottom, left:right] = True
    return mask


def adversarial_pairs() -> list[tuple[Tensor, Tensor]]:
    frame = ~with_rectangle(1, 31, 1, 31)
    whole, pixel = ~blank(), with_rectangle(31, 32, 0, 1)
    pairs = [
        (blank(), with_rectangle(3, 9, 4, 20)),  # nothing found
        (whole, with_rectangle(3, 9, 4, 20)),
        (whole, whole),
        (pixel, pixel),
        (pixel, frame),
        (frame, frame),
        (frame, ~frame),
        (with_rectangle(0, 5, 0, 5), with_rectangle(5, 9, 5, 9)),  # touching, disjoint
        (blank(), blank()),
        (pixel, blank()),
    ]
    # IoU of exactly k/10, of one pixel more, and of one less; found in truth and truth in found.
    for tenths in (5, 6, 7, 8, 9):
        for more in (-1, 0, 1):
            part = blank()
            part.view(-1)[: 100 * tenths // 10 + more] = True
            hundred = blank()
            hundred.view(-1)[:100] = True
            pairs += [(part, hundred), (hundred, part)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        share = torch.rand(2, generator=generator)
        found, truth = (torch.rand(32, 32, generator=generator) < part for part in share)
        pairs.append((found, truth))
    return pairs


def test_metrics_of_adversarial_masks_are_those_of_a_literal_count(tmp_path: Path) -> None:
    write_png(torch.zeros(3, 32, 32, dtype=torch.uint8), str(tmp_path / "image.png"))
    pairs = adversarial_pairs()
    table = write_table(
        tmp_path / "table.parquet",
        [
            {
                "image_id": number // 7,
                "file": "image.png",
                "height": 32,
                "width": 32,
                "counts": encode(truth)["counts"],
            }
            for number, (_, truth) in enumerate(pairs)
        ],
    )
    # A grid of the image's own size: the mask found is the one chosen, by as little as 0.01 about
    # the logit of 0.35.
    limit = math.log(0.35 / 0.65)
    logits = [limit + 0.01 * (2.0 * found - 1) for found, _ in pairs]
    rows = rows_of(table, tmp_path, logits, 32)
    expected = [counted_literally(found.tolist(), truth.tolist()) for found, truth in pairs]
    assert list(zip(rows["intersection"], rows["union"], strict=True)) == expected
    assert score(rows) == pytest.approx(scored_literally(expected), abs=1e-12)
    # And one by one, where a wrong '>' cannot hide among others.
    for number, pair in enumerate(expected):
        scores = score(rows[number : number + 1])
        if pair[1]:
            assert scores == pytest.approx(scored_literally([pair]), abs=1e-12)


@pytest.fixture(scope="module")
def slice_table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    if not SLICE.exists():
        pytest.skip("no slice of the real data on this machine")
    instances = json.loads((SLICE / "refcoco" / "instances.json").read_text())
    images = {image["id"]: image for image in instances["images"]}
    objects = []
    for annotation in instances["annotations"]:
        if annotation["iscrowd"]:
            continue
        image = images[annotation["image_id"]]
        height, width = image["height"], image["width"]
        polygons = coco_mask.frPyObjects(annotation["segmentation"], height, width)
        objects.append(
            {
                "image_id": image["id"],
                "file": image["file_name"],
                "height": height,
                "width": width,
                "counts": coco_mask.merge(polygons)["counts"],
            }
        )
    return write_table(tmp_path_factory.mktemp("slice") / "table.parquet", objects)


def shifted(grid: Tensor) -> Tensor:
    return grid.roll((9, -6), (0, 1))


@pytest.mark.parametrize(
    ("change", "least", "most"),
    [
        (lambda grid: grid, 0.85, 1),
        (shifted, 0.05, 0.7),
        (torch.logical_not, 0, 0.06),
        (torch.zeros_like, 0, 0),
        (torch.ones_like, 0.01, 0.5),
    ],
    ids=["the truth", "shifted", "inverted", "nothing", "everything"],
)
def test_counts_on_real_masks_are_pycocotools(
    change: Callable[[Tensor], Tensor], least: float, most: float, slice_table: pd.DataFrame
) -> None:
    """At the images' own sizes, with what a grid of stride 4 can tell of the true masks."""
    limit = math.log(0.35 / 0.65)
    logits, masks = [], []
    for row in slice_table.itertuples():
        placement = place(row.height, row.width, 480, "letterbox")
        truth = read_mask(row.counts, row.height, row.width)
        logits.append(limit + 2.0 * change(mask_to_grid(truth, placement, 4)) - 1)
        masks.append((logits_to_image(logits[-1][None], placement)[0] > limit, truth))
    rows = rows_of(slice_table, SLICE / "images" / "mscoco" / "train2014", logits, 480)
    for row, (found, truth) in zip(rows.itertuples(), masks, strict=True):
        rles = [encode(found), encode(truth)]
        assert row.intersection == coco_mask.area(coco_mask.merge(rles, intersect=True))
        assert row.union == coco_mask.area(coco_mask.merge(rles))
        expected = coco_mask.iou([rles[0]], [rles[1]], [0])[0, 0]
        assert row.intersection / row.union == pytest.approx(expected, abs=1e-12)
    pairs = list(zip(rows["intersection"].tolist(), rows["union"].tolist(), strict=True))
    for number in (0, len(masks) // 2):
        found, truth = masks[number]
        assert pairs[number] == counted_literally(found.tolist(), truth.tolist())
    scores = score(rows)
    assert scores == pytest.approx(scored_literally(pairs), abs=1e-12)
    assert least <= scores["mIoU"] <= most


# Checkpoints.


def save_checkpoint(path: Path, config: Config, **changes: Any) -> None:
    torch.manual_seed(0)
    model = build_model(config.model, config.tower, weights=None).state_dict()
    content = {"model": model, "identity": identity_like(config), "epoch": 1}
    checkpoint.save(path, {**content, **changes})


def predict_from(path: Path, tiny: Tiny, config: Config | None = None) -> pd.DataFrame:
    predict_splits(
        config or tiny.config,
        inputs_of(tiny),
        checkpoint=path,
        output=path.with_name("rows.parquet"),
        device=CPU,
    )
    return read_table(path.with_name("rows.parquet"))


def refusal(path: Path, tiny: Tiny, config: Config | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        predict_from(path, tiny, config)
    assert not path.with_name("rows.parquet").exists()
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert "\x1b" not in line
    return line


class Touch:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch run",)


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda content: b"", "damaged"),
        (lambda content: b"<html>moved</html>", "damaged"),
        (lambda content: content[: len(content) // 2], "damaged"),
        (lambda content: content[:200] + bytes(200) + content[400:], "damaged"),
        (lambda content: pickle.dumps({"model": 1}), "damaged"),
        (lambda content: b"PK\3\4" + content[:10], "damaged"),
        (lambda content: saved({"model": {}, "identity": {}, "x": Touch()}), "nothing was run"),
        (lambda content: pickle.dumps({"model": {}, "x": Touch()}), "nothing was run"),
        (lambda content: saved({"state_dict": {}}), "not a checkpoint"),
        (lambda content: saved({"model": {}, "identity": 3}), "not a checkpoint"),
        (lambda content: saved({"model": {}, "identity": {"values": {}}}), "not a checkpoint"),
        (lambda content: saved([1, 2]), "not a checkpoint"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused_and_runs_no_code(
    spoil: Callable[[bytes], bytes],
    reason: str,
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, tiny.config)
    path.write_bytes(spoil(path.read_bytes()))
    assert reason in refusal(path, tiny)
    assert not Path("run").exists()


def test_a_checkpoint_of_other_values_is_refused_by_both(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, tiny.config)
    for changes, both in (
        ({"num_queries": 5}, "was trained with model.num_queries 3; params.yaml has 5."),
        ({"mqe": False}, "was trained with model.mqe True; params.yaml has False."),
    ):
        model = tiny.config.model.model_copy(update=changes)
        assert both in refusal(path, tiny, tiny.config.model_copy(update={"model": model}))
    tower = tiny.config.tower.model_copy(update={"architecture": "mini-rn"})
    line = refusal(path, tiny, tiny.config.model_copy(update={"tower": tower}))
    assert "was trained with tower.architecture 'mini-vit-b'; params.yaml has 'mini-rn'." in line
    assert "seed 0; params.yaml has 3" in refusal(
        path, tiny, tiny.params.resolve("refcoco_vit_b", 3)
    )
    for section, values, both in (
        ("train", {"lr": 1.0}, "train.lr"),
        ("dataset", {"max_length": 5}, "dataset.max_length 17; params.yaml has 5"),
    ):
        changed = getattr(tiny.config, section).model_copy(update=values)
        assert both in refusal(path, tiny, tiny.config.model_copy(update={section: changed}))
    # A label is no reason to train again.
    tower = tiny.config.tower.model_copy(update={"label": "Another"})
    predict_from(path, tiny, tiny.config.model_copy(update={"tower": tower}))


def test_weights_of_an_older_model_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for model in ({}, {"neck.weight": torch.zeros(1)}, None, [1]):
        save_checkpoint(path, tiny.config, model=model)
        assert "does not fit the code's model" in refusal(path, tiny)
