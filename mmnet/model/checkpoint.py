"""Checkpoints: all that exact resume needs, written whole or not at all, loaded weights-only."""

import hashlib
import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from mmnet.config.schema import Config
from mmnet.runtime.errors import CheckpointError
from mmnet.runtime.files import atomic_path, checksum


def save(path: Path, content: dict[str, Any], *, previous: Path | None = None) -> None:
    """Write tensors and plain values; what `path` held becomes `previous`, once this one is whole.

    Raises:
        MMNetError: the file cannot be written, or reads back otherwise; `path` is as it was.
    """
    # Through memory: torch's own writer reports a full disk as a RuntimeError without the path.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        if checksum(temporary) != hashlib.sha256(buffer.getbuffer()).hexdigest():
            raise CheckpointError(
                f"{path}: reads back otherwise than it was written. Look at the disk; "
                "then the same command goes on from the checkpoint before."
            )
        if previous is not None and path.exists():
            path.replace(previous)


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote; no code in the file is run.

    Raises:
        CheckpointError: missing, damaged, or not of our making.
    """
    try:
        with warnings.catch_warnings():  # torch's own, of archives that are not ours
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip()  # torch.load compares no checksums
            if damaged is not None:
                raise zipfile.BadZipFile(f"{damaged} has another checksum")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found. Train the experiment first.") from None
    except Exception as error:  # a damaged file can raise nearly anything
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # torch's own words for it advise to run what the file holds.
        foreign = isinstance(error, pickle.UnpicklingError)
        reason = "not plain tensors and values; nothing was run" if foreign else lines[0][:120]
        raise CheckpointError(
            f"{path}: damaged or no checkpoint ({reason}). "
            "Delete it, then train again or fetch it again."
        ) from None
    if not (
        isinstance(content, dict)
        and {"model", "config"} <= content.keys()
        and isinstance(content["config"], dict)
    ):
        raise CheckpointError(f"{path}: not a checkpoint of mmnet. Name another file.")
    return content


def load_trained(path: Path, config: Config) -> dict[str, Any]:
    """Read a finished run's checkpoint.

    Raises:
        CheckpointError: as `load`, or the checkpoint belongs to another experiment.
    """
    content = load(path)
    theirs, ours = content["config"], config.identity()
    for key in ("profile", "experiment", "seed"):
        if theirs.get(key) != ours[key]:
            raise CheckpointError(
                f"{path}: is of {key} {theirs.get(key)!r}, not {ours[key]!r}. "
                "Name the checkpoint of the experiment asked for."
            )
    trained = _leaves(theirs)
    for key, value in _leaves(ours).items():
        if trained.get(key) != value:
            raise CheckpointError(
                f"{path}: was trained with {key} {trained.get(key)!r}; params.yaml has {value!r}. "
                "Train the experiment again, or restore params.yaml."
            )
    return content


def _leaves(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values that training depends on, by their dotted keys."""
    sections = ("dataset", "tower", "model", "train")
    return {"dataset_name": config.get("dataset_name")} | {
        f"{section}.{key}": value
        for section in sections
        for key, value in config.get(section, {}).items()
    }
