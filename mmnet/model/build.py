"""Config -> MMNet: the one place that knows every size, and where ablations swap parts."""

from pathlib import Path

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import nn

from mmnet.config.run import ModelConfig
from mmnet.config.schema import TowerConfig
from mmnet.model.ablations import EqualScores, PlainWords, SingleMaskDecoder
from mmnet.model.backbone_resnet import ResNetBackbone
from mmnet.model.backbone_vit import ViTBackbone
from mmnet.model.clip import load_clip
from mmnet.model.decoder import Decoder
from mmnet.model.estimator import QueryEstimator
from mmnet.model.mask_decoder import MaskDecoder
from mmnet.model.mask_projector import MaskProjector
from mmnet.model.mmnet import MMNet
from mmnet.model.neck import FusionNeck
from mmnet.model.query_generator import QueryGenerator
from mmnet.model.text_encoder import TextEncoder


def build_model(model: ModelConfig, tower: TowerConfig, *, weights: Path | None) -> MMNet:
    """Build MMNet on CLIP's towers, with their weights from a file, or random ones."""
    clip = load_clip(
        tower.architecture,
        weights=weights,
        image_size=model.image_size,
        antialias=model.position_resize == "antialiased",
    )
    backbone: ResNetBackbone | ViTBackbone
    if isinstance(clip.visual, ModifiedResNet):
        backbone = ResNetBackbone(clip.visual, channels=model.channels)
    else:
        backbone = ViTBackbone(clip.visual, image_size=model.image_size, channels=model.channels)
    text_encoder = TextEncoder(clip)
    grid = model.image_size // 16
    neck = FusionNeck(
        channels=model.channels,
        global_width=text_encoder.global_width,
        width=model.width,
        grid=grid,
        norm=model.vector_norm != "none",
    )
    query_generator = QueryGenerator(
        channels=model.channels,
        token_width=text_encoder.token_width,
        width=model.width,
        num_queries=model.num_queries,
        grid=grid,
        norm=model.vector_norm,
        visual_query=model.visual_query,
    )
    decoder = Decoder(
        width=model.width,
        heads=model.heads,
        ffn=model.ffn,
        dropout=model.dropout,
        layers=model.decoder_layers,
        num_queries=model.num_queries,
        grid=grid,
        bias=model.attention_bias,
    )
    projector = MaskProjector(width=model.width, grid=grid, relu_kernel=model.relu_kernel)
    estimator: nn.Module = QueryEstimator(
        width=model.width,
        heads=model.heads,
        residual=model.estimator_residual,
        bias=model.attention_bias,
    )
    if not model.mqe:  # Table 4. The estimator was made all the same: what follows is drawn after.
        estimator = EqualScores(mean=model.unscored_masks == "mean")
    mask_decoder = (MaskDecoder if model.mmp else SingleMaskDecoder)(  # Table 3
        projector=projector, estimator=estimator
    )
    if not model.f_vg:  # Table 4
        backbone.m_g = nn.Identity()
        query_generator.words = PlainWords(
            token_width=text_encoder.token_width,
            width=model.width,
            norm=model.vector_norm == "all",
        )
    if model.generator_init == "glorot":
        query_generator.start_as_vlt()
    mmnet = MMNet(
        backbone=backbone,
        text_encoder=text_encoder,
        neck=neck,
        query_generator=query_generator,
        decoder=decoder,
        mask_decoder=mask_decoder,
    )
    # Convolutions are faster so, and maps are flattened to tokens without a copy.
    mmnet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return mmnet
