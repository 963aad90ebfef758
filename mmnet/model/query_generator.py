"""The Multi-Query Generator: Eqs. 6-10."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmnet.model.layers import ReLUConv, ReLULinear
from mmnet.model.pyramid import Laterals, Pyramid, up

# B batch, L tokens, C width, N_q queries, H3 x W3 grid at stride 16, N = H3 * W3 cells.


class DenseFeatures(nn.Module):
    """N_q views of the image, no text in them: Eq. 6 and Eq. 7."""

    def __init__(self, *, channels: Sequence[int], width: int, num_queries: int, grid: int) -> None:
        super().__init__()
        self.laterals = Laterals(channels=channels, width=width)
        self.pyramid = Pyramid(width=width, grid=grid)
        self.conv = nn.Sequential(
            ReLUConv(width, width, size=3),
            ReLUConv(width, width, size=3),
            nn.Conv2d(width, num_queries, 1),
        )

    def forward(self, f_v2: Tensor, f_v3: Tensor, f_v4: Tensor) -> Tensor:
        v2, v3, v4 = self.laterals(f_v2, f_v3, f_v4)
        f_v = self.pyramid(v2, v3, up(v4))  # (B, C, H3, W3)  Eq. 6
        f_vd: Tensor = self.conv(f_v).flatten(2)  # (B, N_q, N)  Eq. 7
        return f_vd


class VisualWords(nn.Module):
    """Tell the words what the image holds: Eq. 8."""

    def __init__(self, *, token_width: int, vision_width: int, width: int) -> None:
        super().__init__()
        self.w_t = ReLULinear(token_width, width)
        self.w_vg = ReLULinear(vision_width, width)

    def forward(self, f_t: Tensor, f_vg: Tensor) -> Tensor:
        f_tv: Tensor = self.w_t(f_t) * self.w_vg(f_vg)[:, None]  # (B, L, C)  Eq. 8
        return f_tv


class QueryGenerator(nn.Module):
    """Read one sentence N_q ways, in the light of its image (§3.2).

    Eq. 6 and Eq. 7 give each query a view of the image (`dense`, which no text enters), Eq. 8
    tells the words what the image holds, Eq. 9 weighs the words per query, Eq. 10 sums them.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        token_width: int,
        width: int,
        num_queries: int,
        grid: int,
    ) -> None:
        super().__init__()
        self.dense = DenseFeatures(
            channels=channels, width=width, num_queries=num_queries, grid=grid
        )
        self.words: nn.Module = VisualWords(
            token_width=token_width, vision_width=channels[2], width=width
        )
        self.w_vd = ReLULinear(grid * grid, width)
        self.w_a = ReLULinear(width, width)
        self.w_tv = ReLULinear(width, width)

    def forward(
        self, f_vd: Tensor, f_vg: Tensor, f_t: Tensor, is_pad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return F_q and the attention A that made it."""
        f_tv = self.words(f_t, f_vg)  # (B, L, C)
        logits = self.w_vd(f_vd) @ self.w_a(f_tv).transpose(1, 2)  # (B, N_q, L)  Eq. 9
        # Padding is no word: unmasked, short sentences would attend to it.
        attention = logits.masked_fill(is_pad[:, None], -torch.inf).softmax(-1)  # Eq. 9
        f_q = attention @ self.w_tv(f_tv)  # (B, N_q, C)  Eq. 10
        return f_q, attention
