"""A model to use: small, with random weights, as if it were loaded."""

from typing import Any

import torch

from mmnet.use.config import InferenceConfig
from mmnet.use.model import Model
from support.model import build, model_config

CPU = torch.device("cpu")


def inference_config(**changes: Any) -> InferenceConfig:
    values: dict[str, Any] = {
        **{"name": "made_up/seed0", "profile": "mini", "dataset": "refcoco"},
        **{"architecture": "mini-vit-b", "model": model_config(), "max_length": 9},
        **{"threshold": 0.35, "portable": False, "threads": None, "tf32": False},
    }
    return InferenceConfig(**{**values, **changes})


def untrained(**changes: Any) -> Model:
    """A model whose masks cover a part of the picture; `changes` are of its ModelConfig."""
    network = build(**changes)
    config = inference_config(model=model_config(**changes))
    return Model(config, network.eval(), CPU)
