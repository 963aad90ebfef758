"""`mmnet predict --save-masks`, then `mmnet score`: the same rows; mistakes in one line each."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mmnet.cli.parser import main
from mmnet.config.identity import Identity
from mmnet.config.paths import Paths, RunPaths
from mmnet.evaluate.metrics import METRICS
from mmnet.model import checkpoint
from mmnet.model.build import build_model
from mmnet.report.tables.scores import Scores
from support.tiny import ROOT, TINY, Tiny

RUN = ["--experiment", "refcoco_vit_b"]
SET = [argument for override in TINY for argument in ("--set", override)]
SCORE = ["score", "masks.jsonl", "--dataset", "refcoco", *SET]
COUNTED = ["split", "ref_id", "ann_id", "image_id", "sent_id", "intersection", "union"]


@pytest.fixture
def run(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    """A run whose rows are to be predicted, in the working folder, beside its data."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    # A command sets these for its own process, which here is the tests'.
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    paths = Paths("mini")
    paths.data.mkdir(parents=True)
    for name, path in tiny.tables.items():
        paths.table(name).symlink_to(path)
    paths.images.symlink_to(tiny.images)
    paths.manifest.symlink_to(tiny.manifest)
    torch.manual_seed(0)
    model = build_model(tiny.config.model, tiny.config.tower, weights=None).state_dict()
    identity = Identity(values=tiny.config.training_values(), data={}, code={})
    run = paths.run("refcoco_vit_b", 0)
    checkpoint.save(run.checkpoint, {"model": model, "identity": identity.as_dict()})
    return run


def predict(*more: str) -> int:
    return main(["predict", *RUN, *SET, "--device", "cpu", *more])


def write_lines(lines: list[dict[str, Any]]) -> None:
    Path("masks.jsonl").write_text("\n".join(map(json.dumps, lines)))


def read_lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("masks.jsonl").read_text().splitlines()]


def test_saved_masks_are_scored_as_the_run_was(
    run: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict("--save-masks", "masks.jsonl") == 0
    assert main(["evaluate", *RUN, *SET]) == 0
    capsys.readouterr()
    more = ["-o", "scored", "--against", "refcoco_vit_b", "--name", "Theirs"]
    assert main([*SCORE, *more]) == 0
    shown = capsys.readouterr().out
    rows, expected = pd.read_parquet("scored/rows.parquet"), pd.read_parquet(run.rows)
    assert 0 < rows["intersection"].sum() < rows["union"].sum()
    pd.testing.assert_frame_equal(rows, expected[COUNTED])

    scores = json.loads(Path("scored/scores.json").read_text())
    evaluated = json.loads(run.scores.read_text())
    assert scores.keys() - {"masks"} == evaluated.keys()
    assert Scores.model_validate(scores).experiment == "Theirs"
    assert list(scores["splits"]) == ["val", "testA", "testB"]
    for split, of_split in scores["splits"].items():
        assert of_split == {**evaluated["splits"][split], "queries": {}}
        assert f"{100 * of_split['mIoU']:.2f}" in shown

    against = json.loads(Path("scored/against.json").read_text())
    assert (against["less"], against["seeds"]) == ("refcoco_vit_b", [0])
    for of_split in against["splits"].values():
        assert [of_split[metric]["points"] for metric in METRICS] == [0] * len(METRICS)
        assert of_split["oIoU"]["interval"] == [0, 0]
    # What is there is overwritten when asked, and nothing of an earlier call is left.
    before = Path("scored/scores.json").stat().st_ino
    assert main([*SCORE, "-o", "scored"]) == 1
    assert Path("scored/scores.json").stat().st_ino == before
    assert main([*SCORE, "-o", "scored", "--force", "--split", "val"]) == 0
    assert {path.name for path in Path("scored").iterdir()} == {"rows.parquet", "scores.json"}
    assert len(pd.read_parquet("scored/rows.parquet")) == (expected["split"] == "val").sum()


def test_masks_are_not_saved_over_a_file(run: RunPaths) -> None:
    Path("mine.txt").write_text("mine")
    for path in ("mine.txt", ".", "mine.txt/masks.jsonl"):
        assert predict("--save-masks", path) == 1
    assert Path("mine.txt").read_text() == "mine"
    assert not run.rows.exists()  # refused before the work


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--dataset", "coco"], "no dataset 'coco'"),
        (["--split", "val", "tset"], "no split 'tset'"),
        (["--against", "refcoco_vitb"], "Did you mean refcoco_vit_b?"),
        (["--against", "a/b/c/d"], "EXPERIMENT/seedN"),
        (["--against", "refcocog_vit_b"], "is of refcocog"),
        (["--against", "mini/refcoco_vit_b/seed1"], "no rows of refcoco_vit_b seed 1"),
        (["-o", "masks.jsonl"], "is not a folder"),
        (["--set", "profile=paper"], "refcoco.parquet: not found. Make it first: mmnet prepare"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    arguments: list[str], what: str, run: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines([{"sent_id": 0}])
    before = {path for path in Path().rglob("*") if path.is_file()}
    assert main([*SCORE, "-o", "scored", *arguments]) == 1
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("mmnet: ")
    assert error.count("\n") == 1
    assert what in error
    assert {path for path in Path().rglob("*") if path.is_file()} == before


def test_wrong_masks_are_one_line_and_nothing_is_written(
    run: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict("--save-masks", "masks.jsonl") == 0
    lines = read_lines()
    lines[3]["segmentation"]["counts"] += "h"
    write_lines(lines)
    capsys.readouterr()
    assert main([*SCORE, "-o", "scored"]) == 1
    output, error = capsys.readouterr()
    assert output == ""
    assert error.splitlines()[-1].startswith("mmnet: masks.jsonl: line 4: ")
    assert not Path("scored").exists()
    # Rows of other sentences are not compared.
    write_lines([line for line in read_lines() if line["split"] == "val"])
    rows = pd.read_parquet(run.rows)
    attrs = rows.attrs
    rows = rows[rows["sent_id"] != rows.loc[rows["split"] == "val", "sent_id"].iloc[0]]
    rows.attrs = attrs
    rows.to_parquet(run.rows, index=False)
    assert main([*SCORE, "-o", "scored", "--against", "refcoco_vit_b"]) == 1
    assert "the sentences of val are not those of" in capsys.readouterr().err
    assert not Path("scored").exists()
