"""Cross-entropy on y (§3.4)."""

import torch.nn.functional as F
from torch import Tensor


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of logits against masks, both (B, H/4, W/4).

    The logits are those of Eq. 16, already summed over the queries (reading 9).
    """
    return F.binary_cross_entropy_with_logits(logits, masks.to(logits.dtype))
