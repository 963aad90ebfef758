"""CLIP's towers: open_clip's definitions and ours, one way to load weights into either."""

import warnings
import zipfile
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from open_clip.factory import load_state_dict
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from mmnet.errors import CheckpointError, ConfigError

open_clip.add_model_config(Path(__file__).parent / "towers")


def load_clip(
    architecture: str, *, weights: Path | None, image_size: int | None = None
) -> open_clip.CLIP:
    """Make a CLIP in fp32, with weights from a file or random ones, for images of a given size.

    OpenAI's weights are TorchScript archives and ours hold a state dict; every tensor must find
    its place. Another image size than the definition's resizes the position embeddings.
    """
    config = open_clip.get_model_config(architecture)
    if config is None or config.pop("custom_text", False):
        raise ConfigError(
            f"params.yaml: architecture {architecture!r} is no CLIP of open_clip or of "
            "mmnet/model/towers. Take one such as ViT-B-16-quickgelu."
        )
    clip = open_clip.CLIP(**config)
    if weights is not None:
        # The shapes are the same either way, so nothing else would tell.
        if _is_torchscript(weights) and not config.get("quick_gelu"):
            raise CheckpointError(
                f"{weights}: is OpenAI's, made for QuickGELU, which {architecture} has not. "
                f"Name {architecture}-quickgelu."
            )
        _load(clip, weights, architecture)
    if image_size is not None:
        _set_image_size(clip.visual, image_size)
    return clip


def _load(clip: open_clip.CLIP, weights: Path, architecture: str) -> None:
    try:
        with warnings.catch_warnings():  # torch.load announces that it hands over to torch.jit.
            warnings.simplefilter("ignore")
            state = load_state_dict(str(weights), weights_only=not _is_torchscript(weights))
    except FileNotFoundError:
        raise CheckpointError(f"{weights}: not found. Fetch or train it first.") from None
    except Exception as error:  # A foreign file may raise anything.
        raise CheckpointError(
            f"{weights}: not readable as weights ({_first_line(error)}). Delete it and fetch again."
        ) from None
    try:
        clip.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{weights}: holds no {architecture} ({_first_line(error)}). "
            "Name the architecture it was made for, or another file."
        ) from None


def _is_torchscript(path: Path) -> bool:
    # As torch.load tells them apart. TorchScript is no pickle and refuses weights_only.
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _set_image_size(visual: ModifiedResNet | VisionTransformer, image_size: int) -> None:
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
        resize_positions(pool.positional_embedding.detach(), grid)
    )


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """Resample the grid of (1 + g * g, width) position embeddings; the global one stays."""
    first, cells = positions[:1], positions[1:]
    side = round(len(cells) ** 0.5)
    if side == grid:
        return positions
    cells = cells.T.unflatten(1, (side, side))[None]  # (1, width, g, g)
    cells = F.interpolate(cells, (grid, grid), mode="bicubic", antialias=True)
    return torch.cat([first, cells[0].flatten(1).T])


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # PyTorch heads its list of mismatches with a line that names none.
    if len(lines) > 1 and lines[0].endswith(":"):
        lines = lines[1:]
    return lines[0][:200].rstrip(".") if lines else type(error).__name__
