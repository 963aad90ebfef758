"""The Multi-Mask Projector: Eq. 14."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmnet.model.layers import ReLUConv
from mmnet.model.pyramid import up

# B batch, C width, C_p = C / 2, H3 x W3 grid at stride 16, Q kernels: N_q, or their one sum.


class Made(NamedTuple):
    """What a mask decoder makes of B sentences' queries."""

    y: Tensor  # (B, 4 H3, 4 W3)  logits
    s_q: Tensor  # (B, N_q)
    kernels: Tensor | None  # (B, N_q, 9 C_p + 1)  F_pn of each query; None without MMP
    maps: Tensor  # (B, C_p, 2 H3, 2 W3)  what kernels are applied to


class MaskProjector(nn.Module):
    """Turn queries into 3x3 kernels over F_p, and kernels into masks (Eq. 14).

    F_p = linear(Up(Conv(Up(F_s)))). Reading: Conv is 3x3 with BatchNorm and ReLU. As W_p's ReLU
    lets no kernel be negative, F_p ends in a linear 1x1, or no logit could be.

    All after Conv is linear, so the mask costs half as much, exactly, without making F_p:
    nine maps, one per tap of the kernel, at Conv's resolution; Up; shift; sum.
    """

    def __init__(self, *, width: int, grid: int, relu_kernel: bool) -> None:
        super().__init__()
        self.grid = grid
        self.conv = ReLUConv(width, width // 2, size=3)
        self.linear = nn.Conv2d(width // 2, width // 2, 1)
        self.w_p = nn.Sequential(
            nn.Linear(width, 9 * (width // 2) + 1), nn.ReLU() if relu_kernel else nn.Identity()
        )

    def kernel(self, f_q: Tensor) -> Tensor:
        """F_pn of each query: 9 C_p weights, ordered (C_p, 3, 3), and a bias."""
        f_pn: Tensor = self.w_p(f_q)  # (B, Q, 9 C_p + 1)  Eq. 14
        return f_pn

    def maps(self, f_s: Tensor) -> Tensor:
        """Return Conv(Up(F_s)), (B, C_p, 2 H3, 2 W3), which a sentence's kernels share."""
        x = f_s.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # (B, C, H3, W3)
        maps: Tensor = self.conv(up(x))  # (B, C_p, 2 H3, 2 W3)  Eq. 14
        return maps

    def forward(self, maps: Tensor, f_pn: Tensor) -> Tensor:
        """Return the logits of one mask per kernel, (B, Q, 4 H3, 4 W3)."""
        b, q = f_pn.shape[:2]
        tap_maps = up(self._tap_maps(maps, f_pn))
        side = 4 * self.grid
        # Shift by tap and sum, zeros outside: exactly the padding of the 3x3.
        masks = F.fold(tap_maps.reshape(b * q, 9, -1), (side, side), 3, padding=1)  # Eq. 14
        return masks.view(b, q, side, side) + f_pn[..., -1:, None]

    def masks(self, maps: Tensor, f_pn: Tensor) -> Tensor:
        """Return what `forward` does, but for rounding: for many kernels in a third of the time.

        Up and shift are linear in rows and in columns: two matrix products do both, and sum.
        """
        n = 2 * self.grid
        line = F.interpolate(torch.eye(n).to(maps)[None], scale_factor=2.0, mode="linear")[0]
        shifted = F.pad(line, (1, 1)).unfold(1, 2 * n, 1).flip(1)  # (2 H3, 3, 4 H3)
        matrix = shifted.transpose(0, 1).flatten(0, 1)  # (3 * 2 H3, 4 H3)
        tap_maps = self._tap_maps(maps, f_pn).unflatten(1, (-1, 3, 3)).transpose(3, 4)
        columns = tap_maps.flatten(4).flatten(2, 3) @ matrix  # (B, Q, 3 * 2 H3, 4 W3)
        masks: Tensor = matrix.T @ columns + f_pn[..., -1:, None]  # Eq. 14
        return masks

    def _tap_maps(self, maps: Tensor, f_pn: Tensor) -> Tensor:
        """Return what each tap of each kernel sees, (B, 9 Q, 2 H3, 2 W3)."""
        # Folding adds tap k of cell p to cell p - shift(k) where a convolution reads p + shift(k).
        taps = f_pn[..., :-1].unflatten(-1, (-1, 9)).flip(-1)  # (B, Q, C_p, 9)
        taps = taps.transpose(2, 3).flatten(1, 2)  # (B, 9 Q, C_p)
        # The linear 1x1 on F_p acts on the taps instead: they are fewer than the pixels. Bilinear
        # weights sum to one, so its bias passes Up unchanged.
        weight = self.linear.weight.flatten(1)  # (C_p, C_p)
        tap_maps = torch.baddbmm(
            (taps @ self.linear.bias)[..., None], taps @ weight, maps.flatten(2)
        )  # (B, 9 Q, 2 H3 * 2 W3)
        unfolded: Tensor = tap_maps.unflatten(2, (2 * self.grid, 2 * self.grid))
        return unfolded
