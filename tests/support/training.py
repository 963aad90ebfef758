"""Training the tiny benchmark, and configs that differ in one value."""

from pathlib import Path
from typing import Any

import torch

from mmnet.config.identity import Identity, RunInputs, training_identity
from mmnet.config.paths import RunPaths, WorkPaths
from mmnet.config.schema import Config
from mmnet.train import loop

CPU = torch.device("cpu")


def with_train(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def inputs_of(tiny: Any) -> RunInputs:
    return RunInputs(table=tiny.table, images=tiny.images, manifest=tiny.manifest, weights=None)


def identity_of(tiny: Any, config: Config | None = None) -> Identity:
    return training_identity(config or tiny.config, inputs_of(tiny))


def identity_like(config: Config) -> dict[str, Any]:
    """Return what a made-up checkpoint says of its training."""
    return {"values": config.training_values(), "data": {}, "code": {}}


def run_in(root: Path, config: Config) -> RunPaths:
    return RunPaths(config.profile, config.experiment, config.seed, root)


def work_of(tiny: Any, root: Path, config: Config | None = None) -> WorkPaths:
    """Return the folder in which `fit` with the same arguments works."""
    config = config or tiny.config
    return run_in(root, config).work(identity_of(tiny, config))


def fit(tiny: Any, root: Path, config: Config | None = None) -> Path:
    """Train below `root`, and return the folder of what is published."""
    config = config or tiny.config
    run = run_in(root, config)
    identity = identity_of(tiny, config)
    loop.fit(config, identity, inputs=inputs_of(tiny), run=run, device=CPU)
    return run.folder
