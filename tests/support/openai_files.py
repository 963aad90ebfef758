"""Weight files in OpenAI's own format, at true size, with random values."""

import io
import math
import warnings
import zipfile
from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn

HALF = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)
"""OpenAI's convert_weights halves these, and the two projections; norms, embeddings and the
temperature stay in fp32."""


def write_openai_file(architecture: str, path: Path, seed: int) -> None:
    """Write a TorchScript archive as OpenAI's: half precision, traced on a GPU."""
    modules = half_precision(random_clip(architecture, seed))
    for name, value in ("input_resolution", 224), ("context_length", 77), ("vocab_size", 49408):
        modules.register_buffer(name, torch.tensor(value))
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        content = torch.jit.script(modules).save_to_buffer()
    # Their tensors lie on the GPU they were traced on.
    with zipfile.ZipFile(io.BytesIO(content)) as ours, zipfile.ZipFile(path, "w") as archive:
        for member in ours.infolist():
            content = ours.read(member)
            if member.filename.endswith("/data.pkl"):
                content = content.replace(pickled("cpu"), pickled("cuda:0"))
            archive.writestr(member.filename, content)


def random_clip(architecture: str, seed: int) -> nn.Module:
    """Make OpenAI's modules: open_clip's, all values drawn, and the mask no buffer."""
    config = open_clip.get_model_config(architecture)
    with torch.device("meta"):
        clip = open_clip.CLIP(**config)
    clip.to_empty(device="cpu")
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in clip.state_dict().items():
        fill(name, tensor, draw)
    return clip


def fill(name: str, tensor: Tensor, draw: torch.Generator) -> None:
    """Draw values that keep activations within a half's range, and tell tensors apart."""
    if name.endswith("num_batches_tracked"):
        tensor.random_(1, 10**6, generator=draw)
    elif name.endswith("running_var"):
        tensor.uniform_(0.5, 1.5, generator=draw)
    elif name == "logit_scale":
        tensor.uniform_(3, 4, generator=draw)
    elif tensor.dim() == 1 and name.endswith("weight"):
        tensor.normal_(1, 0.1, generator=draw)
    elif tensor.dim() == 1 or "embedding" in name:
        tensor.normal_(0, 0.02, generator=draw)
    else:
        fan_in = tensor[0].numel() if name.endswith("weight") else len(tensor)
        tensor.normal_(0, 1 / math.sqrt(fan_in), generator=draw)


def half_precision(clip: nn.Module) -> nn.Module:
    """Copy parameters and buffers to bare modules, in the precision of OpenAI's files."""
    halved = {"text_projection", "visual.proj"}
    for name, module in clip.named_modules():
        if isinstance(module, HALF):
            halved |= {f"{name}.{own}" for own, _ in module.named_parameters(recurse=False)}
    root = nn.Module()
    parameters = dict(clip.named_parameters())
    for name, tensor in clip.state_dict().items():
        *path, own = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]  # type: ignore[assignment]
        tensor = tensor.half() if name in halved else tensor
        if name in parameters:
            module.register_parameter(own, nn.Parameter(tensor))
        else:
            module.register_buffer(own, tensor)
    return root


def pickled(text: str) -> bytes:
    """Return a short string as protocol 2 writes it."""
    return b"X" + len(text).to_bytes(4, "little") + text.encode()
