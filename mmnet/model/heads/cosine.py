"""The floor: what CLIP's towers know before any head, as the cosine of each cell and the sentence.

Extract Free Dense Labels from CLIP (Zhou et al., ECCV 2022; arXiv 2112.01071), §3.2: CLIP's last
attention is left out and its values are kept, so that each cell speaks for itself.

The towers stay as they are. With a = scale * alpha and b = -scale * t, logit = a cos + b, scale
being CLIP's own temperature. `zero-shot` fits one number, the threshold t; `fitted` also alpha.
Keys: image_size, and two of its own, `variant` and, of a ViT, `cells`.
"""

from typing import Literal, NamedTuple, Self

import open_clip
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from mmnet.model.backbone_resnet import ResNetBackbone
from mmnet.model.backbone_vit import ViTBackbone
from mmnet.model.heads.backbone import leave_out, make_backbone
from mmnet.model.layers import full_precision, resize, without_autocast
from mmnet.model.text_encoder import TextEncoder

# B batch, C' width of the space that images and sentences share, g x g cells of the tower's last
# map: patches of a ViT, cells at stride 32 of a ResNet. H3 x W3 is the grid at stride 16.

Variant = Literal["zero-shot", "fitted"]
Cells = Literal["z", "values"]
"""Of a ViT: its tokens as they are, or as they are without their last attention."""


class CosineFeatures(NamedTuple):
    cells: Tensor  # (B, C', g, g)


class Cosine(nn.Module):
    """An image and a sentence in, the mask of what the sentence refers to out."""

    scale: Tensor
    alpha: Tensor

    def __init__(
        self,
        *,
        backbone: ResNetBackbone | ViTBackbone,
        text_encoder: TextEncoder,
        scale: Tensor,
        side: int,
        variant: Variant,
        cells: Cells,
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.text_encoder = text_encoder.requires_grad_(False)
        self.side = side
        self.cells = cells
        self.register_buffer("scale", scale)
        # Of the size of a cosine, both: rates of 1e-3 fit them, and those of masks of 43 M do not.
        self.t = nn.Parameter(torch.zeros(()))
        if variant == "fitted":
            self.alpha = nn.Parameter(torch.ones(()))
        else:
            self.register_buffer("alpha", torch.ones(()))

    def train(self, mode: bool = True) -> Self:
        """Let the numbers learn; the towers stay as in evaluation, BatchNorms' statistics too."""
        super().train(mode)
        self.backbone.eval()
        self.text_encoder.eval()
        return self

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        return self.segment(self.encode_image(image), tokens)

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> CosineFeatures:
        if isinstance(self.backbone, ResNetBackbone):
            return CosineFeatures(resnet_values(self.backbone.visual, image))
        if self.cells == "values":
            return CosineFeatures(vit_values(self.backbone, image))
        return CosineFeatures(self.backbone.encode(image)[0])

    def segment(self, features: CosineFeatures, tokens: Tensor) -> Tensor:
        cosines = self.cosines(features, tokens)
        with without_autocast(cosines.device):
            y: Tensor = self.scale * (self.alpha * cosines - self.t)  # (B, 4 H3, 4 W3)
        return y

    @torch.no_grad()
    def cosines(self, features: CosineFeatures, tokens: Tensor) -> Tensor:
        """Return cos(cell, sentence), brought to stride 4: (B, 4 H3, 4 W3)."""
        f_tg = self.text_encoder(tokens)[1]  # (B, C')
        with without_autocast(f_tg.device):
            cells, f_tg = full_precision(features.cells, f_tg)
            f_tg = F.normalize(f_tg, dim=1)[:, :, None, None]
            cosines = (F.normalize(cells, dim=1) * f_tg).sum(1, keepdim=True)  # (B, 1, g, g)
            return resize(cosines, self.side).squeeze(1)


def resnet_values(visual: ModifiedResNet, image: Tensor) -> Tensor:
    """Return c_proj(v_proj(x4)) of each cell, (B, C', H4, W4): the attention pool's values."""
    x4 = visual.stem(image)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x4 = layer(x4)
    pool = visual.attnpool
    x = pool.c_proj(pool.v_proj(x4.flatten(2).transpose(1, 2)))  # (B, N4, C')
    cells: Tensor = x.transpose(1, 2).unflatten(2, x4.shape[2:])
    return cells


def vit_values(backbone: ViTBackbone, image: Tensor) -> Tensor:
    """Return the patch tokens z (B, C', g, g), had the last attention seen each token alone.

    Reading: residual, MLP, last norm and projection stay, as in MaskCLIP.
    """
    visual: VisionTransformer = backbone.visual
    x = visual._embeds(backbone.fit(image))
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
    attention = last.attn
    w_v, b_v = (part.chunk(3)[2] for part in (attention.in_proj_weight, attention.in_proj_bias))
    x = x + last.ls_1(attention.out_proj(F.linear(last.ln_1(x), w_v, b_v)))
    x = x + last.ls_2(last.mlp(last.ln_2(x)))
    x = visual.ln_post(x[:, 1:]) @ visual.proj  # (B, g * g, C')
    cells: Tensor = x.transpose(1, 2).unflatten(2, (backbone.patches, backbone.patches))
    return cells


def build_cosine(
    clip: open_clip.CLIP, *, image_size: int, variant: Variant, cells: Cells
) -> Cosine:
    """Build the floor on CLIP's towers. `cells` is a ViT's; a ResNet's are always its values."""
    backbone = make_backbone(clip, image_size=image_size, channels=(1, 1, 1))
    leave_out(backbone, "m_2", "m_3", "m_4", "m_g")
    return Cosine(
        backbone=backbone,
        text_encoder=TextEncoder(clip),
        scale=clip.logit_scale.detach().exp(),
        side=image_size // 4,
        variant=variant,
        cells=cells,
    )
