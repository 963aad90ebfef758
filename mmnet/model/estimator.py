"""The Multi-Query Estimator: Eq. 15."""

from torch import Tensor, nn

from mmnet.model.layers import Attention, full_precision, without_autocast


class QueryEstimator(nn.Module):
    """Score how well each query fits, having compared them all (§3.4).

    `residual` adds F_q to what MHSA returns, as Eq. 11 does. In fp32 under autocast: alike queries
    differ by less than bf16 tells apart.
    """

    def __init__(
        self, *, width: int, heads: int, residual: bool = False, bias: bool = False
    ) -> None:
        super().__init__()
        self.residual = residual
        self.mhsa = Attention(width=width, heads=heads, bias=bias)
        # Softmax would undo a bias.
        self.w_s = nn.Linear(width, 1, bias=False)

    def forward(self, f_q: Tensor) -> Tensor:
        with without_autocast(f_q.device):
            (f_q,) = full_precision(f_q)
            compared = self.mhsa(f_q, f_q, f_q)  # (B, N_q, C)
            scores = self.w_s(compared + f_q if self.residual else compared)  # (B, N_q, 1)
            s_q: Tensor = scores.squeeze(-1).softmax(-1)  # (B, N_q)  Eq. 15
        return s_q
