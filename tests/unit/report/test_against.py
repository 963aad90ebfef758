"""Supplied masks against a run: the difference that the claims would give, or a refusal."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mmnet.evaluate.metrics import METRICS, score
from mmnet.report.interval import Arm, difference
from mmnet.report.supplied import difference_from, rival_of, shown
from support.results import Bench, Floats, noise, params_of

NAME = "refcoco_vit_b"


def scattered(experiment: str, split: str, rows: pd.DataFrame) -> Floats:
    return 0.6 + noise(experiment, rows, 0.1)


def values_of(rows: pd.DataFrame, *splits: str) -> dict[str, Any]:
    of = {split: {"sentences": int((rows["split"] == split).sum())} for split in splits}
    return {"profile": "mini", "experiment": "theirs", "dataset": "refcoco", "splits": of}


@pytest.mark.parametrize(
    ("name", "seeds"),
    [(NAME, [0, 1, 2]), (f"{NAME}/seed1", [1]), (f"runs/mini/{NAME}/seed2/", [2])],
)
def test_the_difference_is_from_the_mean_of_the_named_seeds(
    name: str, seeds: list[int], tmp_path: Path
) -> None:
    params = params_of("mini", "seeds=[0, 1, 2]")
    bench = Bench(tmp_path, params, scattered, trainings=0.02)
    rival = rival_of(name, "refcoco", bench.path, params)
    rows = pd.read_parquet(bench.path("refcoco_vit_l", 0)).sample(frac=1, random_state=0)
    values = values_of(rows, "val", "testA")
    found = difference_from(rival, rows, values)
    assert found["seeds"] == seeds
    for split in ("val", "testA"):
        ours = score(rows[rows["split"] == split])
        runs = [pd.read_parquet(bench.path(NAME, seed)) for seed in seeds]
        theirs = [score(run[run["split"] == split]) for run in runs]
        for metric in METRICS:
            mean = np.mean([of[metric] for of in theirs])
            points = found["splits"][split][metric]["points"]
            assert points == pytest.approx(100 * (ours[metric] - mean), abs=1e-4)
        # Paired: by images, as the claims compare two trainings.
        others = read_arm("refcoco_vit_l", [0], split, bench)
        arms = [(1.0, others), (-1.0, read_arm(NAME, seeds, split, bench))]
        low, high = difference(arms).interval()
        assert found["splits"][split]["mIoU"]["interval"] == pytest.approx([low, high], abs=1e-4)
        assert low < found["splits"][split]["mIoU"]["points"] < high
    for split, of in values["splits"].items():
        of |= score(rows[rows["split"] == split])
    assert f"{found['splits']['val']['oIoU']['points']:.2f}" in shown(values, found)


def read_arm(experiment: str, seeds: list[int], split: str, bench: Bench) -> Arm:
    rival = rival_of(experiment, "refcoco", bench.path, params_of("mini", f"seeds={seeds}"))
    return rival.runs.arm(experiment, split, "mIoU")


def test_few_images_are_said_to_decide_nothing(tmp_path: Path) -> None:
    params = params_of("mini")
    bench = Bench(tmp_path, params, scattered, images=19)
    rows = pd.read_parquet(bench.path(NAME, 0))
    values = values_of(rows, "val")
    comparison = difference_from(rival_of(NAME, "refcoco", bench.path, params), rows, values)
    values["splits"]["val"] |= score(rows)
    assert "20 images" in shown(values, comparison)
