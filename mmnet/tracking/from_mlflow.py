"""Score files made again from what MLflow holds of the runs: parameters, metrics and tags."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmnet.config.schema import Params
from mmnet.config.tables import runs_of
from mmnet.evaluate.metrics import METRICS
from mmnet.tracking.mlflow_store import Store
from mmnet.tracking.record_names import from_params, metric_name

if TYPE_CHECKING:
    from mlflow.entities import Run


def write_scores(table: str, folder: Path, *, params: Params) -> list[Path]:
    """Write the score file of each run of a table that MLflow has scores of; return their paths.

    Of several runs of one experiment and seed, the last with today's values is taken; should none
    have them, the last one, which the table refuses.

    Raises:
        TrackingError: MLflow's store cannot be read.
    """
    store = Store(Path())
    paths = []
    for name, seed in runs_of(table, params):
        config = params.resolve(name, seed).identity()
        runs = store.runs(params.profile, name, seed)
        scored = [scores for run in runs if (scores := scores_of(run)) is not None]
        if scored:
            scores = next((s for s in scored if s["config"] == config), scored[0])
            paths.append(folder / f"{name}.seed{seed}.json")
            paths[-1].write_text(json.dumps(scores), encoding="utf-8")
    return paths


def scores_of(run: "Run") -> dict[str, Any] | None:
    """Return what `mmnet evaluate` wrote of a run, or None where its record is not complete."""
    config = from_params(run.data.params)
    tags, values = run.data.tags, run.data.metrics
    try:
        return {
            "profile": tags["profile"],
            "experiment": tags["experiment"],
            "seed": int(tags["seed"]),
            "dataset": tags["dataset"],
            "backbone": tags["backbone"],
            "config": config,
            "splits": {
                split: {
                    "sentences": int(values[metric_name(split, "sentences")]),
                    **{metric: values[metric_name(split, metric)] for metric in METRICS},
                }
                for split in config["dataset"]["splits"]
            },
        }
    except KeyError:
        return None
