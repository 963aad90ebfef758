"""What decides whether two trainings are the same: their values, their data and their code."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmnet.config.code import code
from mmnet.config.schema import Config
from mmnet.runtime.errors import DataError
from mmnet.runtime.files import checksum


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """What a training reads."""

    table: Path
    """The data set's sentences."""
    images: Path
    """The folder of images."""
    manifest: Path
    """Their names and sizes, which stand for the folder."""
    weights: Path | None
    """CLIP's weights; None: random ones."""

    @property
    def missing(self) -> list[Path]:
        """Files that do not exist yet, which an identity needs."""
        files = (self.table, self.manifest, self.weights)
        return [path for path in files if path is not None and not path.is_file()]

    def checksums(self, of: Callable[[Path], str] = checksum) -> dict[str, str | None]:
        """Return the SHA-256 of each input that exists; None of weights that are random."""
        files = {"table": self.table, "images": self.manifest, "weights": self.weights}
        return {
            name: of(path) if path else None
            for name, path in files.items()
            if path is None or path.is_file()
        }


SECTIONS = ("dataset", "tower", "model", "train")


@dataclass(frozen=True, kw_only=True)
class Identity:
    values: dict[str, Any]
    """`Config.training_values`"""
    data: dict[str, str | None]
    """SHA-256 of the table, of the manifest of images, and of the weights."""
    code: dict[str, str]
    """A hash of each file of the package that shapes the training."""

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def id(self) -> str:
        """The name of the run's work folder: 8 hexadecimal digits."""
        return self.digest[:8]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> "Identity | None":
        """Return the identity that `as_dict` gave; None of anything else."""
        keys = ("values", "data", "code")
        if not isinstance(values, dict) or not all(isinstance(values.get(k), dict) for k in keys):
            return None
        if not values["values"].keys() >= {"profile", "seed", "dataset_name", *SECTIONS}:
            return None
        return cls(**{key: values[key] for key in keys})


def training_identity(config: Config, inputs: RunInputs) -> Identity:
    """Return what a training of `config` would be; each input is read once.

    Raises:
        DataError: an input does not exist.
    """
    weights = inputs.weights
    if missing := inputs.missing:
        how = {
            inputs.table: f"prepare {config.dataset_name}",
            inputs.manifest: "unpack-images",
            weights: {"openai": "download-clip "}.get(config.tower.pretrained, "pretrain ")
            + config.tower_name,
        }
        raise DataError(f"{missing[0]}: not found. Make it first: mmnet {how[missing[0]]}.")
    values, files = config.training_values(), code("train", config)
    return Identity(values=values, data=inputs.checksums(), code=files)


def differences(old: Identity, new: Identity) -> list[str]:
    """Return in words what makes two trainings different ones: 'train.lr 1e-05 -> 2e-05'."""
    before, after, unset = flat(old.values), flat(new.values), "(not set)"
    found = [
        f"{key} {before.get(key, unset)} -> {after.get(key, unset)}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    found += [f"data: {key} changed" for key in new.data if old.data.get(key) != new.data[key]]
    found += [
        f"{path} {'changed' if path in old.code and path in new.code else 'added or removed'}"
        for path in sorted({*old.code, *new.code})
        if old.code.get(path) != new.code.get(path)
    ]
    return found


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return found
