"""The Image Encoder on CLIP's ViT, with all its outputs: F_v2, F_v3, F_v4, F_vg."""

from collections.abc import Sequence

from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from mmnet.model.layers import ReLUConv, resize

# B batch, C' width of the space CLIP's images share with its texts, C2, C3, C4 channels at
# strides 8, 16, 32, N4 = H4 * W4 cells at stride 32, g x g patches of a ViT.


class ViTBackbone(nn.Module):
    """CLIP's ViT: class token, and the one patch map convolved into three (§3.1).

    Readings: patch tokens pass CLIP's last norm and projection as its class token does. Where the
    patch does not divide the image (ViT-L/14 at 480), the image shrinks to the largest multiple
    and the tokens are resampled to the grid at stride 16. The three convolutions have BatchNorm
    and ReLU: without a ReLU, Avg of Eq. 3 would undo the upsampling one altogether.
    """

    def __init__(
        self, visual: VisionTransformer, *, image_size: int, channels: Sequence[int]
    ) -> None:
        super().__init__()
        self.visual = visual
        self.patches = visual.grid_size[0]
        side, self.grid = visual.image_size[0], image_size // 16
        self.fit = (
            nn.Identity() if side == image_size else nn.Upsample((side, side), mode="bilinear")
        )
        c2, c3, c4 = channels
        self.m_2 = nn.Sequential(
            nn.ConvTranspose2d(visual.output_dim, c2, 2, stride=2, bias=False),
            nn.BatchNorm2d(c2),
            nn.ReLU(),
        )
        self.m_3 = ReLUConv(visual.output_dim, c3, size=3)
        self.m_4 = ReLUConv(visual.output_dim, c4, size=3, stride=2)
        self.m_g: nn.Module = nn.Linear(visual.output_dim, c4, bias=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z, z_bar = self.encode(image)
        z = resize(z, self.grid)  # (B, C', H3, W3)
        return self.m_2(z), self.m_3(z), self.m_4(z), self.m_g(z_bar)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return z (B, C', g, g) and z̄ (B, C'), which is CLIP's own feature of the image."""
        visual = self.visual
        x = visual.transformer(visual._embeds(self.fit(image)))
        x = visual.ln_post(x) @ visual.proj  # (B, 1 + g * g, C')
        z = x[:, 1:].transpose(1, 2).unflatten(2, (self.patches, self.patches))
        return z, x[:, 0]
