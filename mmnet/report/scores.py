"""The score files of a table's runs: all of them, one each, on the same data, or a refusal."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError, model_validator

from mmnet.config import DatasetName, Params
from mmnet.errors import ConfigError, DataError
from mmnet.evaluate.metrics import METRICS


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

    @property
    def name(self) -> str:
        return f"{self.experiment} seed {self.seed}"


def read_scores(paths: Iterable[Path], params: Params) -> list[Scores]:
    """Return the scores of all runs of Table 1, in the order of params.yaml."""
    wanted = [
        (name, seed)
        for name, experiment in params.experiments.items()
        if "table1" in experiment.tables
        for seed in params.seeds
    ]
    if not wanted:
        raise ConfigError("params.yaml: no experiment has table1 in its `tables`. Add it to one.")
    runs: dict[tuple[str, int], Scores] = {}
    for path in sorted(paths):
        scores = _read(path)
        if scores.profile != params.profile:
            raise DataError(
                f"{path}: profile {scores.profile!r}, but the table is of {params.profile!r}. "
                "A table holds one profile's runs: leave this file out, or change profile."
            )
        run = (scores.experiment, scores.seed)
        if run not in wanted:
            raise DataError(
                f"{path}: {scores.name} is no run of table1 with seeds {params.seeds}. "
                "Leave this file out, or add the run to params.yaml."
            )
        if run in runs:
            raise DataError(f"{path}: {scores.name} is given twice. Give each run once.")
        _check_against_params(path, scores, params)
        runs[run] = scores
    if missing := [f"{name} seed {seed}" for name, seed in wanted if (name, seed) not in runs]:
        raise DataError(
            f"table1 ({params.profile}): no scores of {', '.join(missing)}. "
            "Train and evaluate them: snakemake does when asked for results/table1.tex."
        )
    chosen = [runs[run] for run in wanted]
    _check_same_sentences(chosen)
    return chosen


def _read(path: Path) -> Scores:
    try:
        return Scores.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DataError(f"{path}: not found. Evaluate the run first.") from None
    except ValidationError as error:
        first = error.errors()[0]
        what = ".".join([str(part) for part in first["loc"]] or ["the file"])
        reason = f"{what}: {first['msg'].removeprefix('Value error, ')}"
    except (ValueError, UnicodeDecodeError) as error:
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
