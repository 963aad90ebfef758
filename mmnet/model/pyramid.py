"""Three stages of the image made one map at stride 16: Eqs. 3-5, reused by Eq. 6."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmnet.model.layers import ReLUConv, coordinates, resize

# B batch, C width, H3 x W3 grid at stride 16, H4 x W4 at stride 32. Maps are channel-first.


class Laterals(nn.Module):
    """Each stage brought to C channels: the parts of Eq. 2 and Eq. 3 that no text enters."""

    def __init__(self, *, channels: Sequence[int], width: int) -> None:
        super().__init__()
        c2, c3, c4 = channels
        self.w_v2 = ReLUConv(c2, width)
        self.w_v3 = ReLUConv(c3, width)
        self.w_v4 = ReLUConv(c4, width)

    def forward(self, f_v2: Tensor, f_v3: Tensor, f_v4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v2 = self.w_v2(F.avg_pool2d(f_v2, 2))  # (B, C, H3, W3)  Eq. 3
        v3 = self.w_v3(f_v3)  # (B, C, H3, W3)  Eq. 3
        v4 = self.w_v4(f_v4)  # (B, C, H4, W4)  Eq. 2
        return v2, v3, v4


class Pyramid(nn.Module):
    """Concatenate from the top down (Eq. 3), aggregate (Eq. 4), add coordinates (Eq. 5).

    Reading: the convolutions of Eq. 4 and Eq. 5 are followed by BatchNorm and ReLU as all others,
    and Eq. 5 has two of 3x3, as CRIS's CoordConv.
    """

    f_coord: Tensor

    def __init__(self, *, width: int, grid: int) -> None:
        super().__init__()
        self.w_m4 = ReLUConv(width, width)
        self.w_m3 = ReLUConv(2 * width, width)
        self.aggregate = ReLUConv(5 * width, width)
        self.conv = nn.Sequential(
            ReLUConv(width + 2, width, size=3), ReLUConv(width, width, size=3)
        )
        self.register_buffer("f_coord", coordinates(grid, grid), persistent=False)

    def forward(self, v2: Tensor, v3: Tensor, f_m4: Tensor) -> Tensor:
        f_m3 = torch.cat([self.w_m4(f_m4), v3], 1)  # (B, 2C, H3, W3)  Eq. 3
        f_m2 = torch.cat([self.w_m3(f_m3), v2], 1)  # (B, 2C, H3, W3)  Eq. 3
        f_m = self.aggregate(torch.cat([f_m2, f_m3, f_m4], 1))  # (B, C, H3, W3)  Eq. 4
        f_coord = self.f_coord.expand(len(f_m), -1, -1, -1)
        out: Tensor = self.conv(torch.cat([f_m, f_coord], 1))  # (B, C, H3, W3)  Eq. 5
        return out


def up(x: Tensor) -> Tensor:
    """The paper's Up: bilinear, to twice the size."""
    return resize(x, 2 * x.shape[-1])
