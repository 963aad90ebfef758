"""The score files of a table's runs: all of them, one each, on the same data, or an error."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError, model_validator

from mmnet.config.profile import DatasetName
from mmnet.config.schema import Params
from mmnet.config.tables import Run, check_rows, runs_of
from mmnet.evaluate.metrics import METRICS
from mmnet.runtime.errors import ConfigError, DataError


class SplitScores(BaseModel):
    """One split of `scores.json`; its metrics are fractions, under their own names."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    sentences: PositiveInt

    @model_validator(mode="after")
    def _metrics_are_fractions(self) -> Self:
        for metric in METRICS:
            value = (self.model_extra or {}).get(metric)
            if not (isinstance(value, int | float) and 0 <= value <= 1):
                raise ValueError(f"{metric} is {value!r}, not a fraction from 0 to 1")
        return self

    def percent(self, metric: str) -> float:
        return 100 * float((self.model_extra or {})[metric])


class Scores(BaseModel):
    """`scores.json` of one run, as `mmnet evaluate` writes it."""

    model_config = ConfigDict(frozen=True, strict=True)

    profile: str
    experiment: str
    seed: int
    dataset: DatasetName
    backbone: str
    splits: dict[str, SplitScores]
    config: dict[str, Any] | None = None
    """The parameters of the rows that were scored."""

    @property
    def name(self) -> str:
        return f"{self.experiment} seed {self.seed}"


def read_scores(table: str, paths: Iterable[Path], params: Params) -> list[Scores]:
    """Return the scores of a table's runs, in the order of params.yaml.

    Raises:
        ConfigError: params.yaml has no run of the table, or runs that it cannot compare.
        DataError: a run is missing (but for `allow_missing`), or a file is not one of the runs',
            one each, on the same sentences.
    """
    wanted = runs_of(table, params)
    if not wanted:
        raise ConfigError(f"params.yaml: no experiment has {table} in its `tables`. Add it to one.")
    check_rows(table, params)
    runs: dict[Run, Scores] = {}
    for path in sorted(paths):
        scores = _read(path)
        if scores.profile != params.profile:
            raise DataError(
                f"{path}: has profile {scores.profile!r}, but {table} is of profile "
                f"{params.profile!r}. Leave this file out, or change `profile` in params.yaml."
            )
        run = (scores.experiment, scores.seed)
        if run not in wanted:
            raise DataError(
                f"{path}: {scores.name} is not a run of {table} with seeds {params.seeds}. "
                "Leave this file out, or add the run to params.yaml."
            )
        if run in runs:
            raise DataError(f"{path}: duplicate scores of {scores.name}; remove one.")
        _check_against_params(path, scores, params)
        runs[run] = scores
    chosen = [runs[run] for run in wanted if run in runs]
    missing = missing_runs(table, chosen, params)
    if missing and not params.allow_missing:
        raise DataError(
            f"{table} ({params.profile}): no scores of {', '.join(missing)}. Train and evaluate "
            f"them: snakemake does when asked for results/{table}.tex. Or set allow_missing: true "
            "to have the table name them."
        )
    _check_same_sentences(chosen)
    return chosen


def missing_runs(table: str, runs: list[Scores], params: Params) -> list[str]:
    """Name the runs of a table that have no scores."""
    scored = {(run.experiment, run.seed) for run in runs}
    return [
        f"{name} seed {seed}" for name, seed in runs_of(table, params) if (name, seed) not in scored
    ]


def _read(path: Path) -> Scores:
    try:
        return Scores.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DataError(f"{path}: not found. Evaluate the run first.") from None
    except ValidationError as error:
        first = error.errors()[0]
        what = ".".join([str(part) for part in first["loc"]] or ["the file"])
        reason = f"{what}: {first['msg'].removeprefix('Value error, ')}"
    except (ValueError, OSError) as error:
        reason = f"not JSON: {error}"
    raise DataError(f"{path}: {reason}. Delete it and evaluate the run again.")


def _check_against_params(path: Path, scores: Scores, params: Params) -> None:
    config = params.resolve(scores.experiment, scores.seed)
    for key, found, meant in (
        ("dataset", scores.dataset, config.dataset_name),
        ("backbone", scores.backbone, config.tower.label),
        ("splits", sorted(scores.splits), sorted(config.dataset.splits)),
    ):
        if found != meant:
            raise DataError(
                f"{path}: {scores.name} has {key} {found!r}, params.yaml {meant!r}. "
                "Evaluate the run again."
            )
    # With allow_missing, Snakemake does not re-run what is out of date.
    if scores.config is not None and scores.config != config.prediction_values():
        raise DataError(
            f"{path}: {scores.name} was produced with different parameters. Train and evaluate it "
            "again (snakemake does), or delete the file."
        )


def _check_same_sentences(runs: list[Scores]) -> None:
    firsts: dict[str, Scores] = {}
    for run in runs:
        first = firsts.setdefault(run.dataset, run)
        for split, values in run.splits.items():
            expected = first.splits[split].sentences
            if values.sentences != expected:
                raise DataError(
                    f"{run.dataset} {split}: {run.name} has {values.sentences} sentences, "
                    f"{first.name} {expected}. Evaluate both on the same data."
                )
