"""What trainings would leave, made up: rows, scores, examples, and what is written of them."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from mmnet.config.load import load_params
from mmnet.config.paths import Paths
from mmnet.config.schema import Params
from mmnet.config.tables import TABLES, experiments_of, runs_of, shown_run
from mmnet.evaluate.metrics import MEASURES, METRICS, score_run
from mmnet.evaluate.selection import KINDS
from mmnet.report.claims.statements import ROWS, wanted_runs
from mmnet.report.claims.write import write_claims
from mmnet.report.figures.figure4 import write_figure4
from mmnet.report.figures.mask_figures import write_figure5, write_figure6
from mmnet.report.rows import IDS
from mmnet.report.tables.write import write_table
from mmnet.runtime.errors import ConfigError, DataError
from support.tiny import ROOT

Floats = NDArray[np.float64]


Values = Callable[[str, str, pd.DataFrame], Floats]
"""Experiment, split and the split's sentences → their IoU."""


def sentences(splits: list[str], images: int = 24) -> pd.DataFrame:
    """Two or three sentences of each image."""
    rows = [
        (split, 100 * number + image, 100 * number + image, 100 * number + image)
        for number, split in enumerate(splits)
        for image in range(images)
        for _ in range(2 + image % 2)
    ]
    frame = pd.DataFrame(rows, columns=IDS[:-1])
    return frame.assign(sent_id=range(len(frame)))


@functools.cache
def published(experiment: str, split: str) -> float:
    frame = pd.read_csv(ROOT / "mmnet/report/published.csv")
    for key in ("table", "method", "backbone"):
        frame = frame[frame[key] == getattr(ROWS[experiment], key)]
    if experiment.startswith("refcoco"):
        name = experiment.rsplit("_vit", 1)[0].replace("_plus", "+")
        frame = frame[frame["dataset"] == name]
    cells = frame[(frame["metric"] == "IoU") & (frame["split"] == split)]["value"]
    return float(cells.iloc[0]) / 100 if len(cells) else 0.5


def noise(experiment: str, rows: pd.DataFrame, size: float) -> Floats:
    """Alike within an image, another in each run, and nothing on average."""
    rng = np.random.default_rng([*ROWS].index(experiment))
    values = size * rng.normal(size=rows["image_id"].nunique())
    values = values[rows["image_id"].factorize()[0]]
    return np.asarray(values - values.mean())


class Bench:
    """Rows of every run in a folder, and the report on them.

    `trainings`: how far each run is off its method's values, as a standard deviation.
    """

    def __init__(
        self,
        folder: Path,
        params: Params,
        values: Values,
        images: int = 24,
        trainings: float = 0.0,
    ) -> None:
        self.folder, self.params = folder, params
        for experiment, seed in wanted_runs(params):
            if experiment not in params.experiments:
                continue
            config = params.resolve(experiment, seed)
            rows = sentences(config.dataset.splits, images)
            ious = [
                values(experiment, str(split), of)
                for split, of in rows.groupby("split", sort=False)
            ]
            rows["union"] = 10**9
            off = np.random.default_rng([[*ROWS].index(experiment), seed]).normal(0, trainings)
            rows["intersection"] = np.rint((np.concatenate(ious) + off) * 10**9).astype(int)
            rows.attrs["config"] = config.prediction_values()
            self.path(experiment, seed).parent.mkdir(parents=True, exist_ok=True)
            rows.to_parquet(self.path(experiment, seed), index=False)

    def path(self, experiment: str, seed: int) -> Path:
        return self.folder / Paths(self.params.profile).run(experiment, seed).rows

    def change(self, run: str, how: Callable[[pd.DataFrame], pd.DataFrame], **config: Any) -> None:
        path = self.path(run, 0)
        rows = pd.read_parquet(path)
        attrs = rows.attrs["config"] | config
        rows = how(rows)
        rows.attrs["config"] = attrs
        rows.to_parquet(path, index=False)

    def scores(self, table: str) -> list[Path]:
        """Write and return the score files of a table's runs."""
        return [self.score(*run) for run in runs_of(table, self.params)]

    def score(self, experiment: str, seed: int) -> Path:
        path = self.folder / Paths(self.params.profile).run(experiment, seed).scores
        path.parent.mkdir(parents=True, exist_ok=True)
        scores = score_run(self.params.resolve(experiment, seed), rows=self.path(experiment, seed))
        path.write_text(json.dumps(scores))
        return path

    def write(self, folder: str = "results", params: Params | None = None) -> dict[str, Any]:
        """Claim → what claims.json holds of it."""
        out = self.folder / folder
        write_claims(self.path, out, params=params or self.params)
        assert sorted(path.name for path in out.iterdir()) == ["claims.json", "claims.md"]
        found = json.loads((out / "claims.json").read_text())
        return {claim["name"]: claim for claim in found["claims"]}

    def markdown(self) -> str:
        return (self.folder / "results" / "claims.md").read_text()

    def refusal(self, params: Params | None = None) -> str:
        """The one line that refuses, after checking that nothing was written."""
        with pytest.raises((ConfigError, DataError)) as caught:
            self.write(params=params)
        assert not (self.folder / "results").exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)


def made_up(queries: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of any sentence, with awkward words."""
    draw = np.random.default_rng(0)
    words = ["[SOS]", "the", "$x_1$", "赤い", "un" * 30, *["word"] * 15, "[EOS]"]
    about = {
        **{"profile": "paper", "experiment": "nq_24", "seed": 0, "dataset": "refcoco+"},
        **{"split": "testA", "backbone": "RN50", "num_queries": queries, "threshold": 0.35},
        **{"sentence": " ".join(words), "words": words, "iou": 0.5, "rule": "A rule."},
        **{"sentences": 5726, "queries": dict.fromkeys(MEASURES, 0.25)},
        "mean_queries": dict.fromkeys(MEASURES, 0.00032),
    }
    masks = draw.normal(0, 900, (queries, 40, 60))
    arrays = {
        "masks": masks,
        "y": masks.mean(0),
        "scores": draw.dirichlet(np.ones(queries)),
        "attention": draw.dirichlet(np.ones(len(words)), queries),
        "image": draw.integers(0, 255, (3, 40, 60), dtype=np.uint8),
        "truth": masks[0] > 0,
    }
    return about, arrays


def params_of(profile: str, *overrides: str) -> Params:
    return load_params(ROOT / "params.yaml", [f"profile={profile}", *overrides])


def scattered(experiment: str, split: str, rows: pd.DataFrame) -> Floats:
    """About as published, sentence by sentence."""
    values = published(experiment, split) + noise(experiment, rows, 0.05)
    values += np.random.default_rng(len(experiment)).normal(0, 0.15, len(rows))
    return np.asarray(values.clip(0, 1))


Value = Callable[[int, int, int, int], float]
"""Number of the experiment, number of the split, seed and number of the metric → its value."""


def distinct(experiment: int, split: int, seed: int, metric: int) -> float:
    """A different number in every cell."""
    return 0.5 + 0.05 * experiment + 0.01 * split + 0.001 * seed - 0.02 * metric


def make_scores(
    params: Params, folder: Path, table: str = "table1", value: Value = distinct
) -> list[Path]:
    """Write a score file for each run of a table."""
    paths = []
    for number, experiment in enumerate(experiments_of(table, params)):
        for seed in params.seeds:
            config = params.resolve(experiment, seed)
            splits = {
                split: {"sentences": 1000 + column}
                | {metric: value(number, column, seed, i) for i, metric in enumerate(METRICS)}
                for column, split in enumerate(config.dataset.splits)
            }
            scores = {
                "profile": params.profile,
                "experiment": experiment,
                "seed": seed,
                "dataset": config.dataset_name,
                "backbone": config.tower.label,
                "splits": splits,
            }
            paths.append(folder / params.profile / experiment / f"seed{seed}.json")
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            paths[-1].write_text(json.dumps(scores))
    return paths


def change_scores(path: Path, split: str = "", **values: Any) -> None:
    """Replace values of a score file, or of one of its splits."""
    scores = json.loads(path.read_text())
    (scores["splits"][split] if split else scores).update(values)
    path.write_text(json.dumps(scores))


def make_runs(folder: Path, params: Params) -> None:
    """Write what trainings leave in `folder`: rows, scores, and what Figures 5 and 6 show."""
    paths = Paths(params.profile)
    bench = Bench(folder, params, scattered)
    for name in params.experiments:
        for seed in params.seeds:
            bench.score(name, seed)
    config = params.resolve(shown_run(params), params.seeds[0])
    about, arrays = made_up(config.model.num_queries)
    about |= {"profile": config.profile, "experiment": config.experiment, "seed": config.seed}
    about |= {"backbone": config.tower.label, "rule": "A rule, given in words."}
    shown = (config.experiment, config.seed)
    (folder / paths.run(*shown).queries).parent.mkdir(parents=True, exist_ok=True)
    np.savez(folder / paths.run(*shown).queries, about=json.dumps(about), **arrays)
    about["without"] = f"{config.experiment}_no_mmp"
    about["examples"] = [
        {"sentence": "the left", "kind": kind, "gain": 0.5, "iou_with": 0.75, "iou_without": 0.25}
        for kind in KINDS
        for _ in range(2)
    ]
    tiles = {
        f"{k}/{key}": arrays["image"] if key == "image" else arrays["masks"][0] > 0
        for k in range(len(about["examples"]))
        for key in ("image", "truth", "with", "without")
    }
    np.savez(folder / paths.run(*shown).examples, about=json.dumps(about), **tiles)


def make_results(folder: Path, params: Params) -> Path:
    """Write the tables, figures and claims of such runs; return their folder."""
    make_runs(folder, params)
    results, paths = folder / "results", Paths(params.profile)

    def scores(table: str) -> list[Path]:
        return [folder / paths.run(*run).scores for run in runs_of(table, params)]

    def rows_of(experiment: str, seed: int) -> Path:
        return folder / paths.run(experiment, seed).rows

    for table in TABLES:
        write_table(table, scores(table), results, params=params, rows_of=rows_of)
    write_claims(rows_of, results, params=params)
    write_figure4(scores("table2"), results, params=params, rows_of=rows_of)
    config = params.resolve(shown_run(params), params.seeds[0])
    shown = (config.experiment, config.seed)
    write_figure5(folder / paths.run(*shown).examples, config, results, label="a label")
    write_figure6(folder / paths.run(*shown).queries, config, results, label="a label")
    return results


Ref = tuple[str, int, int, int, list[int]]
"""Split, image, annotation, pixels of the mask (of 100 x 100), tokens of each sentence."""


REFCOCO: list[Ref] = [
    # Two refs of one object: 3 refs, 2 objects, 2 images. Masks of 0.99, 0.99 and 20.01 %.
    ("train", 1, 10, 99, [5, 18, 4]),
    ("train", 1, 10, 99, [17]),
    ("train", 2, 11, 2001, [6, 6]),
    ("val", 3, 12, 0, [2, 3]),
    ("val", 4, 13, 100, [4]),
    ("testA", 5, 14, 500, [20, 18]),
    ("testB", 6, 15, 500, [3]),
]


REFCOCO_PLUS: list[Ref] = [
    *(("train", image, 10 + image, 500, [3]) for image in (1, 2, 3)),
    *(("val", image, 10 + image, 500, [3]) for image in (4, 2)),
    ("testA", 5, 15, 500, [3]),
    ("testB", 6, 16, 500, [3]),
]


G_REF: list[Ref] = [
    *(("train", image, 10 + image, 500, [23]) for image in (4, 5, 9)),
    *(("val", image, 10 + image, 500, [22]) for image in (1, 7, 8)),
    ("test", 2, 12, 500, [3]),
]


def hand_made_tables(folder: Path) -> list[Path]:
    paths = []
    for name, refs in (("refcoco", REFCOCO), ("refcoco+", REFCOCO_PLUS), ("refcocog", G_REF)):
        columns = ["split", "ref_id", "ann_id", "image_id", "area", "height", "width", "tokens"]
        rows = [
            (split, ref_id, ann_id, image_id, area, 100, 100, tokens)
            for ref_id, (split, image_id, ann_id, area, lengths) in enumerate(refs)
            for tokens in lengths
        ]
        paths.append(folder / f"{name}.parquet")
        pd.DataFrame(rows, columns=columns).to_parquet(paths[-1])
    return paths


def table_rows(folder: Path, table: str = "table1") -> list[list[str]]:
    """Cells of a table's Markdown, the heads first."""
    lines = (folder / f"{table}.md").read_text().splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [cells[0], *cells[2:]]
