"""What the paper's tables share: ours and the published numbers in one long form, and captions."""

from importlib import resources

import pandas as pd

from mmnet.config.schema import Config, Params
from mmnet.config.tables import SHOWN, SPLIT, configs_of, is_ours_alone, runs_of, unlike
from mmnet.evaluate.metrics import METRICS
from mmnet.report.render import render
from mmnet.report.tables.marks import PAPER_QUERIES
from mmnet.report.tables.scores import Scores, missing_runs

COLUMNS = [
    *("table", "method", "backbone", "dataset", "split"),
    *("metric", "value", "seed", "profile"),
]
TITLES = {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "G-Ref"}
HEADLINE, SECOND = "mIoU", "oIoU"
OURS = "MMNet (this run)"
PAPER = {"MMNet": "MMNet (paper)"}
KINDS = {"m": HEADLINE, "o": SECOND}
"""What published.csv knows of a printed IoU; of the others, which one it is is unsaid."""


def long_form(table: str, runs: list[Scores], params: Params) -> pd.DataFrame:
    """Return ours, and the published numbers where they are of the same data."""
    ours = own_rows(table, runs, params)
    if params.active.shapes is not None:
        return ours
    return pd.concat([published_rows(table), ours], ignore_index=True)


def own_rows(table: str, runs: list[Scores], params: Params) -> pd.DataFrame:
    """Return our runs in long form: a row per run, split and metric, empty where one is missing."""
    scored = {(run.experiment, run.seed): run for run in runs}
    rows = []
    for name, seed in runs_of(table, params):
        config, run = params.resolve(name, seed), scored.get((name, seed))
        about = (table, own_name(table, config), config.tower.label, config.dataset_name)
        for split in [SPLIT] if table in SHOWN else config.dataset.splits:
            for metric in METRICS:
                value = run.splits[split].percent(metric) if run else None
                rows.append((*about, split, metric, value, seed, config.profile))
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": float, "seed": "Int64"})


def method(table: str, config: Config) -> str:
    """Name a run's row of a table as published.csv does."""
    if table not in SHOWN:
        return "MMNet"
    model = config.model
    switches = {"MMP": model.mmp, "f_vg": model.f_vg, "MQE": model.mqe}
    off = " and ".join(part for part, on in switches.items() if not on)
    off += " (mean of the masks)" * is_ours_alone(table, config)
    queries = model.num_queries
    implied = table == "table4" and queries == PAPER_QUERIES
    return f"MMNet{f' w/o {off}' if off else ''}{'' if implied else f' N_q={queries}'}"


def own_name(table: str, config: Config) -> str:
    return method(table, config).replace("MMNet", OURS)


def read_published() -> pd.DataFrame:
    """Return published.csv: table, method, backbone, dataset, split, metric, value (percent), iou.

    metric is as printed; iou is m or o, as the method's authors measured it, or unsaid (reading 1).
    """
    with (resources.files("mmnet.report") / "published.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def published_rows(table: str) -> pd.DataFrame:
    """Return the paper's own numbers, in long form; an IoU by its name where that is known."""
    frame = read_published()
    frame = frame[frame["table"] == table].assign(seed=None, profile="published")
    frame["method"] = frame["method"].replace(PAPER)
    frame["metric"] = frame["iou"].map(KINDS).fillna(frame["metric"])
    return frame[COLUMNS].astype({"seed": "Int64"})


def caption(
    table: str, runs: list[Scores], params: Params, *, hidden: str = "", marks: str = ""
) -> str:
    """Return a table's caption.

    `hidden` describes switches that it has no column for, `marks` its marks.
    """
    first = configs_of(table, params)[0]
    text = render(
        "caption",
        **{"table": table, "params": params, "first": first, "hidden": hidden, "split": SPLIT},
        marks=marks,
        has_mean=any(is_ours_alone(table, config) for config in configs_of(table, params)),
        title=TITLES[first.dataset_name],
        unlike=unlike(table, params) if table in SHOWN else [],
        missing=missing_runs(table, runs, params),
    )
    return " ".join(text.split())
