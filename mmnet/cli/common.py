"""What commands share: params.yaml, names in it, the device, and several processes."""

import argparse
import contextlib
from typing import Any

from mmnet.config.paths import Paths, RunPaths
from mmnet.config.run import TrainConfig
from mmnet.config.schema import Config, Params, PretrainConfig, TowerConfig
from mmnet.runtime.errors import ConfigError
from mmnet.runtime.gpus import take_for
from mmnet.runtime.launcher import is_launched, launch


def load(arguments: argparse.Namespace) -> tuple[Params, Paths]:
    params: Params = arguments.loaded
    return params, Paths(params.profile)


def load_run(arguments: argparse.Namespace) -> tuple[Params, Paths, Config, RunPaths]:
    params, paths = load(arguments)
    seed = params.seeds[0] if arguments.seed is None else arguments.seed
    config = params.resolve(arguments.experiment, seed)
    return params, paths, config, paths.run(arguments.experiment, seed)


def known_name(name: str, known: dict[Any, Any], what: str) -> Any:
    if name not in known:
        raise ConfigError(f"no {what} {name!r}. Known: {', '.join(known)}.")
    return known[name]


def known_tower(name: str, params: Params, *, pretrained: str) -> TowerConfig:
    tower: TowerConfig = known_name(name, params.active.towers, "tower")
    if tower.pretrained != pretrained:
        raise ConfigError(
            f"profiles.{params.profile}.towers.{name}.pretrained is {tower.pretrained!r}, not "
            f"{pretrained!r}: this command has nothing to do for it."
        )
    return tower


def computing(
    name: str | None, config: TrainConfig | PretrainConfig
) -> contextlib.AbstractContextManager[Any]:
    """Prepare the device that --device or params.yaml names; `with` it, yield it."""
    from mmnet.runtime.device import computing_on

    tf32 = config.tf32 if isinstance(config, TrainConfig) else None
    return computing_on(name or config.device, threads=config.threads, tf32=tf32)


def launched(arguments: argparse.Namespace, config: Config) -> int | None:
    """Run this command in `train.processes` processes; return the exit code, None for one.

    Raises:
        ConfigError: --device names one GPU, and there are several processes.
    """
    processes = config.train.processes
    if processes == 1 or is_launched():
        return None
    device = arguments.device or config.train.device
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"--device {device}: names one GPU, and train.processes is {processes}. Choose cuda."
        )
    with take_for(device, processes):
        return launch(arguments.command_line, processes, threads=config.train.threads)
