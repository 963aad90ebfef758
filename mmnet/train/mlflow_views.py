"""Saved views of MLflow's list of runs, one for each table: its runs, and the columns that matter.

MLflow has no call for these; they are tags of the experiment, as its page writes them.
"""

import json

from mmnet.train.record_names import metric_name

SWITCHES = ("num_queries", "mmp", "mqe", "f_vg")


def saved_view(table: str, title: str, now: int) -> tuple[str, str]:
    """Return the tag, key and value, that makes a table's view."""
    state = {
        "searchFilter": f"tags.tables ILIKE '%{table}%'",
        # Sorted by creation, its runs would hide under the table that is first of theirs.
        "orderByKey": "tags.`dataset`" if table == "table1" else "metrics.`testA/mIoU`",
        "orderByAsc": table == "table1",
        "selectedColumns": _columns(table),
    }
    view = {"name": title, "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    return f"mlflow.sharedViewState.{table}", json.dumps(view)


def _columns(table: str) -> list[str]:
    splits: tuple[str, ...] = ("testA",)
    metrics: tuple[str, ...] = ("mIoU", "oIoU", "Pr@0.5", "Pr@0.7", "Pr@0.9")
    shown = [("params", f"model.{switch}") for switch in SWITCHES]
    if table == "table1":
        splits, metrics = ("val", "testA", "testB", "test"), ("mIoU", "oIoU")
        shown = [("tags", "dataset"), ("tags", "backbone")]
    scores = [("metrics", metric_name(split, metric)) for split in splits for metric in metrics]
    return [f"{kind}.`{key}`" for kind, key in [*scores, *shown, ("tags", "git.clean")]]
