"""Tiny configs, sentences and random BatchNorm statistics for the model's tests."""

from typing import Any

import torch
from torch import Tensor, nn

from mmnet.config.run import ModelConfig
from mmnet.config.schema import TowerConfig
from mmnet.model.build import build_model
from mmnet.model.mmnet import MMNet

SOS, EOS = 49406, 49407


def model_config(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "image_size": 64,
        "resize": "letterbox",
        "width": 16,
        "channels": [8, 16, 24],
        "num_queries": 3,
        "decoder_layers": 2,
        "heads": 2,
        "ffn": 24,
        "dropout": 0.1,
        "mmp": True,
        "mqe": True,
        "f_vg": True,
        "relu_kernel": True,
        "unscored_masks": "sum",
        "estimator_residual": False,
        "vector_norm": "none",
        "generator_init": "torch",
        "visual_query": False,
        "attention_bias": False,
        "position_resize": "antialiased",
    }
    return ModelConfig(**{**values, **changes})


def tower_config(architecture: str) -> TowerConfig:
    # Not validated: some tests add definitions of their own to open_clip's.
    return TowerConfig.model_construct(
        architecture=architecture, pretrained="none", label=architecture
    )


def build(architecture: str = "mini-vit-b", **changes: Any) -> MMNet:
    torch.manual_seed(0)
    return build_model(model_config(**changes), tower_config(architecture), weights=None)


def sentences(count: int, length: int = 9) -> Tensor:
    """Sentences of three words and more, padded with zeros."""
    tokens = torch.zeros(count, length, dtype=torch.long)
    for row in range(count):
        words = 3 + row % (length - 4)
        tokens[row, 0] = SOS
        tokens[row, 1 : 1 + words] = torch.randint(1, 1000, (words,))
        tokens[row, 1 + words] = EOS
    return tokens


def shaken(module: nn.Module) -> Any:
    """Make a part exact and lively: doubles, random statistics, no dropout."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d | nn.LayerNorm):
            nn.init.normal_(part.weight, 1, 0.2)
            nn.init.normal_(part.bias, 0, 0.2)
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(part.running_mean, 0, 0.2)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return module.double().eval()
