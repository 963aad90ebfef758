"""The Multi-Query Estimator: Eq. 15."""

from torch import Tensor, nn

from mmnet.model.layers import Attention


class QueryEstimator(nn.Module):
    """Score how well each query fits, having compared them all (§3.4)."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.mhsa = Attention(width=width, heads=heads)
        # Softmax would undo a bias.
        self.w_s = nn.Linear(width, 1, bias=False)

    def forward(self, f_q: Tensor) -> Tensor:
        scores = self.w_s(self.mhsa(f_q, f_q, f_q))  # (B, N_q, 1)
        s_q: Tensor = scores.squeeze(-1).softmax(-1)  # (B, N_q)  Eq. 15
        return s_q
