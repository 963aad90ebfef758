"""The training curves of all runs in one CSV, which `dvc plots` draws."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from mmnet.config.schema import Params
from mmnet.runtime.errors import DataError
from mmnet.runtime.files import atomic_write


def write_curves(metrics: Callable[[str, int], Path], folder: Path, *, params: Params) -> None:
    """Write `curves.csv` into `folder`: a line per epoch of every run of params.yaml.

    Raises:
        DataError: a run is missing (but for `allow_missing`), or its metrics cannot be read.
    """
    lines = []
    for experiment in params.experiments:
        for seed in params.seeds:
            run = f"{experiment} seed {seed}"
            path = metrics(experiment, seed)
            if params.allow_missing and not path.exists():
                continue
            lines += [{"run": run, **line} for line in _read(path)]
    frame = pd.DataFrame(lines, columns=["run", "epoch", "lr", "loss", "val_mIoU", "val_oIoU"])
    with atomic_write(folder / "curves.csv") as file:
        frame.to_csv(file, index=False, lineterminator="\n")


def _read(path: Path) -> list[dict[str, float]]:
    try:
        epochs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [
            {
                **{key: epoch[key] for key in ("epoch", "lr", "loss")},
                **{f"val_{key}": 100 * epoch["val"][key] for key in ("mIoU", "oIoU")},
            }
            for epoch in epochs
        ]
    except FileNotFoundError:
        raise DataError(f"{path}: not found. Train the experiment first.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not the metrics of a run ({error!r}). Delete it, then run snakemake again."
        ) from None
