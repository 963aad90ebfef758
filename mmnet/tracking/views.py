"""Saved views of MLflow's list of runs, one per table: its runs, with the columns that it shows.

MLflow has no call for these: they are tags of the experiment, as its page writes them.
"""

import json

from mmnet.tracking.record import metric_name


def saved_view(table: dict[str, str], now: int) -> tuple[str, str]:
    """Return the tag, key and value, of a table's view; `now` in milliseconds."""
    name, shown = table["name"], table["shown"].split()
    splits: tuple[str, ...] = ("testA",)
    metrics: tuple[str, ...] = ("mIoU", "oIoU", "Pr@0.5", "Pr@0.7", "Pr@0.9")
    columns = [f"params.`model.{switch}`" for switch in shown]
    if not shown:
        splits, metrics = ("val", "testA", "testB", "test"), ("mIoU", "oIoU")
        columns = ["tags.`dataset`", "tags.`backbone`"]
    columns += [f"metrics.`{metric_name(split, metric)}`" for split in splits for metric in metrics]
    state = {
        "searchFilter": f"tags.tables ILIKE '%{name}%'",
        # Sorted by creation, runs would hide under the first table that they serve.
        "orderByKey": "metrics.`testA/mIoU`" if shown else "tags.`dataset`",
        "orderByAsc": not shown,
        "selectedColumns": columns,
    }
    view = {"name": table["title"], "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    return f"mlflow.sharedViewState.{name}", json.dumps(view)
