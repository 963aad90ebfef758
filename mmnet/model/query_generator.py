"""The Multi-Query Generator: Eqs. 6-10."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mmnet.model.layers import ReLUConv, ReLULinear, full_precision, without_autocast
from mmnet.model.pyramid import Laterals, Pyramid, up

VectorNorm = Literal["none", "global", "all"]

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
        with without_autocast(f_v4.device):
            v2, v3, v4 = self.laterals(*full_precision(f_v2, f_v3, f_v4))
            f_v = self.pyramid(v2, v3, up(v4))  # (B, C, H3, W3)  Eq. 6
            f_vd: Tensor = self.conv(f_v).flatten(2)  # (B, N_q, N)  Eq. 7
        return f_vd


class VisualWords(nn.Module):
    """Tell the words what the image holds: Eq. 8."""

    def __init__(
        self,
        *,
        token_width: int,
        vision_width: int,
        width: int,
        norm_t: bool = False,
        norm_vg: bool = False,
    ) -> None:
        super().__init__()
        self.w_t = ReLULinear(token_width, width, norm=norm_t)
        self.w_vg = ReLULinear(vision_width, width, norm=norm_vg)

    def forward(self, f_t: Tensor, f_vg: Tensor) -> Tensor:
        f_tv: Tensor = self.w_t(f_t) * self.w_vg(f_vg)[:, None]  # (B, L, C)  Eq. 8
        return f_tv


class QueryGenerator(nn.Module):
    """Read one sentence N_q ways, in the light of its image (§3.2).

    Eq. 6 and Eq. 7 give each query a view of the image (`dense`, which no text enters), Eq. 8
    tells the words what the image holds, Eq. 9 weighs the words per query, Eq. 10 sums them.
    In fp32 under autocast: queries may differ by less than bf16 tells apart.

    Readings: BatchNorm within W_vg ('global') or every W on vectors ('all'); VLT's initial weights
    (`start_as_vlt`); VLT's visual query added in Eq. 10.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        token_width: int,
        width: int,
        num_queries: int,
        grid: int,
        norm: VectorNorm = "none",
        visual_query: bool = False,
    ) -> None:
        super().__init__()
        self.visual_query = visual_query
        self.dense = DenseFeatures(
            channels=channels, width=width, num_queries=num_queries, grid=grid
        )
        every = norm == "all"
        self.words: nn.Module = VisualWords(
            token_width=token_width,
            vision_width=channels[2],
            width=width,
            norm_t=every,
            norm_vg=norm != "none",
        )
        self.w_vd = ReLULinear(grid * grid, width, norm=every)
        self.w_a = ReLULinear(width, width, norm=every)
        self.w_tv = ReLULinear(width, width, norm=every)

    def forward(
        self, f_vd: Tensor, f_vg: Tensor, f_t: Tensor, is_pad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return F_q and the attention A that made it."""
        with without_autocast(f_vd.device):
            f_vd, f_vg, f_t = full_precision(f_vd, f_vg, f_t)
            f_tv = self.words(f_t, f_vg)  # (B, L, C)
            visual = self.w_vd(f_vd)  # (B, N_q, C)
            logits = visual @ self.w_a(f_tv).transpose(1, 2)  # (B, N_q, L)  Eq. 9
            # Padding is no word: unmasked, short sentences would attend to it.
            attention = logits.masked_fill(is_pad[:, None], -torch.inf).softmax(-1)  # Eq. 9
            f_q = attention @ self.w_tv(f_tv)  # (B, N_q, C)  Eq. 10
        return (f_q + visual if self.visual_query else f_q), attention

    def start_as_vlt(self) -> None:
        """Draw the weights of every W on vectors as VLT's code (Keras): Glorot, biases zero."""
        for part in (self.words, self.w_vd, self.w_a, self.w_tv):
            for linear in part.modules():
                if isinstance(linear, nn.Linear):
                    nn.init.xavier_uniform_(linear.weight)
                    if linear.bias is not None:
                        nn.init.zeros_(linear.bias)
