"""CLIP's towers: open_clip's definitions and ours, one way to load weights into either."""

import io
import pickle
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.factory import load_state_dict
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import Transformer, VisionTransformer
from torch import Tensor, nn

from mmnet.runtime.errors import CheckpointError, ConfigError

open_clip.add_model_config(Path(__file__).parent / "towers")


def load_clip(
    architecture: str,
    *,
    weights: Path | None,
    image_size: int | None = None,
    antialias: bool = True,
) -> open_clip.CLIP:
    """Make a CLIP in fp32, with weights from a file or random ones, for images of a given size.

    OpenAI's weights are TorchScript archives and ours hold a state dict; every tensor must find
    its place. Another image size than the definition's resizes the position embeddings,
    `antialias` as in `resize_positions`.
    """
    config = open_clip.get_model_config(architecture)
    if config is None or config.pop("custom_text", False):
        raise ConfigError(
            f"params.yaml: architecture {architecture!r} is no CLIP of open_clip or of "
            "mmnet/model/towers. Take one such as ViT-B-16-quickgelu."
        )
    state = None
    if weights is not None:
        # The shapes are the same either way, so nothing else would tell.
        if _is_torchscript(weights) and not config.get("quick_gelu"):
            raise CheckpointError(
                f"{weights}: is OpenAI's, made for QuickGELU, which {architecture} has not. "
                f"Name {architecture}-quickgelu."
            )
        state = _read(weights)
    clip = open_clip.CLIP(**config)
    if state is not None:
        try:
            clip.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{weights}: holds no {architecture} ({_first_line(error)}). "
                "Name the architecture it was made for, or another file."
            ) from None
    if image_size is not None:
        _set_image_size(clip.visual, image_size, antialias=antialias)
    return clip


def _read(weights: Path) -> Any:
    """Read a state dict; no code in the file is run."""
    try:
        if _is_torchscript(weights):
            return _read_torchscript(weights)
        return load_state_dict(str(weights), weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{weights}: not found. Fetch or train it first.") from None
    except Exception as error:  # A foreign file may raise anything.
        raise CheckpointError(
            f"{weights}: not readable as weights ({_first_line(error)}). Fetch or train it again; "
            "of your own file, name a whole copy in towers.*.pretrained in params.yaml."
        ) from None


def _is_torchscript(path: Path) -> bool:
    # As torch.load tells them apart.
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


# OpenAI's archives are programs of TorchScript. torch.load refuses to read those weights-only, and
# torch.jit.load runs the __setstate__ of any class in them, so we read the tensors ourselves:
# data.pkl has the tree of modules, data/0, data/1, ... the bytes. The code is left alone.

DTYPES = {"HalfStorage": torch.half, "FloatStorage": torch.float, "LongStorage": torch.long}
NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")


class _Named:
    """Stands for whatever a pickle names: it keeps what it is given and does nothing."""

    def __init__(self, *given: Any) -> None:
        self.given = given


class _NamesOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return type(name, (_Named,), {})

    def persistent_load(self, storage: Any) -> Any:
        return storage  # ("storage", type, file, device, length)


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].partition("/")[0]
        model = _NamesOnly(io.BytesIO(archive.read(f"{root}/data.pkl"))).load()
        state = {}
        for name, (storage, offset, size, stride, *_) in _tensors(model):
            _, kind, file, _, _ = storage
            content = bytearray(archive.read(f"{root}/data/{file}"))  # checks the CRC
            values = torch.frombuffer(content, dtype=DTYPES[kind.__name__])
            state[name] = values.as_strided(size, stride, offset)
    return {name: tensor for name, tensor in state.items() if name not in NO_WEIGHTS}


def _tensors(module: _Named, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the tensors under a module: names as in a state dict, and how to rebuild them."""
    for name, value in vars(module).items():
        if type(value).__name__ == "_rebuild_tensor_v2":
            yield prefix + name, value.given
        elif isinstance(value, _Named):
            yield from _tensors(value, f"{prefix}{name}.")


def _set_image_size(
    visual: ModifiedResNet | VisionTransformer, image_size: int, *, antialias: bool
) -> None:
    """Fit a tower to square images, or, for a ViT, to the largest multiple of its patch."""
    pool = visual
    if isinstance(visual, ModifiedResNet):
        pool, grid = visual.attnpool, image_size // 32
        visual.image_size = image_size
    else:
        grid = image_size // visual.patch_size[0]
        visual.grid_size = (grid, grid)
        visual.image_size = (grid * visual.patch_size[0],) * 2
    pool.positional_embedding = nn.Parameter(
        resize_positions(pool.positional_embedding.detach(), grid, antialias=antialias)
    )


def resize_positions(positions: Tensor, grid: int, *, antialias: bool = True) -> Tensor:
    """Resample the grid of (1 + g * g, width) position embeddings; the global one stays.

    Bicubic: with a = -0.5, as open_clip, or, without `antialias`, -0.75, as CRIS.
    """
    first, cells = positions[:1], positions[1:]
    side = round(len(cells) ** 0.5)
    if side == grid:
        return positions
    cells = cells.T.unflatten(1, (side, side))[None]  # (1, width, g, g)
    cells = F.interpolate(cells, (grid, grid), mode="bicubic", antialias=antialias)
    return torch.cat([first, cells[0].flatten(1).T])


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # PyTorch heads its list of mismatches with a line that names none.
    if len(lines) > 1 and lines[0].endswith(":"):
        lines = lines[1:]
    if not lines:
        return type(error).__name__
    return textwrap.shorten(lines[0].split(". ")[0].rstrip("."), 200, placeholder=" ...")


def recompute(model: nn.Module, is_on: bool) -> None:
    """Let the towers' transformer blocks be computed again backwards, or be remembered."""
    for part in model.modules():
        if isinstance(part, Transformer):
            part.grad_checkpointing = is_on
