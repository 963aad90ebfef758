"""A run's folder, a checkpoint, an exported folder or a hub's address to a model ready to use.

Imports torch only when called: `exact` chooses the arithmetic before torch is loaded.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mmnet.runtime import portable
from mmnet.runtime.errors import ConfigError
from mmnet.runtime.files import read_json
from mmnet.use.config import InferenceConfig
from mmnet.use.folder import CHECKPOINT, CONFIG, FILES, build_network, read_folder
from mmnet.use.sources import is_folder

if TYPE_CHECKING:
    import torch

    from mmnet.model.mmnet import MMNet
    from mmnet.use.model import Model

ABOUT = "run.json"


def load(path: str | Path, *, device: str = "auto", exact: bool = False) -> "Model":
    """Load a trained model; see `mmnet.load`."""
    given, path = str(path), local(path)
    name = given if given.startswith("hf:") else str(path)
    if exact:
        choose_arithmetic(path)

    import torch

    from mmnet.runtime.device import prepare
    from mmnet.use.model import Model

    if is_exported(path):
        config, network = read_folder(path, name=name)
    else:
        config, network = read_checkpoint(path / CHECKPOINT if is_folder(path) else path)
    if exact:
        if config.portable and portable.is_supported():
            portable.use()
        threads = config.threads or torch.get_num_threads()
        chosen = prepare(device, threads=threads, tf32=config.tf32)
    else:
        chosen = _device(device)
    return Model(config, network.to(chosen).eval(), chosen)


def is_exported(path: Path) -> bool:
    """Whether a path is a folder other than a run's: then it should be an export."""
    return is_folder(path) and not any((path / name).exists() for name in (CHECKPOINT, ABOUT))


def read_checkpoint(path: Path) -> tuple[InferenceConfig, "MMNet"]:
    """Build the network of a checkpoint, with its weights, on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, or of another version of mmnet.
    """
    from mmnet.model import checkpoint

    content = checkpoint.load(path, remedy="Name a checkpoint, a run's folder or an export.")
    config = InferenceConfig.of_training(
        content["identity"]["values"], name=name_of(path), source=path
    )
    return config, build_network(config, content["model"], path, "Train the experiment again.")


def name_of(checkpoint: Path) -> str:
    """Return EXPERIMENT/seedN of a run's checkpoint, and of another its file's name."""
    about = read_json(checkpoint.with_name(ABOUT))
    if {"experiment", "seed"} <= about.keys():
        return f"{about['experiment']}/seed{about['seed']}"
    return checkpoint.stem


def local(path: str | Path) -> Path:
    """Return where a model is on this machine, once it is; of a file of an export, its folder.

    Raises:
        CheckpointError: of a hub's address: as `fetch`.
    """
    if str(path).startswith("hf:"):
        from mmnet.use.hub import fetch

        return fetch(str(path))
    path = Path(path).expanduser()
    return path.parent if path.name in FILES and path.is_file() else path


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


def choose_arithmetic(path: Path) -> None:
    """Choose the training's arithmetic by its values; where they are missing, the portable one."""
    if is_exported(path):
        inference = read_json(path / CONFIG).get("inference")
        about = values = inference if isinstance(inference, dict) else {}
    else:
        about = read_json((path if is_folder(path) else path.parent) / ABOUT)
        values = about.get("identity", {}).get("values", {"portable": True})
    is_known, is_wanted = bool(about), values.get("portable", False)
    if not is_wanted or not portable.is_supported():
        return
    if is_known or not any(name in sys.modules for name in portable.READERS):
        portable.use()
