"""Which parts learn."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mmnet.train.recipe import CLIP_PARTS
from support.training import fit, with_train

FRESH = {"running_mean": {0}, "running_var": {1}, "weight": {0, 1}, "bias": {0}}
"""What a BatchNorm of CLIP's ResNet starts with; the last one of a block has the weight 0."""


@pytest.mark.parametrize("clip_batchnorm", ["trained", "frozen"])
def test_frozen_batchnorms_of_clip_stay_as_they_are_and_the_others_learn(
    clip_batchnorm: str, tiny: Any, tmp_path: Path
) -> None:
    resnet = tiny.params.resolve("nq_24", 0).tower.model_copy(update={"pretrained": "none"})
    config = with_train(tiny.config, clip_batchnorm=clip_batchnorm)
    folder = fit(tiny, tmp_path, config.model_copy(update={"tower": resnet}))
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    counted = [name for name in saved if name.endswith("num_batches_tracked")]
    of_clip = [name for name in counted if name.startswith(CLIP_PARTS)]
    assert of_clip
    for name in counted:
        stays = clip_batchnorm == "frozen" and name in of_clip
        assert (saved[name] == 0) == stays, name
    for name in of_clip:
        part = name.removesuffix("num_batches_tracked")
        is_fresh = all({*saved[part + key].tolist()} <= values for key, values in FRESH.items())
        assert is_fresh == (clip_batchnorm == "frozen"), part
