"""The Mask Decoder: Eq. 16, and its single-mask twin of Table 3."""

from torch import Tensor, nn

from mmnet.model.estimator import QueryEstimator
from mmnet.model.mask_projector import MaskProjector

# B batch, C width, N_q queries, H3 x W3 grid at stride 16.


class MaskDecoder(nn.Module):
    """y = Σ_n S_qn mask_n (Eq. 16), as one convolution.

    A mask is linear in its kernel, so the weighed sum of the masks is, exactly, the mask of the
    weighed sum of the kernels and biases. `masks` makes all N_q, for those who look at them.
    """

    def __init__(self, *, width: int, heads: int, grid: int, relu_kernel: bool) -> None:
        super().__init__()
        self.projector = MaskProjector(width=width, grid=grid, relu_kernel=relu_kernel)
        self.estimator: nn.Module = QueryEstimator(width=width, heads=heads)

    def forward(self, f_s: Tensor, f_q: Tensor) -> Tensor:
        s_q = self.estimator(f_q)[:, None]  # (B, 1, N_q)
        y: Tensor = self.projector(f_s, s_q @ self.projector.kernel(f_q))  # Eq. 16
        return y.squeeze(1)  # (B, 4 H3, 4 W3)

    def masks(self, f_s: Tensor, f_q: Tensor) -> tuple[Tensor, Tensor]:
        """Return each query's mask_n, (B, N_q, 4 H3, 4 W3), and its score, (B, N_q)."""
        return self.projector(f_s, self.projector.kernel(f_q)), self.estimator(f_q)


class SingleMaskDecoder(MaskDecoder):
    """Table 3 without MMP: queries are summed before W_p and its ReLU, as VLT does."""

    def forward(self, f_s: Tensor, f_q: Tensor) -> Tensor:
        s_q = self.estimator(f_q)[:, None]  # (B, 1, N_q)
        y: Tensor = self.projector(f_s, self.projector.kernel(s_q @ f_q))
        return y.squeeze(1)  # (B, 4 H3, 4 W3)
