"""The folder that `mmnet export` writes, read: config.json and model.safetensors, nothing else.

Both are plain values: no file that could run code is ever opened.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mmnet.runtime.errors import CheckpointError
from mmnet.runtime.files import checksum
from mmnet.use.config import InferenceConfig

if TYPE_CHECKING:
    from torch import Tensor

    from mmnet.model.mmnet import MMNet

CONFIG, WEIGHTS = "config.json", "model.safetensors"
CHECKPOINT = "checkpoint.pt"
"""Of a run, whose folder is another."""
CARD, IMAGE, HEAD = "README.md", "image.pt2", "head.pt2"
FILES = {WEIGHTS, CONFIG, CARD, IMAGE, HEAD}
"""All that an exported folder may hold."""
FORMAT = "mmnet"
VERSION = 1
"""Of config.json; it grows when an older mmnet could not read what a newer one writes."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
REMEDY = "Export the run again: mmnet export."


def read_folder(folder: Path, *, name: str) -> tuple[InferenceConfig, "MMNet"]:
    """Build the network of an exported folder, with its weights in fp32, on the CPU.

    Errors call the folder by `name`.

    Raises:
        CheckpointError: a file is missing, damaged, of a newer format, or not of this model.
    """
    content = read_config(folder, name=name)
    config = _inference_config(content, name)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"{name}: has no {WEIGHTS}.{_pickles_in(folder)} {REMEDY}")
    network = build_network(config, _read_weights(weights, name), f"{name}/{WEIGHTS}", REMEDY)
    stated = content.get("weights")
    if not isinstance(stated, dict) or checksum(weights) != stated.get("sha256"):
        raise CheckpointError(
            f"{name}/{WEIGHTS}: its SHA-256 is not the one in {CONFIG}: damaged, or of another "
            "export. Copy the folder again, or export the run again."
        )
    return config, network


def read_config(folder: Path, *, name: str) -> dict[str, Any]:
    """Return the values of config.json.

    Raises:
        CheckpointError: it is missing, no JSON, not ours, or of a newer format.
    """
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if seeds := sorted(path.parent.name for path in folder.glob(f"seed*/{CHECKPOINT}")):
            raise CheckpointError(
                f"{name}: holds the runs {', '.join(seeds)}. Name one, such as {name}/{seeds[0]}."
            ) from None
        raise CheckpointError(
            f"{name}: has no {CONFIG}, so it is not what `mmnet export` writes."
            f"{_pickles_in(folder)} {REMEDY}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{name}/{CONFIG}: damaged ({reason}). {REMEDY}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{name}/{CONFIG}: not of an exported MMNet. {REMEDY}")
    version = content.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise CheckpointError(
            f"{name}/{CONFIG}: has format version {version}; this mmnet reads up to {VERSION}. "
            "Install a newer mmnet."
        )
    return content


def _inference_config(content: dict[str, Any], name: str) -> InferenceConfig:
    try:
        return InferenceConfig.model_validate(content.get("inference"))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["inference", *map(str, first["loc"])])
        raise CheckpointError(f"{name}/{CONFIG}: {key}: {first['msg']}. {REMEDY}") from None


def _read_weights(path: Path, name: str) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"{name}/{WEIGHTS}: damaged or cut short ({reason}). Copy or download it again."
        ) from None


def build_network(
    config: InferenceConfig, state: "dict[str, Tensor]", source: object, remedy: str
) -> "MMNet":
    """Build a network with the weights that `source` has, on the CPU.

    Names and shapes are compared first, without memory for weights: a foreign `config` may ask
    for any.

    Raises:
        CheckpointError: they do not fit.
    """
    import torch

    from mmnet.model.build import build_model

    try:
        with torch.device("meta"):
            shapes = {name: tensor.to("meta") for name, tensor in state.items()}
            build_model(config.model, config.tower, weights=None).load_state_dict(shapes)
        if len(shapes["text_encoder.positional_embedding"]) < config.max_length:
            raise ValueError(f"max_length {config.max_length} is more than the text encoder takes")
        network = build_model(config.model, config.tower, weights=None)
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{source}: does not fit the model ({reason}). {remedy}") from None
    return network


def _pickles_in(folder: Path) -> str:
    """Say which files of the folder could run code, and are therefore not read."""
    found = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    return f" Pickles can run code and are not read: {', '.join(found[:3])}." if found else ""
