"""Saved views of MLflow's list of runs, one for each table: its runs, and the columns that matter.

MLflow has no call for these; they are tags of the experiment, as its page writes them.
"""

import json

from mmnet.train.record_names import metric_name

ROW = 220
"""Pixels for a row's name."""


def saved_view(table: str, title: str, now: int) -> tuple[str, str]:
    """Return the tag, key and value, that makes a table's view."""
    state = {
        "searchFilter": f"tags.tables ILIKE '%{table}%'",
        # Sorted by creation, its runs would hide under the table that is first of theirs.
        "orderByKey": "tags.`table1`" if table == "table1" else "metrics.`testA/mIoU`",
        "orderByAsc": table == "table1",
        "selectedColumns": _columns(table),
        "columnWidths": {f"tags.`{table}`": ROW},
    }
    view = {"name": title, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    return f"mlflow.sharedViewState.{table}", json.dumps(view)


def _columns(table: str) -> list[str]:
    splits: tuple[str, ...] = ("testA",)
    metrics: tuple[str, ...] = ("mIoU", "oIoU", "Pr@0.5", "Pr@0.7", "Pr@0.9")
    if table == "table1":
        splits, metrics = ("val", "testA", "testB", "test"), ("mIoU", "oIoU")
    scores = [("metrics", metric_name(split, metric)) for split in splits for metric in metrics]
    # A table's own tag names the run's row.
    return [f"{kind}.`{key}`" for kind, key in [*scores, ("tags", table)]]
