"""The Fusion Neck: Eq. 2, then the pyramid of Eqs. 3-5."""

from collections.abc import Sequence

from torch import Tensor, nn

from mmnet.model.layers import ReLULinear
from mmnet.model.pyramid import Laterals, Pyramid, up


class FusionNeck(nn.Module):
    """Fuse the image's stages with the sentence as a whole into F_vt (§3.1).

    `laterals` sees the image alone; forward takes its maps, so that many sentences share them.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        global_width: int,
        width: int,
        grid: int,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.laterals = Laterals(channels=channels, width=width)
        self.w_tg = ReLULinear(global_width, width, norm=norm)
        self.pyramid = Pyramid(width=width, grid=grid)

    def forward(self, v2: Tensor, v3: Tensor, v4: Tensor, f_tg: Tensor) -> Tensor:
        f_m4 = up(v4 * self.w_tg(f_tg)[:, :, None, None])  # (B, C, H3, W3)  Eq. 2
        f_vt: Tensor = self.pyramid(v2, v3, f_m4)  # Eqs. 3-5
        return f_vt.flatten(2).transpose(1, 2)  # (B, N, C)  Eq. 5
