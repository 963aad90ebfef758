"""Table R: what each of the paper's open readings is worth, changed alone against the default."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
import pandas as pd

from mmnet.config.identity import flat
from mmnet.config.schema import Config, Params
from mmnet.config.tables import MIN_SEEDS, configs_of, runs_of
from mmnet.report.interval import LEVEL, Arm, Difference, difference
from mmnet.report.render import render
from mmnet.report.rows import MECHANISM, RowsOf, Runs, read_runs
from mmnet.report.tables.common import TITLES
from mmnet.report.tables.typeset import Row, Table, to_markdown, to_tex
from mmnet.runtime.errors import ConfigError, DataError
from mmnet.runtime.files import atomic_write

NAME, SPLIT, METRIC = "readings", "val", "mIoU"
"""val, not a test split: readings are choices."""
COLUMNS = [
    *("reading", "default", "changed", "seeds", "val_mIoU", "sd"),
    *("difference", "low", "high", "resolved", *MECHANISM, "profile"),
]


def write_readings(
    rows_of: RowsOf, metrics_of: Callable[[str, int], Path], folder: Path, *, params: Params
) -> None:
    """Write `readings.tex`, `.csv` and `.md` into `folder`.

    Raises:
        ConfigError: there are no such experiments, or one differs from the first in more than one
            value.
        DataError: rows or metrics are missing, damaged or of other parameters.
    """
    base, changes = compared(params)
    runs = read_runs(runs_of(NAME, params), rows_of, params)
    if runs.missing:
        raise DataError(
            f"{NAME} ({params.profile}): no rows of {runs.missing_names}. Run: make {NAME}."
        )
    own = Change(base.experiment, "default", "", "")
    lines = [_line(change, base, runs, params) for change in (own, *changes)]
    lines.append(_last_checkpoint(metrics_of, base, params))
    frame = pd.DataFrame(lines, columns=COLUMNS)
    table = _table(frame, base, params)
    csv = frame.to_csv(index=False, float_format="%.3f", lineterminator="\n")
    for suffix, text in {"tex": to_tex(table), "csv": csv, "md": to_markdown(table)}.items():
        with atomic_write(folder / f"{NAME}.{suffix}") as file:
            file.write(text)


class Change(NamedTuple):
    experiment: str
    key: str
    """Of its values, dotted."""
    default: str
    changed: str


def compared(params: Params) -> tuple[Config, list[Change]]:
    """Return the default's run, and what each other one changes.

    Raises:
        ConfigError: there are no such runs, or one changes more than one value.
    """
    configs = configs_of(NAME, params)
    if not configs:
        raise ConfigError(
            f"params.yaml: no experiment has {NAME} in its `tables`. Run: make {NAME}."
        )
    base, *others = configs
    values, changes = flat(base.prediction_values()), []
    for config in others:
        own = flat(config.prediction_values())
        differing = [key for key in own if own[key] != values.get(key)]
        if len(differing) > 1:
            raise ConfigError(
                f"{config.experiment} differs from {base.experiment} in {', '.join(differing)}: "
                f"{NAME} changes one value at a time. Make it one."
            )
        for key in differing:  # none: it is the default of this profile
            change = Change(config.experiment, key, _shown(values[key]), _shown(own[key]))
            changes.append(change)
    return base, changes


def _line(change: Change, base: Config, runs: Runs, params: Params) -> dict[str, object]:
    arm, against = (runs.arm(of, SPLIT, METRIC) for of in (change.experiment, base.experiment))
    line = _about(change.key, change.default, change.changed, arm.values.tolist(), params)
    line |= runs.queries(change.experiment, SPLIT)
    if change.experiment != base.experiment:
        line |= _interval(difference([(1.0, arm), (-1.0, against)]))
    return line


def _last_checkpoint(
    metrics_of: Callable[[str, int], Path], base: Config, params: Params
) -> dict[str, object]:
    """Compare the last epoch of the default's trainings with the best one: no other training."""
    gaps, values = [], []
    for seed in params.seeds:
        path = metrics_of(base.experiment, seed)
        try:
            epochs = [json.loads(line)["val"][METRIC] for line in path.read_text().splitlines()]
            gaps.append(100 * (epochs[-1] - max(epochs)))
            values.append(100 * epochs[-1])
        except (OSError, ValueError, KeyError, IndexError, TypeError):
            raise DataError(f"{path}: not the metrics of a run. Run: make {NAME}.") from None
    # Of the trainings alone: no image moves the gap.
    arm = Arm(values=np.array(gaps), shares=np.zeros((len(gaps), 2)))
    line = _about("checkpoint", "best on val", "last", values, params)
    return line | _interval(difference([(1.0, arm)]))


def _about(
    reading: str, default: str, changed: str, values: list[float], params: Params
) -> dict[str, object]:
    return {
        **{"reading": reading, "default": default, "changed": changed, "seeds": len(values)},
        **{"val_mIoU": fmean(values), "sd": stdev(values) if len(values) > 1 else None},
        "profile": params.profile,
    }


def _interval(gap: Difference) -> dict[str, object]:
    if not gap.is_of_methods:
        return {"difference": gap.points}
    low, high = gap.interval()
    resolved = low > 0 or high < 0
    return {"difference": gap.points, "low": low, "high": high, "resolved": resolved}


def _table(frame: pd.DataFrame, base: Config, params: Params) -> Table:
    rows = []
    for line in frame.to_dict("records"):
        change = f"{line['default']} → {line['changed']}" if line["changed"] else ""
        spread = "" if pd.isna(line["sd"]) else f" ± {line['sd']:.2f}"
        gap, low = line["difference"], line["low"]
        interval = "" if pd.isna(low) else f" ({low:+.2f} to {line['high']:+.2f})"
        cells = [
            f"{line['val_mIoU']:.2f}{spread}",
            "--" if pd.isna(gap) else f"{gap:+.2f}{interval}",
            *(_measure(line[key]) for key in MECHANISM),
        ]
        rows.append(Row([line["reading"], change], cells))
    caption = render(
        "readings",
        **{"base": base, "params": params, "title": TITLES[base.dataset_name], "split": SPLIT},
        **{"level": f"{LEVEL:.0%}", "min_seeds": MIN_SEEDS},
    )
    heads = [f"{SPLIT} {METRIC}", "difference", *(text.capitalize() for text in MECHANISM.values())]
    return Table(
        name=NAME,
        caption=" ".join(caption.split()),
        labels=["Reading", "Changed"],
        heads=[("", heads)],
        rows=rows,
        align="r",
    )


def _measure(value: float) -> str:
    return "--" if math.isnan(value) else f"{value:.3f}"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
