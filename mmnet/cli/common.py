"""What commands share: params.yaml, names in it, and the device that they compute on."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from typing import Any

from mmnet.config.load import load_params
from mmnet.config.paths import Paths, RunPaths
from mmnet.config.schema import Config, Params, PretrainConfig, TowerConfig, TrainConfig
from mmnet.runtime.errors import ConfigError, TrainingError
from mmnet.runtime.gpus import HELD, take


def load(arguments: argparse.Namespace) -> tuple[Params, Paths]:
    params = load_params(arguments.params, arguments.set)
    return params, Paths(params.profile)


def load_run(arguments: argparse.Namespace) -> tuple[Config, Paths, RunPaths]:
    params, paths = load(arguments)
    seed = params.seeds[0] if arguments.seed is None else arguments.seed
    return params.resolve(arguments.experiment, seed), paths, paths.run(arguments.experiment, seed)


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


def _cards(name: str, count: int) -> contextlib.AbstractContextManager[Any]:
    """Cards that no other job holds, unless one is named, or torchrun has shared them out."""
    is_free = name in ("auto", "cuda") and "LOCAL_RANK" not in os.environ
    return take(count) if is_free else contextlib.nullcontext()


@contextlib.contextmanager
def computing(name: str | None, config: TrainConfig | PretrainConfig) -> Iterator[Any]:
    """Where to compute.

    Raises:
        ConfigError: there is no such device.
        TrainingError: its memory does not suffice.
    """
    import torch

    name = name or config.device
    with _cards(name, 1):
        device = _prepared(name, config)
        try:
            yield device
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0][:120]
            raise TrainingError(
                f"{device} has too little memory free ({reason}). Name another --device, or wait "
                "until its other users are done."
            ) from None


def _prepared(name: str, config: TrainConfig | PretrainConfig) -> Any:
    import torch

    from mmnet.runtime.distributed import is_launched

    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory before it writes it; filling it first costs a fifth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # cuBLAS is deterministic only with a fixed workspace.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and HELD in os.environ:
            raise ConfigError(
                f"--device auto: nvidia-smi lists GPUs, and torch {torch.__version__} cannot use "
                "them. Is the driver too old for it? Update it, or say --device cpu."
            )
    if name == "cuda" and is_launched():
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name}: {reason}. Name another, or none.") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if isinstance(config, TrainConfig):
        precision = "tf32" if config.tf32 else "ieee"
        torch.backends.cuda.matmul.fp32_precision = precision
        torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
    return device


def shared_out(config: Config, device: str | None) -> int | None:
    """Run this command under torchrun where it asks for it; return the exit code, None if not."""
    from mmnet.runtime.distributed import is_launched, launch

    processes = config.train.processes
    if processes == 1 or is_launched():
        return None
    device = device or config.train.device
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"--device {device}: is one GPU, and train.processes is {processes}. Name cuda."
        )
    with _cards(device, processes):
        return launch(processes, threads=config.train.threads)
