"""Table R: each open reading against the default, from hand-made rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from mmnet.config.load import load_params
from mmnet.config.overrides import overrides_between
from mmnet.config.paths import Paths
from mmnet.config.schema import Params
from mmnet.config.tables import runs_of
from mmnet.report.rows import MECHANISM
from mmnet.report.tables.readings import compared, write_readings
from mmnet.runtime.errors import ConfigError, DataError
from support.results import sentences
from support.tiny import ROOT


def params_with_readings(*overrides: str) -> Params:
    """params.yaml with workflow/readings.yaml over it, as `make readings` has it."""
    base, over = (
        yaml.safe_load((ROOT / name).read_text())
        for name in ("params.yaml", "workflow/readings.yaml")
    )
    merged = {**base, **over, "experiments": {**base["experiments"]}}
    for name, values in over["experiments"].items():
        merged["experiments"][name] = {**base["experiments"].get(name, {}), **values}
    return load_params(ROOT / "params.yaml", [*overrides_between(base, merged), *overrides])


class Written:
    """Rows and metrics of every run, with an mIoU on val for each, and the table of them."""

    def __init__(self, folder: Path, params: Params, gains: dict[str, float]) -> None:
        self.folder, self.params, self.paths = folder, params, Paths(params.profile)
        for experiment, seed in runs_of("readings", params):
            config = params.resolve(experiment, seed)
            rows = sentences(config.dataset.splits, images=60)
            wobble = (0.002, -0.001, -0.001)[seed]  # of mean 0
            share = 0.5 + gains.get(experiment, 0.0) / 100 + wobble
            image = np.random.default_rng(0).normal(0, 0.05, rows["image_id"].max() + 1)
            rows["union"] = 10**9
            rows["intersection"] = ((share + image[rows["image_id"]]) * 10**9).astype(int)
            rows = rows.assign(**dict.fromkeys(MECHANISM, 0.25))
            rows.attrs["config"] = config.prediction_values()
            self.rows(experiment, seed).parent.mkdir(parents=True, exist_ok=True)
            rows.to_parquet(self.rows(experiment, seed), index=False)
            path = self.metrics(experiment, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            epochs = [{"val": {"mIoU": value}} for value in (0.4, 0.55, 0.54 - seed / 1000)]
            path.write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))

    def rows(self, experiment: str, seed: int) -> Path:
        return self.folder / self.paths.run(experiment, seed).rows

    def metrics(self, experiment: str, seed: int) -> Path:
        return self.folder / self.paths.run(experiment, seed).metrics

    def table(self) -> pd.DataFrame:
        out = self.folder / "results"
        write_readings(self.rows, self.metrics, out, params=self.params)
        assert {path.name for path in out.iterdir()} == {
            f"readings.{s}" for s in ("csv", "md", "tex")
        }
        return pd.read_csv(out / "readings.csv").set_index("reading")


def test_each_reading_is_compared_with_the_default(tmp_path: Path) -> None:
    params = params_with_readings()
    gains = {"reading_visual_query": 3.0, "reading_glorot": -0.1}
    table = Written(tmp_path, params, gains).table()
    assert table.index[0] == "default"
    visual, glorot = table.loc["model.visual_query"], table.loc["model.generator_init"]
    assert (visual["default"], visual["changed"]) == ("no", "yes")
    assert visual["difference"] == pytest.approx(3, abs=1e-3)
    assert visual["low"] > 0
    assert visual["resolved"]
    assert glorot["difference"] == pytest.approx(-0.1, abs=1e-3)
    assert glorot["low"] < 0 < glorot["high"]
    assert not glorot["resolved"]
    assert (table["mask_spread"].dropna() == 0.25).all()


def test_the_last_checkpoint_is_compared_with_the_best_of_the_same_trainings(
    tmp_path: Path,
) -> None:
    last = Written(tmp_path, params_with_readings(), {}).table().loc["checkpoint"]
    assert last["val_mIoU"] == pytest.approx(53.9)
    # -1.0, -1.1, -1.2: Student's t of two degrees of freedom is 4.3027.
    assert last["difference"] == pytest.approx(-1.1)
    half = 4.3027 * 0.1 / 3**0.5
    assert (last["low"], last["high"]) == pytest.approx((-1.1 - half, -1.1 + half), abs=1e-3)


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    table = Written(tmp_path, params_with_readings("seeds=[0]"), {}).table()
    assert table[["low", "high", "resolved"]].isna().all(axis=None)
    assert table["difference"].notna().sum() == len(table) - 1


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_every_reading_changes_one_value_of_either_profile(profile: str) -> None:
    params = params_with_readings(f"profile={profile}")
    base, changes = compared(params)
    assert base.experiment == "nq_24"
    keys = [(change.key, change.changed) for change in changes]
    assert len(set(keys)) == len(keys)
    open_readings = {
        *("model.estimator_residual", "model.vector_norm", "model.generator_init"),
        *("model.visual_query", "model.attention_bias", "model.relu_kernel", "model.resize"),
        *("train.head_lr_multiplier", "train.clip_batchnorm", "evaluate.threshold"),
    }
    assert open_readings <= {key for key, _ in keys}


@pytest.mark.parametrize(
    ("change", "named"),
    [("experiments.reading_glorot.model.ffn=64", "model.ffn"), ("", "reading_squash seed 1")],
)
def test_two_changes_at_once_and_missing_rows_are_refused(
    change: str, named: str, tmp_path: Path
) -> None:
    params = params_with_readings(*[change] if change else [])
    written = Written(tmp_path, params, {})
    written.rows("reading_squash", 1).unlink()
    with pytest.raises((ConfigError, DataError), match=named) as caught:
        written.table()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results").exists()


def test_any_damaged_metrics_are_named(tmp_path: Path) -> None:
    written: Any = Written(tmp_path, params_with_readings(), {})
    written.metrics("nq_24", 2).write_text("{")
    with pytest.raises(DataError, match="nq_24"):
        written.table()
