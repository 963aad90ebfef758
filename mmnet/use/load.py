"""A run's folder or a checkpoint to a model that is ready to use.

Imports torch only when called: `exact` chooses the arithmetic before torch is loaded.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mmnet.runtime import portable
from mmnet.runtime.errors import CheckpointError, ConfigError
from mmnet.runtime.files import read_json
from mmnet.use.config import InferenceConfig

if TYPE_CHECKING:
    import torch

    from mmnet.model.mmnet import MMNet
    from mmnet.use.model import Model

CHECKPOINT = "checkpoint.pt"


def load(path: str | Path, *, device: str = "auto", exact: bool = False) -> "Model":
    """Load a trained model; see `mmnet.load`."""
    path = Path(path).expanduser()
    if exact:
        _choose_arithmetic(path)

    import torch

    from mmnet.runtime.device import prepare
    from mmnet.use.model import Model

    # An exported folder is to be told apart here.
    config, network = read_checkpoint(path / CHECKPOINT if path.is_dir() else path)
    if exact:
        if config.portable and portable.is_supported():
            portable.use()
        threads = config.threads or torch.get_num_threads()
        chosen = prepare(device, threads=threads, tf32=config.tf32)
    else:
        chosen = _device(device)
    return Model(config, network.to(chosen).eval(), chosen)


def read_checkpoint(path: Path) -> tuple[InferenceConfig, "MMNet"]:
    """Build the network of a checkpoint, with its weights, on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, or of another version of mmnet.
    """
    from mmnet.model import checkpoint
    from mmnet.model.build import build_model

    content = checkpoint.load(path)
    config = InferenceConfig.of_training(
        content["identity"]["values"], name=name_of(path), source=path
    )
    network = build_model(config.model, config.tower, weights=None)
    try:
        network.load_state_dict(content["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: does not fit the code's model ({reason}). Train the experiment again."
        ) from None
    return config, network


def name_of(checkpoint: Path) -> str:
    """Return EXPERIMENT/seedN of a run's checkpoint, and of another its file's name."""
    about = read_json(checkpoint.with_name("run.json"))
    if {"experiment", "seed"} <= about.keys():
        return f"{about['experiment']}/seed{about['seed']}"
    return checkpoint.stem


def _device(name: str) -> "torch.device":
    """Return the device of a name, leaving torch's settings as they are."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name}: {reason}. Choose another, or auto.") from None
    return device


def _choose_arithmetic(path: Path) -> None:
    """Choose the training's arithmetic by run.json; where that is missing, the portable one."""
    about = read_json((path if path.is_dir() else path.parent) / "run.json")
    values = about.get("identity", {}).get("values", {"portable": True})
    is_known, is_wanted = bool(about), values.get("portable", False)
    if not is_wanted or not portable.is_supported():
        return
    if is_known or not any(name in sys.modules for name in portable.READERS):
        portable.use()
