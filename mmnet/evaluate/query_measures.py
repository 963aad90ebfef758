"""How different the queries of a sentence are: tensors in, a number per sentence out.

Queries that are all the same make N_q, MMP and MQE idle, whatever the scores say. Spread: standard
deviation over the queries, relative to the root mean square of all; 0 where they agree.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmnet.model.mmnet import MMNet, Queries

# S sentences, L tokens, C width, N_q queries.

CHUNK = 8
"""Sentences whose N_q masks are made at a time, to bound the memory."""


@torch.inference_mode()
def measure(model: MMNet, queries: Queries, tokens: Tensor) -> dict[str, NDArray[np.float64]]:
    """Return each of metrics.py's `MEASURES` for S sentences, (S,); NaN where it is not defined.

    Without MMP there are no kernels and masks of single queries, without MQE no scores.
    """
    f_q, attention, made = queries
    lengths = tokens.argmax(1).to(f_q.device) + 1  # [EOS] has the largest id
    unknown = f_q.new_full((len(f_q),), math.nan, dtype=torch.float64)
    found = {
        "mask_spread": unknown,
        "kernel_spread": unknown,
        "query_spread": spread(f_q),
        "attention_entropy": attention_entropy(attention, lengths),
        "attention_variation": attention_variation(attention),
        "score_entropy": score_entropy(made.s_q) if model.has_scores else unknown,
        "effective_queries": effective_queries(f_q),
    }
    if made.kernels is not None:
        some = [slice(first, first + CHUNK) for first in range(0, len(f_q), CHUNK)]
        found["mask_spread"] = torch.cat([spread(model.masks(made, part)) for part in some])
        found["kernel_spread"] = spread(made.kernels)
    return dict(zip(found, torch.stack([*found.values()]).cpu().numpy(), strict=True))


def spread(x: Tensor) -> Tensor:
    """Return the spread over the queries of x (S, N_q, ...); where all is zero, 0.

    sqrt(mean over the features of the variance over the queries) / rms of all.
    """
    x = x.float().flatten(2)
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).square().mean((1, 2)).double()
    square = variance + mean.square().mean((1, 2)).double()
    return torch.where(square > 0, variance / square, 0.0).sqrt()


def entropy(p: Tensor) -> Tensor:
    """Return the entropy of distributions over the last dimension, in nats."""
    nats: Tensor = torch.special.entr(p.double()).sum(-1)
    return nats


def attention_entropy(attention: Tensor, lengths: Tensor) -> Tensor:
    """Return the mean entropy of the rows of A (S, N_q, L) over ln of the sentence's length (S,).

    1: every query weighs all tokens alike. Padding has no attention and does not count.
    """
    return entropy(attention).mean(1) / lengths.double().log()


def attention_variation(attention: Tensor) -> Tensor:
    """Return the total variation of rows of A (S, N_q, L), ½ Σ|a_n - a_m|, mean over all pairs.

    From 0, all queries read the same, to 1, no two share a token. Of one query: 0.
    """
    rows, n = attention.double(), attention.shape[1]
    return torch.cdist(rows, rows, p=1).sum((1, 2)) / 2 / max(n * (n - 1), 1)


def score_entropy(s_q: Tensor) -> Tensor:
    """Return the entropy of S_q (S, N_q) over ln N_q; 1: every query counts the same.

    NaN of one query: 0 / 0.
    """
    return entropy(s_q) / math.log(s_q.shape[1])


def effective_queries(f_q: Tensor) -> Tensor:
    """Return exp of the entropy of the eigenvalues of F_q's Gram matrix, F_q (S, N_q, C).

    The eigenvalues are normalised to sum 1: from 1, all queries have one direction, to N_q.
    """
    rows = f_q.double()
    gram = rows @ rows.transpose(1, 2)  # (S, N_q, N_q)
    is_finite = gram.isfinite().all(2).all(1)  # a training that diverges ends at its next step
    finite = torch.where(is_finite[:, None, None], gram, 0.0)
    eigenvalues = torch.linalg.eigvalsh(finite).clamp(min=0)  # (S, N_q)
    total = eigenvalues.sum(1, keepdim=True)
    count = entropy(torch.where(total > 0, eigenvalues / total, 0.0)).exp()
    return torch.where(is_finite, count, math.nan)
