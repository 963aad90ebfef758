"""How a run's values are called in MLflow, and back: `report --from-mlflow` reads what we wrote."""

import json
from collections.abc import Iterable
from typing import Any

EPOCHS = "val per epoch"
NUMBERS = (
    "Metrics are fractions, not percent. `val/...`, `testA/...`: of the best checkpoint, at the "
    "images' original size. `val per epoch/...` and `train/...`: while training; their step is the "
    "epoch. Pr_0.5 is Pr@0.5, which MLflow has no letters for."
)
RUN_NOTE = (
    f"One training and its evaluation. {NUMBERS} Parameters are all that shapes the results; the "
    "tags say where they come from; *Artifacts* has predictions on sentences of `val`, the same "
    "for all runs on a data set."
)


def experiment_name(profile: str) -> str:
    return f"mmnet {profile}"


def experiment_note(profile: str) -> str:
    return (
        f"Runs of mmnet's profile `{profile}`; other profiles' numbers do not compare. *Views* has "
        "one for each table: all its runs, with its columns. In the plain list a run lies under "
        f"the first table that it serves. {NUMBERS}"
    )


def metric_name(split: str, metric: str) -> str:
    return f"{split}/{metric.replace('@', '_')}"


def to_params(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested values as flat text: `model.num_queries` → `24`."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= to_params(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = _text(value)
    return flat


def from_params(flat: dict[str, str]) -> dict[str, Any]:
    """Return the nested values that `to_params` was given."""
    values: dict[str, Any] = {}
    for key, text in flat.items():
        *sections, name = key.split(".")
        section = values
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = _value(text)
    return values


def best_epoch(lines: Iterable[dict[str, Any]]) -> int:
    """Return the epoch of the checkpoint: the first of those with the best mIoU on val."""
    best = max(lines, key=lambda line: line["val"]["mIoU"], default={"epoch": 0})
    return int(best["epoch"])


def _text(value: Any) -> str:
    # A string stands as it is, unless it would be read back as something else.
    if isinstance(value, str) and _value(value) == value:
        return value
    return json.dumps(value)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
