"""Score files downloaded from MLflow, for the table writers: the bytes that `evaluate` wrote."""

import json
from pathlib import Path

from mmnet.config.schema import Params
from mmnet.config.tables import runs_of
from mmnet.tracking.store import Store


def write_scores(table: str, folder: Path, *, params: Params) -> list[Path]:
    """Write the score file of each run of a table that MLflow has scores of; return their paths.

    Of several trainings of one run, the last with today's values is taken; if none has them, the
    last one, which the table refuses.

    Raises:
        TrackingError: MLflow's store cannot be read.
    """
    store = Store(Path())
    paths = []
    for name, seed in runs_of(table, params):
        values = params.resolve(name, seed).prediction_values()
        if found := store.scores(params.profile, name, seed):
            scores = next((s for s in found if json.loads(s)["config"] == values), found[0])
            paths.append(folder / f"{name}.seed{seed}.json")
            paths[-1].write_bytes(scores)
    return paths
