"""MMNet: Multi-Mask Network for Referring Image Segmentation. To use a trained model: `load`."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmnet.use.model import Model

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def load(path: str | Path, *, device: str = "auto", exact: bool = False) -> "Model":
    """Load a trained model; nothing but its own files is read.

    `path` is a run's folder, a checkpoint, a folder that `mmnet export` wrote, or hf:OWNER/NAME
    or hf:OWNER/NAME@REVISION, such a folder on the Hugging Face Hub.

    `device` is auto, cpu, cuda or cuda:N. With `exact`, the arithmetic, threads and algorithms are
    those of `mmnet predict`, for this whole process; otherwise torch's settings stay as they are.

    Raises:
        CheckpointError: the model is missing, damaged, or of another version of mmnet.
        ConfigError: there is no such device.
        MMNetError: with `exact`, torch or NumPy was imported before its arithmetic was chosen.
    """
    from mmnet.use.load import load

    return load(path, device=device, exact=exact)
