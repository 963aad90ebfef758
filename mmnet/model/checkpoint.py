"""Checkpoints: all that exact resuming needs, written whole or not at all, loaded weights-only."""

import hashlib
import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from mmnet.config.identity import Identity, flat
from mmnet.config.schema import Config
from mmnet.runtime.errors import CheckpointError
from mmnet.runtime.files import atomic_path, checksum


def save(path: Path, content: dict[str, Any], *, previous: Path | None = None) -> None:
    """Write tensors and plain values; what `path` held becomes `previous`, once this one is whole.

    Raises:
        MMNetError: the file cannot be written, or its checksum differs; `path` is as it was.
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
                f"{path}: checksum mismatch after writing. Check the disk; the same command "
                "resumes from the previous checkpoint."
            )
        if previous is not None and path.exists():
            path.replace(previous)


def load(path: Path, *, remedy: str = "Delete it, then train or fetch it again.") -> dict[str, Any]:
    """Read what `save` wrote; no code in the file is run. `remedy` is of a damaged file.

    Raises:
        CheckpointError: missing, damaged, or not one of ours.
    """
    try:
        with warnings.catch_warnings():  # torch's own, about archives that are not ours
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip()  # torch.load compares no checksums
            if damaged is not None:
                raise zipfile.BadZipFile(f"checksum mismatch in {damaged}")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found. Train the experiment first.") from None
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror or error}. Fix its permissions, or move it "
            "away and train again."
        ) from None
    except Exception as error:  # a damaged file can raise nearly anything
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # torch's own message advises to run what the file holds.
        foreign = isinstance(error, pickle.UnpicklingError)
        reason = "not plain tensors and values; nothing was run" if foreign else lines[0][:120]
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({reason}). {remedy}") from None
    if not (
        isinstance(content, dict)
        and "model" in content
        and Identity.from_dict(content.get("identity"))
    ):
        raise CheckpointError(f"{path}: not a checkpoint of this version of mmnet. Train it again.")
    return content


def load_trained(path: Path, config: Config) -> dict[str, Any]:
    """Read a finished run's checkpoint.

    Raises:
        CheckpointError: as `load`, or it was trained with values other than `config`'s.
    """
    content = load(path)
    theirs, ours = flat(content["identity"]["values"]), flat(config.training_values())
    for key, value in ours.items():
        if theirs.get(key) != value:
            raise CheckpointError(
                f"{path}: was trained with {key} {theirs.get(key)!r}; params.yaml has {value!r}. "
                "Train the experiment again, or restore params.yaml."
            )
    return content
