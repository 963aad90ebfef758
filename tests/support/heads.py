"""Tiny models of the heads other than MMNet's."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mmnet.model.clip import load_clip
from mmnet.model.heads.cosine import build_cosine
from mmnet.model.heads.cris import build_cris
from mmnet.model.heads.vlt import build_vlt
from support.model import model_config

BUILDERS: dict[str, Callable[..., Any]] = {
    "cris": build_cris,
    "vlt": build_vlt,
    "cosine": build_cosine,
}
TINY = {**model_config().model_dump(), "variant": "fitted", "cells": "values"}
PAPER = {
    "image_size": 480,
    "channels": [256, 512, 1024],
    "num_queries": 16,
    "decoder_layers": 3,
    "heads": 8,
    "ffn": 2048,
}


def build_head(head: str, architecture: str = "mini-vit-b", **changes: Any) -> Any:
    """Build a head on random towers, with those of the values that it has keywords for."""
    torch.manual_seed(0)
    values = {**TINY, **changes}
    clip = load_clip(architecture, weights=None, image_size=values["image_size"])
    keywords = inspect.signature(BUILDERS[head]).parameters
    return BUILDERS[head](clip, **{key: values[key] for key in keywords if key != "clip"})


def paper_head(head: str, architecture: str, **changes: Any) -> Any:
    """Build a head at its paper's sizes, with shapes and no numbers."""
    width = {"width": 256 if head == "vlt" else 512}
    with torch.device("meta"):
        return build_head(head, architecture, **{**PAPER, **width, **changes})


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What a head adds to CLIP's towers and, on a ViT, to its three convolutions."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith(("backbone.", "text_encoder."))
    }
