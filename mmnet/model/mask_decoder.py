"""The Mask Decoder: Eq. 16."""

from torch import Tensor, nn

from mmnet.model.mask_projector import MaskProjector

# B batch, C width, N_q queries, H3 x W3 grid at stride 16.


class MaskDecoder(nn.Module):
    """y = Σ_n S_qn mask_n (Eq. 16), as one convolution.

    A mask is linear in its kernel, so the weighted sum of the masks is, exactly, the mask of the
    weighted sum of the kernels and biases. `masks` makes all N_q, for those who look at them.
    """

    def __init__(self, *, projector: MaskProjector, estimator: nn.Module) -> None:
        super().__init__()
        self.projector = projector
        self.estimator = estimator

    def forward(self, f_s: Tensor, f_q: Tensor) -> Tensor:
        s_q = self.estimator(f_q)[:, None]  # (B, 1, N_q)
        y: Tensor = self.projector(f_s, s_q @ self.projector.kernel(f_q))  # Eq. 16
        return y.squeeze(1)  # (B, 4 H3, 4 W3)

    def masks(self, f_s: Tensor, f_q: Tensor) -> tuple[Tensor, Tensor]:
        """Return each query's mask_n, (B, N_q, 4 H3, 4 W3), and its score, (B, N_q)."""
        return self.projector(f_s, self.projector.kernel(f_q)), self.estimator(f_q)
