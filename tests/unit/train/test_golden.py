"""Numbers that no change of wording or order may move: a tiny training and tiny predictions.

A change that is meant to move them says so in its commit, and writes the new ones here. They are
those of portable arithmetic, to the last bit; whether this machine agrees to the last bit is shown.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmnet.train import step
from support.model import build, sentences
from support.training import fit

LOSSES = [
    0.8982223272323608,
    0.8524850606918335,
    0.7956793308258057,
    0.7515538930892944,
    0.6790558099746704,
    0.6586239337921143,
    0.6377795934677124,
    0.6004502773284912,
    0.6068691611289978,
    0.5601655840873718,
    0.5478709936141968,
    0.5470880270004272,
]
VAL_MIOU = [0.045496904036389785, 0.02032750999349604]
PREDICTIONS = {
    "mini-vit-b": [0.18265141546726227, 0.1306241899728775, 0.24351942539215088, 0.19927978515625],
    "mini-rn": [1.1111778020858765, 0.25030720233917236, 1.248104214668274, 1.2875127792358398],
    "mini-rn mmp": [1.1111778020858765, 0.25030717253685, 1.2481040954589844, 1.2875126600265503],
    "mini-rn mqe": [3.333533525466919, 0.7509214878082275, 3.744312047958374, 3.8625383377075195],
    "mini-rn f_vg": [1.03568696975708, 0.24810002744197845, 1.1867084503173828, 1.1759381294250488],
    "mini-rn relu_kernel": [
        0.4143734872341156,
        0.14243647456169128,
        0.4795621931552887,
        0.4925943911075592,
    ],
    "mini-rn mqe f_vg": [
        3.107060670852661,
        0.7443000674247742,
        3.5601253509521484,
        3.5278143882751465,
    ],
}


Compare = Callable[[str, list[float], list[float]], None]


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> Compare:
    """Ask for four digits, and show whether the bits agree too."""

    def compared(name: str, found: list[float], expected: list[float]) -> None:
        assert found == pytest.approx(expected, rel=1e-4)
        with capsys.disabled():
            print(f"\n{name}: {'the same bits' if found == expected else 'OTHER BITS'}")

    return compared


def test_golden_losses_of_a_tiny_training(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compare: Compare
) -> None:
    losses: list[float] = []
    take = step.Stepper.step

    def noted(self: step.Stepper, *arguments: Any, **keywords: Any) -> float:
        losses.append(take(self, *arguments, **keywords))
        return losses[-1]

    monkeypatch.setattr(step.Stepper, "step", noted)
    lines = (fit(tiny, tmp_path) / "metrics.jsonl").read_text().splitlines()
    compare("losses", losses, LOSSES)
    compare("val mIoU", [json.loads(line)["val"]["mIoU"] for line in lines], VAL_MIOU)


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
def test_golden_predictions_of_a_tiny_model(
    architecture: str, changes: dict[str, Any], compare: Compare
) -> None:
    model = build(architecture, **changes).eval()
    torch.manual_seed(1)
    image, tokens = torch.randn(2, 3, 64, 64), sentences(2)
    with torch.inference_mode():
        y = model(image, tokens)
    found = [y.mean().item(), y.std().item(), y[0, 3, 5].item(), y[1, 12, 9].item()]
    key = " ".join([architecture, *changes])
    compare(f"predictions of {key}", found, PREDICTIONS[key])
