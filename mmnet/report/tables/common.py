"""What the paper's tables share: ours and the published numbers in one long form, and the files.

table1.py and ablations.py arrange the long form as the paper does.
"""

from importlib import resources
from pathlib import Path

import pandas as pd

from mmnet.config.schema import Config, Params
from mmnet.config.tables import SHOWN, SPLIT, runs_of
from mmnet.evaluate.metrics import METRICS
from mmnet.report.tables.scores import Scores, missing_runs
from mmnet.runtime.files import atomic_write

COLUMNS = [
    *("table", "method", "backbone", "dataset", "split"),
    *("metric", "value", "seed", "profile"),
]
TITLES = {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "G-Ref"}
HEADLINE, SECOND = "mIoU", "oIoU"
OURS = "MMNet (this run)"
PAPER = {"MMNet": "MMNet (paper)"}
PAPER_QUERIES = 24
"""N_q of the paper's Table 4, whose rows do not name it."""


def long_form(table: str, runs: list[Scores], params: Params) -> pd.DataFrame:
    """Return the published numbers, where they are of the same data, and ours."""
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
        for split in [SPLIT] if table in SHOWN else config.dataset.splits:
            for metric in METRICS:
                rows.append(
                    {
                        "table": table,
                        "method": own_name(table, config),
                        "backbone": config.tower.label,
                        "dataset": config.dataset_name,
                        "split": split,
                        "metric": metric,
                        "value": run.splits[split].percent(metric) if run else None,
                        "seed": seed,
                        "profile": config.profile,
                    }
                )
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": float, "seed": "Int64"})


def method(table: str, config: Config) -> str:
    """Name a row as paper.csv does."""
    if table not in SHOWN:
        return "MMNet"
    model = config.model
    switches = {"MMP": model.mmp, "f_vg": model.f_vg, "MQE": model.mqe}
    off = " and ".join(part for part, on in switches.items() if not on)
    queries = model.num_queries
    implied = table == "table4" and queries == PAPER_QUERIES
    return f"MMNet{f' w/o {off}' if off else ''}{'' if implied else f' N_q={queries}'}"


def own_name(table: str, config: Config) -> str:
    return method(table, config).replace("MMNet", OURS)


def published_rows(table: str) -> pd.DataFrame:
    """Return the paper's own numbers, in long form."""
    with (resources.files("mmnet.report") / "published.csv").open(encoding="utf-8") as file:
        frame = pd.read_csv(file)
    frame = frame[frame["table"] == table].assign(seed=None, profile="published")
    frame["method"] = frame["method"].replace(PAPER)
    return frame[COLUMNS].astype({"seed": "Int64"})


def caption_of_runs(table: str, runs: list[Scores], params: Params) -> tuple[str, str]:
    """Return what captions say of the runs: profile and seeds; and those missing, if any are."""
    seeds = ", ".join(str(seed) for seed in params.seeds)
    many = f"mean ± sample standard deviation over seeds {seeds}"
    profile = f"profile {params.profile}, {many if len(params.seeds) > 1 else f'seed {seeds}'}"
    missing = missing_runs(table, runs, params)
    if not missing:
        return profile, ""
    why = "so that a cell is over the other seeds, or dashed" if len(params.seeds) > 1 else "dashed"
    return profile, f" Missing, {why}: {', '.join(missing)}."


def write(table: str, folder: Path, *, tex: str, frame: pd.DataFrame, markdown: str) -> None:
    """Write `TABLE.tex`, `TABLE.csv` and `TABLE.md` into `folder`."""
    csv = frame.to_csv(index=False, float_format="%.2f", lineterminator="\n")
    for suffix, text in {"tex": tex, "csv": csv, "md": markdown}.items():
        with atomic_write(folder / f"{table}.{suffix}") as file:
            file.write(text)
