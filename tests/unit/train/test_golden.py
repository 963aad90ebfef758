"""Numbers that no change of wording or order may move: a tiny training and tiny predictions.

A change that is meant to move them says so in its commit, and writes the new ones here.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmnet.train import step
from support.model import build, sentences
from support.training import fit

LOSSES = [
    0.6471041,
    0.6271322,
    0.6098543,
    0.5697681,
    0.6235684,
    0.5620801,
    0.557541,
    0.5264962,
    0.5185912,
    0.5375601,
    0.5267655,
    0.5045245,
]
VAL_MIOU = [0.06286666631128748, 0.08351314303567153]
PREDICTIONS = {
    "mini-vit-b": [0.07206976, 0.06470637, 0.08987715, 0.123648],
    "mini-rn": [1.111178, 0.2503072, 1.248104, 1.287513],
    "mini-rn mmp": [1.111178, 0.2503072, 1.248104, 1.287513],
    "mini-rn mqe": [3.333533, 0.7509215, 3.744312, 3.862538],
    "mini-rn f_vg": [1.035687, 0.2481, 1.186709, 1.175938],
    "mini-rn relu_kernel": [0.4143735, 0.1424365, 0.4795622, 0.4925942],
    "mini-rn mqe f_vg": [3.10706, 0.7443001, 3.560126, 3.527814],
}


def test_golden_losses_of_a_tiny_training(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    take = step.Stepper.step

    def noted(self: step.Stepper, *arguments: Any, **keywords: Any) -> float:
        losses.append(take(self, *arguments, **keywords))
        return losses[-1]

    monkeypatch.setattr(step.Stepper, "step", noted)
    lines = (fit(tiny, tmp_path) / "metrics.jsonl").read_text().splitlines()
    assert losses == pytest.approx(LOSSES, rel=1e-4)
    assert [json.loads(line)["val"]["mIoU"] for line in lines] == pytest.approx(VAL_MIOU, rel=1e-4)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("mini-vit-b", {}),
        ("mini-rn", {}),
        ("mini-rn", {"mmp": False}),
        ("mini-rn", {"mqe": False}),
        ("mini-rn", {"f_vg": False}),
        ("mini-rn", {"relu_kernel": False}),
        ("mini-rn", {"mqe": False, "f_vg": False}),
    ],
)
def test_golden_predictions_of_a_tiny_model(architecture: str, changes: dict[str, Any]) -> None:
    model = build(architecture, **changes).eval()
    torch.manual_seed(1)
    image, tokens = torch.randn(2, 3, 64, 64), sentences(2)
    with torch.inference_mode():
        y = model(image, tokens)
    found = [y.mean().item(), y.std().item(), y[0, 3, 5].item(), y[1, 12, 9].item()]
    key = " ".join([architecture, *changes])
    assert found == pytest.approx(PREDICTIONS[key], rel=1e-4)
