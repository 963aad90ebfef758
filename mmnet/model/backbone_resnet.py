"""The Image Encoder on CLIP's ResNet, with all its outputs: Eq. 1, then F_v2, F_v3, F_v4, F_vg."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from torch import Tensor, nn

# B batch, C' width of the space CLIP's images share with its texts, C2, C3, C4 channels at
# strides 8, 16, 32, N4 = H4 * W4 cells at stride 32, g x g patches of a ViT.


class ResNetBackbone(nn.Module):
    """CLIP's ResNet: its stages and, by Eq. 1, all tokens of its attention pool (§3.1).

    M2, M3, M4, Mg are plain matrices: 1x1 convolutions, nothing after.
    """

    def __init__(self, visual: ModifiedResNet, *, channels: Sequence[int]) -> None:
        super().__init__()
        self.visual = visual
        c2, c3, c4 = channels
        stage2, stage3 = visual.layer2[-1].conv3, visual.layer3[-1].conv3
        self.m_2 = nn.Conv2d(stage2.out_channels, c2, 1, bias=False)
        self.m_3 = nn.Conv2d(stage3.out_channels, c3, 1, bias=False)
        self.m_4 = nn.Conv2d(visual.output_dim, c4, 1, bias=False)
        self.m_g: nn.Module = nn.Linear(visual.output_dim, c4, bias=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x2, x3, z, z_bar = self.encode(image)
        return self.m_2(x2), self.m_3(x3), self.m_4(z), self.m_g(z_bar)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x2, x3, z and z̄, which is CLIP's own feature of the image."""
        visual = self.visual
        x2 = visual.layer2(visual.layer1(visual.stem(image)))
        x3 = visual.layer3(x2)
        x4 = visual.layer4(x3)
        z_bar, z = attention_pool(visual.attnpool, x4)
        return x2, x3, z, z_bar


def attention_pool(pool: AttentionPool2d, x4: Tensor) -> tuple[Tensor, Tensor]:
    """[z̄, z] of Eq. 1: CLIP keeps z̄ (B, C') alone, we keep z (B, C', H4, W4) as well."""
    x = x4.flatten(2).transpose(1, 2)  # (B, N4, C)
    x = torch.cat([x.mean(1, keepdim=True), x], 1) + pool.positional_embedding
    q, k, v = (
        w(x).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
        for w in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    heads = F.scaled_dot_product_attention(q, k, v)
    out: Tensor = pool.c_proj(heads.transpose(1, 2).flatten(2))  # (B, 1 + N4, C')  Eq. 1
    return out[:, 0], out[:, 1:].transpose(1, 2).unflatten(2, x4.shape[2:])
