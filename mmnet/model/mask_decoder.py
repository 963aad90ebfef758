"""The Mask Decoder: Eq. 16."""

from torch import Tensor, nn

from mmnet.model.mask_projector import Made, MaskProjector

# B batch, C width, N_q queries, H3 x W3 grid at stride 16.


class MaskDecoder(nn.Module):
    """y = Σ_n S_qn mask_n (Eq. 16), as one convolution.

    A mask is linear in its kernel, so the weighted sum of the masks is, exactly, the mask of the
    weighted sum of the kernels and biases. `MMNet.masks` makes all N_q, for those who look at them.
    """

    def __init__(self, *, projector: MaskProjector, estimator: nn.Module) -> None:
        super().__init__()
        self.projector = projector
        self.estimator = estimator

    def forward(self, f_s: Tensor, f_q: Tensor) -> Tensor:
        return self.make(f_s, f_q).y

    def make(self, f_s: Tensor, f_q: Tensor) -> Made:
        s_q = self.estimator(f_q)  # (B, N_q)
        kernels = self.projector.kernel(f_q)  # (B, N_q, 9 C_p + 1)
        kernel = s_q[:, None] @ kernels
        maps = self.projector.maps(f_s)
        y = self.projector(maps, kernel).squeeze(1)  # (B, 4 H3, 4 W3)  Eq. 16
        return Made(y, s_q, kernels, maps)
