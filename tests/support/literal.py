"""The vocabulary of literal references: loops and matrix products only."""

import math
from typing import Any

import torch
from torch import Tensor, nn


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def linear(w: nn.Linear, x: Tensor) -> Tensor:
    y = x @ w.weight.T
    return y if w.bias is None else y + w.bias


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Sum, over the taps of a 3x3 or 1x1, the image shifted by the tap, zeros outside."""
    b, _, height, width = x.shape
    size = weight.shape[-1]
    margin = size // 2
    padded = x.new_zeros(b, x.shape[1], height + 2 * margin, width + 2 * margin)
    padded[:, :, margin : margin + height, margin : margin + width] = x
    y = x.new_zeros(b, len(weight), height, width)
    for i in range(size):
        for j in range(size):
            window = padded[:, :, i : i + height, j : j + width]
            y += torch.einsum("oc,bchw->bohw", weight[:, :, i, j], window)
    return y


def relu_linear(w: Any, x: Tensor) -> Tensor:
    """ReLU(F W) of one vector, with BatchNorm between where there is one."""
    y = linear(w[0], x)
    if len(w) == 3:
        norm = w[1]
        y = (y - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        y = y * norm.weight + norm.bias
    return relu(y)


def relu_conv(w: Any, x: Tensor) -> Tensor:
    convolution, norm = w[0], w[1]
    y = convolve(x, convolution.weight)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    y = (y - norm.running_mean[:, None, None]) * scale[:, None, None]
    return relu(y + norm.bias[:, None, None])


def up(x: Tensor) -> Tensor:
    """Bilinear: pixel o of 2n lies at (o + 1/2) / 2 - 1/2 of n, edges held."""
    n = x.shape[-1]
    u = x.new_zeros(2 * n, n)
    for o in range(2 * n):
        at = min(max((o + 0.5) / 2 - 0.5, 0), n - 1)
        low = math.floor(at)
        u[o, low] += 1 - (at - low)
        u[o, min(low + 1, n - 1)] += at - low
    return u @ x @ u.T


def avg(x: Tensor) -> Tensor:
    parts = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return (parts[0] + parts[1] + parts[2] + parts[3]) / 4


def softmax(x: Tensor) -> Tensor:
    return x.exp() / x.exp().sum(-1, keepdim=True)


def layer_norm(ln: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + ln.eps).sqrt()
    return centred / spread * ln.weight + ln.bias


def multi_head(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Eq. 12, one sample and one head after another."""
    d_k = q.shape[-1] // heads
    out = torch.zeros_like(q)
    for b in range(len(q)):
        for h in range(heads):
            part = slice(h * d_k, (h + 1) * d_k)
            weights = softmax(q[b, :, part] @ k[b, :, part].T / math.sqrt(d_k))
            out[b, :, part] = weights @ v[b, :, part]
    return out
