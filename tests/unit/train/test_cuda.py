"""Training and prediction on a GPU: skipped where there is none."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmnet.config.schema import Config
from mmnet.data.dataset import evaluation_items
from mmnet.data.loader import read
from mmnet.evaluate.predict import predict
from mmnet.model.build import build_model
from mmnet.model.layers import resize
from mmnet.runtime import device as devices
from mmnet.runtime.distributed import ALONE
from mmnet.runtime.errors import Stopped, TrainingError
from mmnet.runtime.signals import Stop
from mmnet.train import loop, step
from support.tiny import ROOT
from support.training import CPU, identity_of, inputs_of, run_in, with_train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")


@pytest.fixture
def cuda() -> Any:
    yield devices.prepare("cuda", threads=1, tf32=False)
    devices.prepare("cpu", threads=1)


def items(tiny: Any) -> Any:
    train = loop.training_items(tiny.config, tiny.table, tiny.images)
    return next(iter(read(train, batch_size=4, workers=0)))


def one_step(tiny: Any, config: Config, device: torch.device) -> tuple[float, Tensor]:
    """Return the loss and all gradients of a run's first step."""
    torch.manual_seed(0)
    model = build_model(config.model, config.tower, weights=None).to(device).train()
    state = step.start(model, config.train, device)
    with step.Stepper(state, config, ALONE, device, Stop()) as stepper:
        loss = stepper.step([items(tiny)], step=0, lr=0.0)
        gradients = [p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None]
    return loss, torch.cat(gradients)


def cosine(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one, other, dim=0))


@pytest.mark.parametrize("experiment", ["refcoco_vit_b", "nq_24", "nq_24_no_mmp"])
def test_a_step_is_that_of_the_cpu(experiment: str, tiny: Any, cuda: torch.device) -> None:
    config = tiny.params.resolve(experiment, 0)
    (loss, gradients), (expected, reference) = (
        one_step(tiny, config, device) for device in (cuda, CPU)
    )
    assert loss == pytest.approx(expected, rel=1e-4)
    assert cosine(gradients, reference) > 0.9999


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({"precision": "amp"}, 0.95),
        ({"checkpoint_activations": True}, 0.9999),
        ({"compile": True}, 0.999),
    ],
)
def test_other_ways_to_compute_a_step_give_its_gradients(
    changes: dict[str, Any], least: float, tiny: Any, cuda: torch.device
) -> None:
    loss, gradients = one_step(tiny, with_train(tiny.config, **changes), cuda)
    expected, reference = one_step(tiny, tiny.config, cuda)
    assert loss == pytest.approx(expected, rel=2e-2)
    assert cosine(gradients, reference) > least


@pytest.mark.parametrize("side", [3, 8, 17])
def test_resizing_by_products_is_interpolation(side: int, cuda: torch.device) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, device=cuda)
    expected = F.interpolate(x.cpu(), (side, side), mode="bilinear")
    torch.testing.assert_close(resize(x, side).cpu(), expected, rtol=1e-4, atol=1e-5)


def fit(tiny: Any, root: Path, config: Config, device: torch.device) -> Path:
    run = run_in(root, config)
    inputs = inputs_of(tiny)
    loop.fit(config, identity_of(tiny, config), inputs=inputs, run=run, device=device)
    return run.folder


@pytest.mark.parametrize("precision", ["fp32", "amp"])
def test_an_interrupted_run_ends_with_the_bytes_of_an_undisturbed_one(
    precision: str, tiny: Any, tmp_path: Path, cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_train(tiny.config, precision=precision)
    undisturbed = fit(tiny, tmp_path / "undisturbed", config, cuda)
    take = step.Stepper.step

    def stopped(self: step.Stepper, *arguments: Any, **keywords: Any) -> float:
        if keywords["step"] == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(step.Stepper, "step", stopped)
        with pytest.raises(Stopped):
            fit(tiny, tmp_path / "stopped", config, cuda)
    resumed = fit(tiny, tmp_path / "stopped", config, cuda)
    for name in ("checkpoint.pt", "metrics.jsonl"):
        assert (resumed / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_predictions_are_those_of_the_cpu(tiny: Any, cuda: torch.device) -> None:
    torch.manual_seed(0)
    model = build_model(tiny.config.model, tiny.config.tower, weights=None)
    of_val = evaluation_items(tiny.config, tiny.table, tiny.images, splits=["val"])

    def rows(device: torch.device) -> pd.DataFrame:
        batches = read(of_val, batch_size=None, workers=0)
        return predict(model.to(device), batches, threshold=0.35, device=device)

    ours, theirs = rows(cuda), rows(CPU)
    assert (ours["sent_id"] == theirs["sent_id"]).all()
    # Of some 3,000 pixels: those at the threshold may fall to the other side.
    assert (ours["union"] - theirs["union"]).abs().max() <= 10


def test_too_little_memory_says_what_to_set(tiny: Any, cuda: torch.device) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4)  # 8 MB
    try:
        with pytest.raises(TrainingError, match=r"train\.accumulate: 2"):
            one_step(tiny, tiny.config, cuda)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


HOLD = (
    "from mmnet.runtime.gpus import take\nwith take(1) as held: print(*held, flush=True); input()"
)


def test_a_held_gpu_is_waited_for_and_free_when_its_holder_is_killed(cuda: torch.device) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["CUDA_VISIBLE_DEVICES"] = "0"
    how: dict[str, Any] = {"env": environment, "text": True, "stdin": subprocess.PIPE}
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, **how) as holder:
        assert holder.stdout is not None
        gpu = holder.stdout.readline()
        assert gpu.startswith("GPU-")
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, **pipes, **how) as waiting:
            assert waiting.stderr is not None
            assert waiting.stdout is not None
            assert "waiting" in waiting.stderr.readline()
            holder.kill()
            assert waiting.stdout.readline() == gpu
            waiting.kill()
