"""What the active profile's runs cost, before any starts: FLOPs, GPU hours, memory and disk.

Estimates, from the model's sizes and the data's counts; nothing is fetched, drawn or trained.
"""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mmnet.config.paths import Paths
from mmnet.config.schema import Config, Params, part_size
from mmnet.config.tables import TABLES, experiments_of
from mmnet.data.refer import read_table
from mmnet.pipeline.cost import Cost, cost
from mmnet.pipeline.memory import Activations, activations
from mmnet.runtime.errors import ConfigError

FORWARD_AND_BACKWARD = 3
"""In forward passes: backwards costs two."""
STATE = 4
"""Weights, gradients and Adam's two moments, in fp32."""
TRAINING = 10
"""Checkpoints' worth of disk that a run takes while it trains, at most: three states of the model
and Adam's moments, one of them being written, and the best model."""
REFS_PER_SCENE = 3
BYTES_PER_REF = 1_000
"""In a procedural archive."""
BYTES_PER_PIXEL = 0.5
TRAIN2014_IMAGES = 82_783

HEADS = (
    *("experiment", "tables", "dataset", "tower", "without", "N_q", "epochs", "items"),
    *("forward", "training", "GPU time", "at a time", "memory per GPU", "checkpoint"),
)


class Run(NamedTuple):
    """One experiment, once."""

    config: Config
    tables: Sequence[str]
    items: int
    cost: Cost
    activations: Activations

    @property
    def part_size(self) -> int:
        """Items at a time on one GPU."""
        return part_size(self.config.train, self.config.train.processes)

    @property
    def memory(self) -> int:
        """Of one GPU: the state, the gradients on their way to others, and what a part keeps."""
        copies = STATE + (self.config.train.processes > 1)
        kept = self.activations.fixed + self.activations.per_item * self.part_size
        return copies * self.checkpoint + kept

    @property
    def flops(self) -> int:
        """Of training."""
        return FORWARD_AND_BACKWARD * self.cost.flops * self.items * self.config.train.epochs

    @property
    def checkpoint(self) -> int:
        return 4 * self.cost.parameters

    def cells(self, flops_per_second: float) -> list[str]:
        config, model = self.config, self.config.model
        switches = {"MMP": model.mmp, "f_vg": model.f_vg, "MQE": model.mqe}
        return [
            config.experiment,
            ",".join(table.removeprefix("table") for table in self.tables),
            config.dataset_name,
            config.tower.label,
            ",".join(part for part, on in switches.items() if not on),
            str(model.num_queries),
            str(config.train.epochs),
            f"{self.items:,}",
            si(self.cost.flops, "FLOP"),
            si(self.flops, "FLOP"),
            duration(self.flops / flops_per_second),
            str(self.part_size),
            si(self.memory, "B"),
            si(self.checkpoint, "B"),
        ]


def plan(params: Params, paths: Paths, tables: Sequence[str], *, tflops: float) -> str:
    """Return the runs of some tables, or of all, and what they cost: one line each, totals last.

    Raises:
        ConfigError: no run is asked for, the rate is none, or a data set's size cannot be known.
    """
    if not (tflops > 0 and math.isfinite(tflops)):
        raise ConfigError(f"--tflops {tflops:g}: give the TFLOP/s that your GPU sustains, above 0.")
    chosen = [table for table in TABLES if not tables or table in tables]
    runs = costed_runs(params, paths, chosen)
    if not runs:
        raise ConfigError(
            f"params.yaml: no experiment has {' or '.join(chosen)} in its `tables`. Add it to one."
        )
    seeds, rate = params.seeds, tflops * 1e12
    flops = len(seeds) * sum(run.flops for run in runs)
    disk = disk_of(runs, params, paths)
    count = f"{len(runs)} experiments x {len(seeds)} seeds" if len(seeds) > 1 else "seed"
    lines = [
        f"Profile {params.profile} ({params.active.label}): {len(seeds) * len(runs)} runs, {count} "
        f"{', '.join(map(str, seeds))}. Each line is one run.",
        "forward: one image with one sentence, as `mmnet describe` counts it. training: "
        f"{FORWARD_AND_BACKWARD} x forward x items x epochs;",
        "evaluating and pre-training are not counted. memory: weights, gradients, Adam's moments "
        "and what the",
        "items at a time (batch_size / processes / accumulate) leave for the way back; the "
        "libraries take 1 GB or more besides.",
        f"GPU time: at {tflops:g} TFLOP/s, which is assumed, not measured (--tflops)."
        + (
            " This profile trains on the CPU: give its own."
            if runs[0].config.train.device == "cpu"
            else ""
        ),
        "",
        *aligned([list(HEADS), *(run.cells(rate) for run in runs)], words=5),
        "",
        *aligned([[f"disk, {name}", si(size, "B")] for name, size in disk.items()], words=1),
        "",
        f"In all: {len(seeds) * len(runs)} runs, {si(flops, 'FLOP')}, {duration(flops / rate)} on "
        f"one GPU, {si(sum(disk.values()), 'B')} of disk.",
    ]
    return "\n".join(lines)


def costed_runs(params: Params, paths: Paths, tables: Sequence[str]) -> list[Run]:
    """Return each experiment of the tables once, in the order of params.yaml."""
    of_dataset = cache(lambda name: items_of(name, params, paths))
    costs: dict[str, Cost] = {}
    kept: dict[tuple[str, int, str, bool], Activations] = {}
    runs = []
    for name in params.experiments:
        serves = [table for table in tables if name in experiments_of(table, params)]
        if not serves:
            continue
        config = params.resolve(name, params.seeds[0])
        length = config.dataset.max_length
        key = f"{config.model} {config.tower.architecture} {length}"
        if key not in costs:
            costs[key] = cost(config.model, config.tower, max_length=length)
        # What the rows of Tables 2-4 change hardly counts, and counting takes a second.
        train = config.train
        way = (config.tower_name, length, train.precision, train.checkpoint_activations)
        if way not in kept:
            kept[way] = activations(config)
        items = of_dataset(config.dataset_name)
        runs.append(Run(config, serves, items, costs[key], kept[way]))
    return runs


def items_of(name: str, params: Params, paths: Paths) -> int:
    """Return the training items of a data set: counted where it is prepared, else as published."""
    table = paths.table(name)
    if table.exists():
        return int(read_table(table, ["train"])["ref_id"].nunique())
    dataset = params.active.datasets[name]  # type: ignore[index]
    if dataset.counts and "train" in dataset.counts:
        return dataset.counts["train"].refs
    if params.active.shapes is not None:
        return REFS_PER_SCENE * scenes_of(name, params)["train"]
    raise ConfigError(
        f"params.yaml: profiles.{params.profile}.datasets.{name}.counts gives no refs of train, "
        f"and {table} is not there to count. Give them, or make it: mmnet prepare {name}."
    )


def scenes_of(name: str, params: Params) -> dict[str, int]:
    """Return the procedural images of each split; RefCOCO+ has RefCOCO's."""
    assert params.active.shapes is not None
    images: dict[str, dict[str, int]] = params.active.shapes.images.model_dump()
    return images["refcocog" if name == "refcocog" else "refcoco"]


def disk_of(runs: list[Run], params: Params, paths: Paths) -> dict[str, float]:
    """Return bytes by kind; of files that are there already, their size."""
    profile = params.active
    fetched = [name for name in profile.archives if profile.data.get(name) is None]
    images = images_bytes(params, paths)
    archives = 0.0
    for name in fetched:
        guess = float(profile.archives[name].bytes or 0)
        if not guess and profile.shapes is not None:
            # Drawn into a mirror, then fetched from it.
            guess = 2 * (images if name == "train2014" else _annotations(name, params))
        archives += _size(paths.archive(name), guess)
    towers = {run.config.tower_name: run for run in runs}
    weights = 0.0
    for tower, run in towers.items():
        path = paths.weights(tower, run.config.tower)
        is_openai = run.config.tower.pretrained == "openai"
        pinned = profile.weights[tower].bytes if is_openai else None
        weights += _size(path, pinned or 4 * run.cost.clip_parameters) if path else 0
    largest = max(run.checkpoint for run in runs)
    return {
        "archives": archives,
        "images": images,
        "CLIP towers": weights,
        "finished runs": len(params.seeds) * sum(run.checkpoint for run in runs),
        "more while one trains, at most": (TRAINING - 1) * largest,
    }


def images_bytes(params: Params, paths: Paths) -> float:
    profile = params.active
    if profile.shapes is not None:
        sides = profile.shapes.image_sizes
        pixels = sum(width * height for width, height in sides) / len(sides)
        scenes = sum(sum(scenes_of(name, params).values()) for name in ("refcoco", "refcocog"))
        return BYTES_PER_PIXEL * pixels * scenes
    # The data sets are of much the same images: about the largest one's.
    counted = [
        sum(split.images for split in dataset.counts.values())
        for dataset in profile.datasets.values()
        if dataset.counts
    ]
    each = (profile.archives["train2014"].bytes or 0) / TRAIN2014_IMAGES
    return each * max(counted, default=0)


def _annotations(name: str, params: Params) -> float:
    return BYTES_PER_REF * REFS_PER_SCENE * sum(scenes_of(name, params).values())


def _size(path: Path, guess: float) -> float:
    return path.stat().st_size if path.is_file() else guess


def si(value: float, unit: str) -> str:
    """Return a number to three digits, with a prefix: 3.3 EFLOP."""
    power = min(max(int(math.log10(value) // 3), 0), 7) if value else 0
    if float(f"{value / 1000**power:.3g}") >= 1000 and power < 7:
        power += 1
    return f"{value / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P', 'E', 'Z'][power]}{unit}"


def duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def aligned(rows: list[list[str]], *, words: int) -> list[str]:
    """Return rows in columns: words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if i < words else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
