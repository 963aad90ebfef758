"""The floor: what CLIP's towers know before any head, as the cosine of each cell and the sentence.

Extract Free Dense Labels from CLIP (Zhou et al., ECCV 2022; arXiv 2112.01071), §3: CLIP's last
attention is left out and its values are kept, so that each cell speaks for itself.

The towers stay as they are; logit = a cos + b. `zero-shot`: a is CLIP's own temperature, and b puts
the threshold where the mean IoU on train is largest. `fitted`: the a and b of least BCE on train.
`fit` does either in one pass, exactly: two numbers need no epochs.

Keys: image_size, and two of its own, `variant` and, of a ViT, `cells`.
"""

import math
from collections.abc import Iterable
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
BINS = 10_000
"""Of cosines from -1 to 1, in which `fit` counts: CLIP's differ by some hundredths."""


class CosineFeatures(NamedTuple):
    cells: Tensor  # (B, C', g, g)


class Cosine(nn.Module):
    """An image and a sentence in, the mask of what the sentence refers to out."""

    def __init__(
        self,
        *,
        backbone: ResNetBackbone | ViTBackbone,
        text_encoder: TextEncoder,
        temperature: Tensor,
        side: int,
        variant: Variant,
        cells: Cells,
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.text_encoder = text_encoder.requires_grad_(False)
        self.side = side
        self.cells = cells
        self.variant = variant
        self.a = nn.Parameter(temperature, requires_grad=variant == "fitted")
        self.b = nn.Parameter(torch.zeros(()))

    def train(self, mode: bool = True) -> Self:
        """The towers stay as in evaluation, their BatchNorms' statistics too."""
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
            y: Tensor = self.a * cosines + self.b  # (B, 4 H3, 4 W3)
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


@torch.no_grad()
def fit(
    model: Cosine, batches: Iterable[tuple[Tensor, Tensor, Tensor]], *, threshold: float
) -> None:
    """Fit the variant's numbers on train's images, tokens and masks (B, 4 H3, 4 W3), in one pass.

    `threshold` is that on the sigmoid by which masks will be made.
    """
    counts = torch.zeros(2, BINS, dtype=torch.float64)
    ious = torch.zeros(BINS, dtype=torch.float64)
    for image, tokens, mask in batches:
        cosines = model.cosines(model.encode_image(image), tokens)
        found = histograms(cosines, mask).cpu()
        counts += found.sum(0)
        ious += ious_above(found).sum(0)
    if model.variant == "fitted":
        a, b = least_bce(counts)
        model.a.fill_(a)
    else:
        t = 2 * int(ious.argmax()) / BINS - 1
        b = math.log(threshold / (1 - threshold)) - float(model.a) * t
    model.b.fill_(b)


def histograms(cosines: Tensor, masks: Tensor) -> Tensor:
    """Count each item's pixels by their cosine, background's and object's: (B, 2, BINS)."""
    bins = ((cosines + 1) * (BINS / 2)).long().clamp(0, BINS - 1).flatten(1)  # (B, pixels)
    items = torch.arange(len(bins), device=bins.device)[:, None]
    places = (2 * items + (masks > 0.5).flatten(1)) * BINS + bins
    return places.flatten().bincount(minlength=2 * BINS * len(bins)).view(-1, 2, BINS)


def ious_above(found: Tensor) -> Tensor:
    """Return each item's IoU (B, BINS) if its mask were the pixels of each bin and all above."""
    outside, inside = found.flip(2).cumsum(2).flip(2).double().unbind(1)
    return inside / (inside[:, :1] + outside).clamp(min=1)


@torch.enable_grad()
def least_bce(counts: Tensor) -> tuple[float, float]:
    """Return the a and b for which a cos + b has the least binary cross-entropy."""
    outside, inside = counts / counts.sum()  # (BINS,)
    cosines = (torch.arange(BINS, dtype=torch.float64) + 0.5) * (2 / BINS) - 1
    mean = ((outside + inside) * cosines).sum()
    spread = ((outside + inside) * (cosines - mean).square()).sum().sqrt().clamp(min=2 / BINS)
    x = (cosines - mean) / spread
    w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        z = w[0] * x + w[1]
        bce: Tensor = (inside * F.softplus(-z) + outside * F.softplus(z)).sum()
        bce.backward()
        return bce

    optimizer.step(loss)
    slope, level = w.detach().tolist()
    a = slope / float(spread)
    return a, level - a * float(mean)


def build_cosine(
    clip: open_clip.CLIP, *, image_size: int, variant: Variant, cells: Cells
) -> Cosine:
    """Build the floor on CLIP's towers. `cells` is a ViT's; a ResNet's are always its values."""
    backbone = make_backbone(clip, image_size=image_size, channels=(1, 1, 1))
    leave_out(backbone, "m_2", "m_3", "m_4", "m_g")
    return Cosine(
        backbone=backbone,
        text_encoder=TextEncoder(clip),
        temperature=clip.logit_scale.detach().exp(),
        side=image_size // 4,
        variant=variant,
        cells=cells,
    )
