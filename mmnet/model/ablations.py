"""Parts that stand in for MMNet's in the ablations of Tables 3 and 4; build.py swaps them in."""

from torch import Tensor, nn

from mmnet.model.layers import ReLULinear
from mmnet.model.mask_projector import Made, MaskProjector

# B batch, L tokens, C width, N_q queries, H3 x W3 grid at stride 16.


class SingleMaskDecoder(nn.Module):
    """Table 3 without MMP: queries are summed before W_p and its ReLU, as VLT does.

    One mask comes out of all queries, so there are no masks of single queries to look at.
    """

    def __init__(self, *, projector: MaskProjector, estimator: nn.Module) -> None:
        super().__init__()
        self.projector = projector
        self.estimator = estimator

    def forward(self, f_s: Tensor, f_q: Tensor) -> Tensor:
        return self.make(f_s, f_q).y

    def make(self, f_s: Tensor, f_q: Tensor) -> Made:
        s_q = self.estimator(f_q)  # (B, N_q)
        kernel = self.projector.kernel(s_q[:, None] @ f_q)  # (B, 1, 9 C_p + 1)
        maps = self.projector.maps(f_s)
        y = self.projector(maps, kernel).squeeze(1)  # (B, 4 H3, 4 W3)
        return Made(y, s_q, None, maps)


class EqualScores(nn.Module):
    """Table 4 without MQE: every query counts once, so that masks are plainly summed.

    With `mean`, 1 / N_q times: an average, as the scores make, which sums to one.
    """

    def __init__(self, *, mean: bool = False) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, f_q: Tensor) -> Tensor:
        b, n = f_q.shape[:2]
        return f_q.new_full((b, n), 1 / n if self.mean else 1.0)  # (B, N_q)


class PlainWords(nn.Module):
    """Table 4 without f_vg: Eq. 8 without its right factor."""

    def __init__(self, *, token_width: int, width: int, norm: bool = False) -> None:
        super().__init__()
        self.w_t = ReLULinear(token_width, width, norm=norm)

    def forward(self, f_t: Tensor, f_vg: Tensor) -> Tensor:
        f_tv: Tensor = self.w_t(f_t)  # (B, L, C)
        return f_tv
