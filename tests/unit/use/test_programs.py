"""`torch.export` programs: they compute what the model computes, for any number of sentences."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mmnet.data.transforms import normalise
from mmnet.runtime.device import prepare
from mmnet.use.programs import HEAD, IMAGE, write_programs
from support.model import build, sentences, shaken

LENGTH = 9


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("mini-vit-b", {}), ("mini-rn", {"mmp": False, "mqe": False, "f_vg": False})],
)
def test_programs_compute_what_the_model_does(
    architecture: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    prepare("cpu", threads=1, tf32=False)  # as the commands do
    model = shaken(build(architecture, **changes)).float()
    write_programs(model, tmp_path, image_size=64, max_length=LENGTH)
    image_part = torch.export.load(tmp_path / IMAGE).module()
    head = torch.export.load(tmp_path / HEAD).module()
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        features = image_part(image)
        expected = model.encode_image(normalise(image))
        torch.testing.assert_close(tuple(features), tuple(expected), rtol=1e-4, atol=1e-4)
        for count in (1, 2, 5):
            tokens = sentences(count, LENGTH)
            per_sentence = type(expected)(*(x.expand(count, *x.shape[1:]) for x in expected))
            y = model.segment(per_sentence, tokens)
            torch.testing.assert_close(head(*features, tokens), y, rtol=1e-4, atol=1e-4)
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"  # as it was
