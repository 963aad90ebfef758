"""What MMNet consists of: parameters, FLOPs and output sizes, module by module."""

from functools import partial
from typing import Any, NamedTuple

import torch
from tabulate import tabulate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmnet.config.run import ModelConfig
from mmnet.config.schema import TowerConfig
from mmnet.model.build import build_model
from mmnet.model.mmnet import MMNet

# Figure 3's boxes and what is in them, each with the names of its outputs.
PARTS = {
    "backbone": ("F_v2", "F_v3", "F_v4", "F_vg"),
    "text_encoder": ("F_t", "F_tg"),
    "neck": ("F_vt",),
    "query_generator": ("F_q", "A"),
    "query_generator.dense": ("F_vd",),
    "decoder": ("F_s",),
    "mask_decoder": ("y",),
    "mask_decoder.projector": ("mask",),
    "mask_decoder.estimator": ("S_q",),
}
# Called from outside their box, by what shares their result: they count for it all the same.
CALLED_APART = {
    "neck": ("neck.laterals",),
    "query_generator": ("query_generator.dense",),
    "mask_decoder.projector": ("mask_decoder.projector.w_p", "mask_decoder.projector.conv"),
}


def describe(model: ModelConfig, tower: TowerConfig, *, max_length: int) -> str:
    """Return a table of MMNet's parts, for one image with one sentence of L tokens."""
    mmnet = on_meta(model, tower)
    outputs, flops = _forward(mmnet, model.image_size, max_length)
    rows = []
    for part, names in PARTS.items():
        counted = sum(flops.get(f"MMNet.{n}", 0) for n in (part, *CALLED_APART.get(part, ())))
        sizes = [f"{name} {size}" for name, size in zip(names, outputs[part], strict=False)]
        name = "  " * part.count(".") + part.rpartition(".")[2]
        parameters = _parameters(mmnet.get_submodule(part))
        rows.append((name, f"{parameters:,}", f"{counted / 1e9:.3f}", ", ".join(sizes)))
    rows.append(("MMNet", f"{_parameters(mmnet):,}", f"{flops['MMNet'] / 1e9:.3f}", ""))
    table = tabulate(
        rows,
        ("part", "parameters", "GFLOPs", "outputs of one image and sentence"),
        tablefmt="plain",
        disable_numparse=True,
        preserve_whitespace=True,
        colalign=("left", "right", "right", "left"),
    )
    return (
        f"MMNet on {tower.architecture}: image {model.image_size} x {model.image_size}, "
        f"L = {max_length}, N_q = {model.num_queries}, C = {model.width}\n{table}\n"
        "FLOPs: convolutions and matrix products; a multiplication and an addition count as two."
    )


class Cost(NamedTuple):
    parameters: int
    flops: int
    """Of the forward pass of one image with one sentence."""


def cost(model: ModelConfig, tower: TowerConfig, *, max_length: int) -> Cost:
    """Return what MMNet costs, in half a second."""
    mmnet = on_meta(model, tower)
    return Cost(_parameters(mmnet), _forward(mmnet, model.image_size, max_length)[1]["MMNet"])


def on_meta(model: ModelConfig, tower: TowerConfig) -> MMNet:
    """Build MMNet with shapes and no numbers: ViT-L costs nothing."""
    with torch.device("meta"):
        return build_model(model, tower, weights=None).eval()


def _forward(
    mmnet: MMNet, image_size: int, max_length: int
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Return each part's output sizes, and each module's FLOPs, of one forward pass."""
    outputs: dict[str, list[str]] = {}

    def note(part: str, module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = output if isinstance(output, tuple) else (output,)
        outputs[part] = [" x ".join(map(str, tensor.shape[1:])) for tensor in tensors]

    for part in PARTS:
        mmnet.get_submodule(part).register_forward_hook(partial(note, part))
    image = torch.empty(1, 3, image_size, image_size, device="meta")
    tokens = torch.empty(1, max_length, dtype=torch.long, device="meta")
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), counter, torch.no_grad():
        mmnet(image, tokens)
    return outputs, {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
