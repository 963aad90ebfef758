"""CLIP's image tower, for heads that read less of it than MMNet."""

from collections.abc import Sequence

import open_clip
from open_clip.modified_resnet import ModifiedResNet
from torch import nn

from mmnet.model.backbone_resnet import ResNetBackbone
from mmnet.model.backbone_vit import ViTBackbone


def make_backbone(
    clip: open_clip.CLIP, *, image_size: int, channels: Sequence[int]
) -> ResNetBackbone | ViTBackbone:
    """Make MMNet's backbone on CLIP's image tower."""
    if isinstance(clip.visual, ModifiedResNet):
        return ResNetBackbone(clip.visual, channels=channels)
    return ViTBackbone(clip.visual, image_size=image_size, channels=channels)


def leave_out(backbone: nn.Module, *projections: str) -> None:
    """Replace projections by the identity, so that a model has no parameter without use."""
    for name in projections:
        setattr(backbone, name, nn.Identity())
