"""The loss (§3.4) and the schedule of the learning rate (§4.1)."""

import torch.nn.functional as F
from torch import Tensor


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of logits against masks, both (B, H/4, W/4).

    The logits are those of Eq. 16, already summed over the queries (reading 9).
    """
    return F.binary_cross_entropy_with_logits(logits, masks.to(logits.dtype))


def polynomial_decay(step: int, total_steps: int, power: float) -> float:
    """Return the factor on the learning rate at a step, from 1 at step 0 towards 0."""
    return float((1 - step / total_steps) ** power)
