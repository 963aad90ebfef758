"""What several boxes of Figure 3 share: ReLU projections, coordinates, positions, attention."""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmnet.data.transforms import interpolation

# The paper's sigma is ReLU. Reading: around F W it is Linear + ReLU on vectors, and convolution +
# BatchNorm + ReLU on maps (as CRIS's code). So each w_* here includes its ReLU, and its bias.


class ReLULinear(nn.Sequential):
    """ReLU(F W) on vectors (..., in_width); `norm` puts BatchNorm between, as CRIS's code does.

    Its statistics are those of all vectors, of words those of padding too.
    """

    def __init__(self, in_width: int, out_width: int, *, norm: bool = False) -> None:
        linear = nn.Linear(in_width, out_width, bias=not norm)
        super().__init__(linear, *([nn.BatchNorm1d(out_width)] if norm else []), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return out


class ReLUConv(nn.Sequential):
    """ReLU(F W) on maps, W a convolution of 1x1 or more; BatchNorm comes between."""

    def __init__(self, in_width: int, out_width: int, *, size: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_width, out_width, size, stride, padding=size // 2, bias=False),
            nn.BatchNorm2d(out_width),
            nn.ReLU(),
        )


class Attention(nn.Module):
    """Multi-head attention of Eq. 12; with x as query, key and value it is MHSA."""

    # Eq. 12 omits V; we read it as standard attention (ref. 35). Its projections are matrices,
    # by default without biases: LN's bias does their work before Eq. 11, and Softmax undoes it
    # in Eq. 15.
    def __init__(self, *, width: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.w_q = nn.Linear(width, width, bias=bias)
        self.w_k = nn.Linear(width, width, bias=bias)
        self.w_v = nn.Linear(width, width, bias=bias)
        self.w_o = nn.Linear(width, width, bias=bias)
        for w in (self.w_q, self.w_k, self.w_v, self.w_o):
            nn.init.xavier_uniform_(w.weight)
            if bias:
                nn.init.zeros_(w.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (
            w(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, length, d_k)
            for w, x in ((self.w_q, query), (self.w_k, key), (self.w_v, value))
        )
        heads = F.scaled_dot_product_attention(q, k, v)  # Eq. 12
        out: Tensor = self.w_o(heads.transpose(1, 2).flatten(2))  # (B, length, C)
        return out


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Compute in the tensors' own precision; on the meta device there is no other."""
    if device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def full_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in fp32 where autocast has rounded them."""
    rounded = (torch.bfloat16, torch.float16)
    return tuple(x.float() if x.dtype in rounded else x for x in tensors)


def coordinates(height: int, width: int) -> Tensor:
    """F_coord: each cell's x and y, both from -1 to 1, as a (2, height, width) map."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    return torch.stack([x, y])


def sine_positions(length: int, width: int) -> Tensor:
    """Positions in one dimension, (length, width): sines on even channels, cosines on odd."""
    position = torch.arange(length)[:, None]
    frequency = 10000 ** (-torch.arange(0, width, 2) / width)
    return torch.stack([(position * frequency).sin(), (position * frequency).cos()], -1).flatten(1)


def sine_positions_2d(height: int, width: int, channels: int) -> Tensor:
    """Positions of a flattened map, (height * width, channels): half for y, half for x."""
    y = sine_positions(height, channels // 2)[:, None].expand(-1, width, -1)
    x = sine_positions(width, channels // 2)[None].expand(height, -1, -1)
    return torch.cat([y, x], -1).flatten(0, 1)


def resize(x: Tensor, side: int) -> Tensor:
    """Resize square maps (B, C, H, H) to (B, C, side, side), bilinearly."""
    if x.shape[-1] == side:
        return x
    if x.device.type == "cuda":
        return resize_by_products(x, side)
    return F.interpolate(x, (side, side), mode="bilinear")


def resize_by_products(x: Tensor, side: int) -> Tensor:
    """As `resize`. On a GPU, where torch's own, made deterministic, gathers and scatters in fp32.

    To twice the size the weights are multiples of 1/4, exact in bf16 too.
    """
    centres = torch.arange(side, dtype=torch.float64, device=x.device) + 0.5
    positions = centres * (x.shape[-1] / side) - 0.5
    weights = interpolation(positions, x.shape[-1]).to(x.dtype)  # (side, H)
    return weights @ x @ weights.T
