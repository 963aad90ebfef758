"""What the active profile's runs cost, before any starts: FLOPs, GPU hours, memory and disk.

Estimates from the model's sizes and the data's counts; nothing is downloaded, drawn or trained.
"""

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from matplotlib.ticker import EngFormatter
from tabulate import tabulate

from mmnet.config.paths import Paths
from mmnet.config.run import part_size
from mmnet.config.schema import Config, Params
from mmnet.config.tables import TABLES
from mmnet.data.refer import read_table
from mmnet.pipeline.cost import Cost, cost
from mmnet.pipeline.memory import Activations, activations
from mmnet.runtime.errors import ConfigError
from mmnet.runtime.progress import duration, readable

FORWARD_AND_BACKWARD = 3
"""In forward passes: the backward pass costs two."""
STATE = 4
"""Weights, gradients and Adam's two moments, in fp32."""
TRAINING = 10
"""Disk that a run takes while it trains, at most, in checkpoints of the model: three states of it
and of Adam's moments, one of them being written, and the best model."""
REFS_PER_SCENE = 3
TRAIN2014_IMAGES = 82_783

si = EngFormatter("FLOP", places=1)
"""A number of operations with a prefix: 55.5 EFLOP."""

NOTES = """\
training: 3 x forward pass (`mmnet describe`) x items x epochs, without evaluation and pre-training.
part: items that a GPU takes at a time, batch_size / processes / accumulate.
memory: weights, gradients, Adam's moments, and what a part keeps for the backward pass; libraries
need 1 GB or more besides."""


class CostedRun(NamedTuple):
    """One experiment, with one seed."""

    config: Config
    items: int
    part: int
    """Items at a time on one GPU."""
    flops: int
    """Of the whole training."""
    memory: int
    """Bytes on one GPU: the state, gradients in transit to other GPUs, a part's activations."""
    checkpoint: int
    """Bytes."""


def plan(params: Params, paths: Paths, tables: Sequence[str], *, tflops: float) -> str:
    """Return the runs of some tables, or of all, and what they cost: one line each, totals last.

    Raises:
        ConfigError: the tables have no run, the rate is invalid, or a data set's size is unknown.
    """
    rate = flops_per_second(tflops)
    runs = costed_runs(params, paths, tables)
    count = f"{len(params.seeds) * len(runs)} runs"
    flops = len(params.seeds) * sum(run.flops for run in runs)
    disk = disk_of(runs, params)
    table = tabulate(
        [_row(run, params, rate) for run in runs],
        "keys",
        tablefmt="plain",
        disable_numparse=True,
        colalign=["left"] * 4 + ["right"] * 7,
    )
    lines = [
        f"Profile {params.profile} ({params.active.label}): {count}, seeds "
        f"{', '.join(map(str, params.seeds))}. Each line is one run.",
        NOTES,
        f"GPU time: at {tflops:g} TFLOP/s, an assumed rate; set yours with --tflops.",
        f"\n{table}\n",
        *(f"disk, {name}: {readable(size)}" for name, size in disk.items() if size),
        f"In all: {count}, {si(flops)}, {duration(flops / rate)} on one GPU, "
        f"{readable(sum(disk.values()))} of disk.",
    ]
    return "\n".join(lines)


def _row(run: CostedRun, params: Params, rate: float) -> dict[str, Any]:
    config = run.config
    return {
        "experiment": config.experiment,
        "tables": ",".join(table[-1] for table in params.experiments[config.experiment].tables),
        "dataset": config.dataset_name,
        "tower": config.tower.label,
        "epochs": config.train.epochs,
        "items": f"{run.items:,}",
        "training": si(run.flops),
        "GPU time": duration(run.flops / rate),
        "part": run.part,
        "memory": readable(run.memory),
        "checkpoint": readable(run.checkpoint),
    }


def flops_per_second(tflops: float) -> float:
    """Return the rate that `--tflops` gives.

    Raises:
        ConfigError: it is not a positive number.
    """
    if not (tflops > 0 and math.isfinite(tflops)):
        raise ConfigError(f"--tflops {tflops:g}: give the TFLOP/s that your GPU sustains, above 0.")
    return tflops * 1e12


def costed_runs(params: Params, paths: Paths, tables: Sequence[str]) -> list[CostedRun]:
    """Return each experiment of the tables, or of all, once, in the order of params.yaml.

    Raises:
        ConfigError: there is none, or a data set's size is unknown.
    """
    chosen = [table for table in TABLES if not tables or table in tables]
    configs = [
        params.resolve(name, params.seeds[0])
        for name, experiment in params.experiments.items()
        if {*chosen} & {*experiment.tables}
    ]
    if not configs:
        raise ConfigError(
            f"params.yaml: no experiment has {' or '.join(chosen)} in its `tables`. Add it to one."
        )
    count_items = cache(lambda name: items_of(name, params, paths))
    kept: dict[Any, Activations] = {}
    runs = []
    for config in configs:
        length, train = config.dataset.max_length, config.train
        # What the rows of Tables 2-4 change hardly counts, and counting takes a second.
        kind = config.tower_name, length, train.precision, train.checkpoint_activations
        if kind not in kept:
            kept[kind] = activations(config)
        counted = cost(config.model, config.tower, max_length=length)
        items, part = count_items(config.dataset_name), part_size(train, train.processes)
        flops = FORWARD_AND_BACKWARD * counted.flops * items * train.epochs
        checkpoint, copies = 4 * counted.parameters, STATE + (train.processes > 1)
        memory = copies * checkpoint + kept[kind].fixed + kept[kind].per_item * part
        runs.append(CostedRun(config, items, part, flops, memory, checkpoint))
    return runs


def flops_of(epochs: Iterable[tuple[Config, float]], params: Params, paths: Paths) -> float:
    """Return what epochs of some trainings cost, the rows of Tables 2-4 being counted as equal.

    Raises:
        ConfigError: a data set's size is unknown.
    """
    count_items = cache(lambda name: items_of(name, params, paths))
    costs: dict[tuple[str, int], Cost] = {}
    total = 0.0
    for config, count in epochs:
        kind = config.tower_name, config.dataset.max_length
        if kind not in costs:
            costs[kind] = cost(config.model, config.tower, max_length=kind[1])
        total += costs[kind].flops * count_items(config.dataset_name) * count
    return FORWARD_AND_BACKWARD * total


def items_of(name: str, params: Params, paths: Paths) -> int:
    """Return the training items of a data set: counted where it is prepared, else as published.

    Raises:
        ConfigError: it is not prepared, and params.yaml has no published count.
    """
    table = paths.table(name)
    if table.exists():
        return int(read_table(table, ["train"])["ref_id"].nunique())
    dataset = params.active.datasets[name]  # type: ignore[index]
    if dataset.counts and "train" in dataset.counts:
        return dataset.counts["train"].refs
    if params.active.shapes is not None:
        images = params.active.shapes.images
        return REFS_PER_SCENE * (images.refcocog if name == "refcocog" else images.refcoco).train
    raise ConfigError(
        f"params.yaml: profiles.{params.profile}.datasets.{name}.counts has no refs of train, "
        f"and {table} does not exist. Add them, or make it: mmnet prepare {name}."
    )


def disk_of(runs: Sequence[CostedRun], params: Params) -> dict[str, float]:
    """Return bytes by kind. Procedural data and towers trained here are small: not counted."""
    profile = params.active
    openai = {r.config.tower_name for r in runs if r.config.tower.pretrained == "openai"}
    counts = [dataset.counts.values() for dataset in profile.datasets.values() if dataset.counts]
    # The data sets share most of their images: about as many as the largest one has.
    images = max((sum(split.images for split in splits) for splits in counts), default=0)
    fetched = [a for name, a in profile.archives.items() if profile.data.get(name) is None]
    checkpoints = [run.checkpoint for run in runs]
    return {
        "archives": sum(archive.bytes or 0 for archive in fetched),
        "images": (profile.archives["train2014"].bytes or 0) * images / TRAIN2014_IMAGES,
        "CLIP towers": sum(profile.weights[tower].bytes or 0 for tower in openai),
        "finished runs": len(params.seeds) * sum(checkpoints),
        "more while one trains, at most": (TRAINING - 1) * max(checkpoints),
    }
