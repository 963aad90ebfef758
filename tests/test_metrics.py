"""Evaluation: counts at the original size, IoU both ways, and checkpoints that may be trusted."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import Tiny
from pycocotools import mask as coco_mask
from torch import Tensor

from mmnet.config import Config
from mmnet.data.dataset import evaluation_items, read, read_mask, read_square
from mmnet.data.refer import read_table
from mmnet.data.transforms import normalise, place
from mmnet.errors import CheckpointError, DataError
from mmnet.evaluate.metrics import METRICS, iou, score, score_run
from mmnet.evaluate.predict import predict, predict_splits
from mmnet.model import checkpoint
from mmnet.model.build import build_model

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


@pytest.mark.parametrize("tenths", [5, 6, 7, 8, 9])
@pytest.mark.parametrize("scale", [1, 3, 7, 12345])
def test_precision_wants_more_than_its_threshold(tenths: int, scale: int) -> None:
    exactly, more = (tenths * scale, 10 * scale), (tenths * scale + 1, 10 * scale)
    assert score(counts(exactly))[f"Pr@0.{tenths}"] == 0
    assert score(counts(more))[f"Pr@0.{tenths}"] == 1


def test_two_empty_masks_agree() -> None:
    assert list(iou(counts((0, 0), (0, 3)))) == [1, 0]


def test_iou_is_that_of_pycocotools() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        found, truth = (draw.random((13, 17)) < draw.random() for _ in range(2))
        rles = [coco_mask.encode(np.asfortranarray(m.astype(np.uint8))) for m in (found, truth)]
        row = counts((int((found & truth).sum()), int((found | truth).sum())))
        expected = coco_mask.iou([rles[0]], [rles[1]], [0])[0, 0]
        assert score(row)["mIoU"] == pytest.approx(expected)


def test_each_split_is_scored_by_its_own_rows(tiny: Tiny, tmp_path: Path) -> None:
    splits = ["val", "val", "testA", "testB", "train"]
    rows = counts((1, 2), (3, 4), (1, 4), (4, 4), (0, 9)).assign(split=splits)
    rows.attrs["config"] = tiny.config.identity()
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
    rows.attrs["config"] = tiny.config.model_copy(update={"evaluate": evaluate}).identity()
    rows.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"other values than params\.yaml has now"):
        score_run(tiny.config, rows=tmp_path / "rows.parquet")


def test_rows_not_yet_written_name_the_command_that_writes_them(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not found\. Make it first: mmnet predict"):
        score_run(tiny.config, rows=tmp_path / "rows.parquet")


# Prediction.


class Known:
    """A model whose logits are a plain function of image and words, and which counts its calls."""

    def __init__(self) -> None:
        self.images, self.sentences = 0, 0

    def eval(self) -> None:
        pass

    def encode_image(self, images: Tensor) -> tuple[Tensor, ...]:
        self.images += len(images)
        return (F.adaptive_avg_pool2d(images, 16).mean(1),) * 5

    def segment(self, features: Any, tokens: Tensor) -> Tensor:
        self.sentences += len(tokens)
        return torch.stack(
            [known_logits(means, row) for means, row in zip(features.v2, tokens, strict=True)]
        )


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


@pytest.mark.parametrize("threshold", [0.35, 0.6])
def test_counts_are_those_of_whole_masks_at_the_original_size(tiny: Tiny, threshold: float) -> None:
    model = Known()
    rows = predicted(model, tiny, SPLITS, threshold).set_index("sent_id")
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


def test_an_image_is_encoded_once_for_all_its_sentences(tiny: Tiny) -> None:
    model = Known()
    rows = predicted(model, tiny, SPLITS, 0.35)
    assert model.images == rows["image_id"].nunique() < model.sentences == len(rows)


def test_a_splits_rows_are_the_same_with_or_without_other_splits(tiny: Tiny) -> None:
    torch.manual_seed(0)
    model = build_model(tiny.config.model, tiny.config.tower, weights=None)
    among = predicted(model, tiny, SPLITS, 0.35)  # type: ignore[arg-type]
    alone = predicted(model, tiny, ["val"], 0.35)  # type: ignore[arg-type]
    of_val = among[among["split"] == "val"].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_val, alone)


# Checkpoints.


def save_checkpoint(path: Path, config: Config, **changes: Any) -> None:
    torch.manual_seed(0)
    model = build_model(config.model, config.tower, weights=None).state_dict()
    content = {"model": model, "config": config.model_dump(mode="json"), "epoch": 1}
    checkpoint.save(path, {**content, **changes})


def predict_from(path: Path, tiny: Tiny, config: Config | None = None) -> pd.DataFrame:
    predict_splits(
        config or tiny.config,
        checkpoint=path,
        table=tiny.table,
        images=tiny.images,
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


def test_a_checkpoint_predicts_every_sentence(tiny: Tiny, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint.pt", tiny.config)
    rows = predict_from(tmp_path / "checkpoint.pt", tiny)
    assert sorted(rows["sent_id"]) == sorted(read_table(tiny.table, SPLITS)["sent_id"])
    assert (rows["union"] > 0).all()
    assert (rows["intersection"] <= rows["union"]).all()


def test_a_missing_checkpoint_is_one_line(tiny: Tiny, tmp_path: Path) -> None:
    line = refusal(tmp_path / "checkpoint.pt", tiny)
    assert line.endswith("checkpoint.pt: not found. Train the experiment first.")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"<html>moved</html>",
        lambda content: content[: len(content) // 2],
        lambda content: content[:200] + bytes(200) + content[400:],
        lambda content: pickle.dumps({"model": 1}),
        lambda content: b"PK\3\4" + content[:10],
    ],
)
def test_a_damaged_checkpoint_is_one_line(
    damage: Callable[[bytes], bytes], tiny: Tiny, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, tiny.config)
    path.write_bytes(damage(path.read_bytes()))
    line = refusal(path, tiny)
    assert "damaged or no checkpoint (" in line
    assert line.endswith("Delete it, then train again or fetch it again.")


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_not_run(writer: str, tiny: Tiny, tmp_path: Path) -> None:
    content = {"model": {}, "config": {}, "x": Touch(tmp_path / "run")}
    path = tmp_path / "checkpoint.pt"
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    line = refusal(path, tiny)
    assert "damaged or no checkpoint (not plain tensors and values; nothing was run)" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {}},
        {"model": {}, "config": 3},
        [1, 2],
    ],
)
def test_a_file_of_something_else_is_no_checkpoint(
    content: Any, tiny: Tiny, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "checkpoint.pt")
    assert "not a checkpoint of mmnet" in refusal(tmp_path / "checkpoint.pt", tiny)


def test_a_checkpoint_of_another_run_is_refused_by_both_names(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, tiny.config)
    for name, seed, both in (
        ("refcoco_vit_l", 0, "is of experiment 'refcoco_vit_b', not 'refcoco_vit_l'."),
        ("refcoco_vit_b", 3, "is of seed 0, not 3."),
    ):
        assert both in refusal(path, tiny, tiny.params.resolve(name, seed))


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
