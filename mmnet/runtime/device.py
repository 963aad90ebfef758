"""The device that a command computes on: chosen, checked and set up before the first tensor."""

import contextlib
import os
from collections.abc import Iterator

import torch

from mmnet.runtime.errors import ConfigError, TrainingError
from mmnet.runtime.gpus import HELD, ORDER, VISIBLE, take_for
from mmnet.runtime.launcher import is_launched


@contextlib.contextmanager
def computing_on(name: str, *, threads: int, tf32: bool | None = None) -> Iterator[torch.device]:
    """Prepare a device, on a GPU that no other process of this user holds.

    Raises:
        ConfigError: there is no such device.
        TrainingError: its memory does not suffice.
    """
    with take_for(name, 1):
        device = prepare(name, threads=threads, tf32=tf32)
        try:
            yield device
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0][:120]
            raise TrainingError(
                f"{device} has too little free memory ({reason}). Choose another --device, or wait "
                "until its other users have finished."
            ) from None


def prepare(name: str, *, threads: int, tf32: bool | None = None) -> torch.device:
    """Return the device of a name (auto, cpu, cuda, cuda:1), with torch set up for it.

    `threads` are the CPU's. `tf32` permits TF32 in products and convolutions of fp32; None leaves
    torch's default.

    Raises:
        ConfigError: there is no such device, or torch cannot use it.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory before it writes it; filling it first costs a fifth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # cuBLAS is deterministic only with a fixed workspace.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if VISIBLE not in os.environ:
        os.environ.setdefault(ORDER, "PCI_BUS_ID")  # cuda:1 is number 1 of nvidia-smi
    if tf32 is not None:
        precision = "tf32" if tf32 else "ieee"
        torch.backends.cuda.matmul.fp32_precision = precision
        torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
    name = _resolved(name)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name}: {reason}. Choose another, or none.") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _resolved(name: str) -> str:
    """Return what `auto` and, for one process of several, `cuda` stand for."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and HELD in os.environ:
            raise ConfigError(
                f"--device auto: nvidia-smi lists GPUs that torch {torch.__version__} cannot use. "
                "The driver may be too old: update it, or choose --device cpu."
            )
    return f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and is_launched() else name
