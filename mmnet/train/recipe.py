"""What the paper says of training: loss (§3.4), schedule and learning rates (§4.1)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmnet.config.run import TrainConfig

CLIP_PARTS = ("backbone.visual.", "text_encoder.")
"""Pre-trained; everything else learns `head_lr_multiplier` times faster (reading 10)."""


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of logits against masks, both (B, H/4, W/4).

    The logits are those of Eq. 16, already summed over the queries (reading 9).
    """
    return F.binary_cross_entropy_with_logits(logits, masks.to(logits.dtype))


def polynomial_decay(step: int, total_steps: int, power: float) -> float:
    """Return the factor on the learning rate at a step, from 1 at step 0 towards 0."""
    return float((1 - step / total_steps) ** power)


def training_mode(model: nn.Module, config: TrainConfig) -> None:
    """Let a model train, CLIP's BatchNorms too unless they are to stay as they are."""
    model.train()
    if config.clip_batchnorm == "frozen":
        for name, part in model.named_modules():
            if name.startswith(CLIP_PARTS) and isinstance(part, _BatchNorm):
                part.eval().requires_grad_(False)


def parameter_groups(model: nn.Module, head_lr_multiplier: float) -> list[dict[str, Any]]:
    """Return Adam's groups: CLIP's parameters, and all others with their multiplier of the rate."""
    clip: list[nn.Parameter] = []
    head: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (clip if name.startswith(CLIP_PARTS) else head).append(parameter)
    return [
        {"params": clip, "multiplier": 1.0},
        {"params": head, "multiplier": head_lr_multiplier},
    ]
