"""Masks supplied from elsewhere: their scores, and the difference from a run."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mmnet.config.schema import Params
from mmnet.config.tables import Run
from mmnet.evaluate.metrics import HEADLINES, METRICS, summary
from mmnet.evaluate.supplied import SuppliedMasks
from mmnet.report.claims.evidence import MIN_IMAGES
from mmnet.report.interval import LEVEL, difference, measured
from mmnet.report.rows import IDS, RowsOf, Runs, read_runs
from mmnet.runtime.errors import ConfigError, DataError
from mmnet.runtime.files import atomic_path, write_json

ROWS, SCORES, AGAINST = "rows.parquet", "scores.json", "against.json"
SUPPLIED = "masks supplied"
"""In place of a backbone."""
Values = dict[str, Any]


class Rival(NamedTuple):
    """A run that masks are compared with, in one or more seeds."""

    experiment: str
    seeds: list[int]
    runs: Runs

    @property
    def name(self) -> str:
        return (
            f"{self.experiment} seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}"
        )


def check_output(folder: Path, *, force: bool) -> None:
    """Refuse a folder, before the work, that cannot be written.

    Raises:
        ConfigError: it is a file; or it has files of an earlier call, and `force` is not given.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"-o {folder}: is not a folder. Give another.")
    existing = [
        path for path in (folder / name for name in (ROWS, SCORES, AGAINST)) if path.exists()
    ]
    if existing and not force:
        raise ConfigError(f"{existing[0]}: exists. Give another -o, or --force to overwrite.")


def rival_of(name: str, dataset: str, rows_of: RowsOf, params: Params) -> Rival:
    """Return the run that EXPERIMENT, all seeds of params.yaml, or EXPERIMENT/seedN names.

    Raises:
        ConfigError: there is no such experiment, or it is of another data set.
        DataError: its rows are missing, damaged or of other parameters.
    """
    pattern = rf"(?:runs/)?(?:{re.escape(params.profile)}/)?([^/]+?)(?:/seed(\d{{1,10}}))?/?"
    if not (found := re.fullmatch(pattern, name)):
        raise ConfigError(f"--against {name}: give EXPERIMENT or EXPERIMENT/seedN.")
    experiment, seeds = found[1], [int(found[2])] if found[2] else params.seeds
    config = params.resolve(experiment, seeds[0])
    if config.dataset_name != dataset:
        raise ConfigError(
            f"--against {name}: is of {config.dataset_name}, the masks are of {dataset}. Give a "
            "run of the same data set."
        )
    named: list[Run] = [(experiment, seed) for seed in seeds]
    runs = read_runs(named, rows_of, params)
    if runs.missing:
        raise DataError(
            f"--against {name}: no rows of {runs.missing_names}. Run: mmnet predict --experiment "
            f"{experiment}."
        )
    return Rival(experiment, seeds, runs)


def scores_of(
    rows: pd.DataFrame, masks: SuppliedMasks, params: Params, dataset: str, name: str | None
) -> Values:
    """Return the scores as `mmnet evaluate` writes them: one training, of no known config."""
    return {
        "profile": params.profile,
        "experiment": name or masks.path.stem,
        "seed": 0,
        "dataset": dataset,
        "backbone": SUPPLIED,
        "config": None,
        "masks": {"file": masks.path.name, "sha256": masks.sha256.hexdigest()},
        "splits": {
            split: {"sentences": len(found), **summary(found)}
            for split in masks.splits
            for found in [rows[rows["split"] == split]]
            if len(found)
        },
    }


def difference_from(rival: Rival, rows: pd.DataFrame, scores: Values) -> Values:
    """Return each metric of the masks less the run's, in points, with its interval.

    Raises:
        DataError: the run's rows are of other sentences.
    """
    ours = rows.set_index(IDS).sort_index()
    theirs = rival.runs.rows[rival.experiment]
    splits: Values = {}
    for split in scores["splits"]:
        one, *others = (of[of.index.get_level_values("split") == split] for of in (ours, *theirs))
        if not others[0].index.equals(one.index):
            alone = len(one.index.symmetric_difference(others[0].index))
            raise DataError(
                f"--against: the sentences of {split} are not those of {rival.name}: {alone} are "
                "in only one of them. Predict it on the same data: mmnet predict."
            )
        images = one.index.get_level_values("image_id").nunique()
        splits[split] = {"sentences": len(one), "images": images}
        for metric in METRICS:
            arms = [(1.0, measured([one], metric)), (-1.0, measured(others, metric))]
            found = difference(arms)  # paired: of the same images
            splits[split][metric] = {
                "points": round(found.points, 4),
                "interval": [round(end, 4) for end in found.interval()],
            }
    about = {"profile": scores["profile"], "masks": scores["experiment"], "less": rival.experiment}
    return {**about, "seeds": rival.seeds, "level": LEVEL, "splits": splits}


def write(folder: Path, rows: pd.DataFrame, scores: Values, comparison: Values | None) -> None:
    """Write the files; the scores last."""
    rows.attrs["masks"] = scores["masks"]
    with atomic_path(folder / ROWS) as path:
        rows.to_parquet(path, index=False)
    if comparison:
        write_json(folder / AGAINST, comparison)
    else:
        (folder / AGAINST).unlink(missing_ok=True)  # an earlier call's
    write_json(folder / SCORES, scores)


def shown(scores: Values, comparison: Values | None) -> str:
    """Return tables of the scores and of the difference, for reading."""
    rows = [
        {"split": split, "sentences": of["sentences"], **{m: 100 * of[m] for m in METRICS}}
        for split, of in scores["splits"].items()
    ]
    text = f"{scores['experiment']}, {scores['dataset']}, in percent:\n{_text(rows)}"
    if not comparison:
        return text
    seeds = ", ".join(map(str, comparison["seeds"]))
    text += (
        f"\n\nLess {comparison['less']} (seed {seeds}), in points; {LEVEL:.0%} interval over other "
        "images, of these trainings alone:\n"
    )
    splits = comparison["splits"]
    rows = [
        {"split": split, "metric": metric, "difference": points, "low": low, "high": high}
        for split, of in splits.items()
        for metric in HEADLINES
        for points, (low, high) in [(of[metric]["points"], of[metric]["interval"])]
    ]
    few = [split for split, of in splits.items() if of["images"] < MIN_IMAGES]
    note = f"\nFewer than {MIN_IMAGES} images decide nothing: {', '.join(few)}." if few else ""
    return f"{text}{_text(rows)}{note}"


def _text(rows: list[Values]) -> str:
    return str(pd.DataFrame(rows).to_string(index=False, float_format="{:.2f}".format))
