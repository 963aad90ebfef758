"""What MMNet consists of: parameters, FLOPs and output sizes, module by module."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmnet.config.schema import ModelConfig, TowerConfig
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
# MMNet calls these itself, so that sentences share an image: no part of their box's own call.
CALLED_APART = {
    "neck": ("neck.laterals",),
    "query_generator": ("query_generator.dense",),
    "mask_decoder.projector": ("mask_decoder.projector.w_p",),
}


def describe(model: ModelConfig, tower: TowerConfig, *, max_length: int) -> str:
    """Return a table of MMNet's parts, for one image with one sentence of L tokens."""
    mmnet, image, tokens = _on_meta(model, tower, max_length)
    outputs, flops = _run(mmnet, image, tokens)
    rows = [
        (
            "  " * part.count(".") + part.rpartition(".")[2],
            _parameters(mmnet.get_submodule(part)),
            sum(flops.get(f"MMNet.{name}", 0) for name in (part, *CALLED_APART.get(part, ()))),
            ", ".join(f"{name} {size}" for name, size in zip(names, outputs[part], strict=False)),
        )
        for part, names in PARTS.items()
    ]
    rows.append(("MMNet", _parameters(mmnet), flops["MMNet"], ""))
    lines = [
        f"MMNet on {tower.architecture}: image {model.image_size} x {model.image_size}, "
        f"L = {max_length}, N_q = {model.num_queries}, C = {model.width}",
        f"{'part':<20}{'parameters':>14}{'GFLOPs':>10}  outputs of one image and sentence",
        *(f"{name:<20}{count:>14,}{f / 1e9:>10.3f}  {sizes}" for name, count, f, sizes in rows),
        "FLOPs are those of convolutions and matrix products, a multiplication and an addition "
        "being two.",
    ]
    return "\n".join(line.rstrip() for line in lines)


class Cost(NamedTuple):
    parameters: int
    clip_parameters: int
    """Of them, the towers' (and the backbone's few own)."""
    flops: int
    """Forwards, of one image with one sentence."""


def cost(model: ModelConfig, tower: TowerConfig, *, max_length: int) -> Cost:
    """Return what MMNet costs, in half a second."""
    mmnet, image, tokens = _on_meta(model, tower, max_length)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        mmnet(image, tokens)
    towers = _parameters(mmnet.backbone) + _parameters(mmnet.text_encoder)
    return Cost(_parameters(mmnet), towers, counter.get_total_flops())


def _on_meta(
    model: ModelConfig, tower: TowerConfig, max_length: int
) -> tuple[MMNet, Tensor, Tensor]:
    # The meta device has shapes and no numbers: ViT-L costs nothing.
    with torch.device("meta"):
        mmnet = build_model(model, tower, weights=None).eval()
        image = torch.empty(1, 3, model.image_size, model.image_size)
        tokens = torch.empty(1, max_length, dtype=torch.long)
    return mmnet, image, tokens


def _run(
    mmnet: MMNet, image: Tensor, tokens: Tensor
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Return each part's output sizes, and each module's FLOPs, of one forward pass."""
    outputs: dict[str, list[str]] = {}

    def note(part: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            outputs[part] = [" x ".join(map(str, tensor.shape[1:])) for tensor in tensors]

        return hook

    for part in PARTS:
        mmnet.get_submodule(part).register_forward_hook(note(part))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        mmnet(image, tokens)
    counts = counter.get_flop_counts()
    return outputs, {name: sum(ops.values()) for name, ops in counts.items()}


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
