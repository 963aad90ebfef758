"""Many processes, parts of batches, other precisions: the result that plain training gives."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor, nn

from mmnet.config.paths import Paths
from mmnet.config.run import part_size
from mmnet.config.schema import Config
from mmnet.data.dataset import evaluation_items, training_items
from mmnet.evaluate import predict
from mmnet.model import checkpoint
from mmnet.model.build import build_model
from mmnet.model.layers import resize, resize_by_products
from mmnet.runtime.distributed import ALONE, World
from mmnet.runtime.errors import ConfigError, TrainingError
from mmnet.runtime.signals import Stop
from mmnet.train import loop, step
from mmnet.train.advice import out_of_memory
from support.forks import in_two
from support.frozen import fit_frozen
from support.frozen import frozen as forward
from support.tiny import ROOT
from support.training import CPU, fit, run_in, with_train, work_of


def curve(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_curve(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["lr"] == other["lr"]
        # Sums in another order, over 12 steps.
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["val"]["mIoU"] == pytest.approx(other["val"]["mIoU"], abs=2e-3)


@pytest.fixture(scope="module")
def frozen(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The curve of one process, batch statistics frozen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.BatchNorm2d, "forward", forward)
        return curve(fit(tiny, tmp_path_factory.mktemp("one")))


def test_parts_of_a_batch_give_the_curve_of_the_whole(
    tiny: Any, frozen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.BatchNorm2d, "forward", forward)
    assert_same_curve(curve(fit(tiny, tmp_path, with_train(tiny.config, accumulate=2))), frozen)


def test_two_processes_of_which_one_is_signalled_stop_together_and_resume_to_the_curve_of_one(
    tiny: Any, frozen: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert in_two(lambda: fit_frozen(tiny, tmp_path, tiny.config, signalled_after=8)) == [1, 1]
    said = capfd.readouterr().err
    # One speaks for both.
    assert said.count("a batch of 4 = 2 process(es) x 1 part(s) x 2 items, on cpu") == 1
    assert said.count("epoch 1/2: loss") == 1
    assert "stopped by SIGUSR1 in epoch 2, after 3 of its steps, and saved" in said
    assert said.count("left\n") == 2
    # In parts from here on.
    parts = with_train(tiny.config, accumulate=2)
    assert in_two(lambda: fit_frozen(tiny, tmp_path, parts)) == [0, 0]
    said = capfd.readouterr().err
    assert said.count("a batch of 4 = 2 process(es) x 2 part(s) x 1 items, on cpu") == 1
    assert "resuming after epoch 1 and 3 steps, from" in said
    assert said.count("left\n") == 2
    assert_same_curve(curve(run_in(tmp_path, tiny.config).folder), frozen)


@pytest.mark.parametrize(("size", "accumulate"), [(1, 1), (2, 1), (1, 4), (2, 2), (4, 1)])
def test_processes_and_parts_take_each_item_of_a_batch_once(
    tiny: Any, size: int, accumulate: int
) -> None:
    config = with_train(tiny.config, accumulate=accumulate)
    model = build_model(config.model, config.tower, weights=None)
    run = step.start(model, config.train, CPU)
    shares = []
    for rank in range(size):
        stepper = step.Stepper.__new__(step.Stepper)
        stepper.state, stepper.config, stepper.world = run, config, World(rank, size)
        shares.append([*stepper.items(3)])
    # In the order of the epoch, the fourth batch of four.
    assert [index for share in shares for index in share] == [12, 13, 14, 15]
    assert {len(share) for share in shares} == {part_size(config.train, size) * accumulate}


def test_indivisible_batches_are_refused_before_any_work(tiny: Any) -> None:
    from mmnet.config.load import load_params
    from support.tiny import TINY

    with pytest.raises(ConfigError) as caught:
        load_params(ROOT / "params.yaml", [*TINY, "profiles.mini.train.accumulate=3"])
    said = "profiles.mini.train batch_size 4 is not divisible by 1 processes x 3 parts (accumulate)"
    assert said in str(caught.value)


def test_torchrun_with_an_indivisible_number_of_processes_is_refused(tiny: Any) -> None:
    run = step.start(
        build_model(tiny.config.model, tiny.config.tower, weights=None), tiny.config.train, CPU
    )
    with pytest.raises(ConfigError, match="not divisible by 3 processes x 1 parts"):
        step.Stepper(run, tiny.config, World(0, 3), CPU, Stop())


def test_every_sentence_is_counted_once_whatever_the_number_of_processes(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.config
    torch.manual_seed(0)
    model = build_model(config.model, config.tower, weights=None)
    items = evaluation_items(config, tiny.table, tiny.images, splits=config.dataset.splits)

    def predicted() -> pd.DataFrame:
        batches = predict.share_of(items, config, CPU)
        return predict.gathered(predict.predict(model, batches, threshold=0.35, device=CPU))

    alone = predicted()
    for size in (2, len(items) + 2):  # the last has no batch
        shares: list[pd.DataFrame] = []
        for rank in range(size):
            monkeypatch.setattr(predict, "world", lambda rank=rank, size=size: World(rank, size))
            monkeypatch.setattr(World, "gather", lambda self, rows: [rows])
            with monkeypatch.context() as patch:
                # Unsorted: what a process would send.
                patch.setattr(pd.DataFrame, "sort_values", lambda self, *a, **k: self)
                shares.append(predicted())
        monkeypatch.setattr(World, "gather", lambda self, rows, shares=shares: shares)
        pd.testing.assert_frame_equal(predicted(), alone)
        monkeypatch.undo()


def gradients(
    tiny: Any, config: Config, *, device: torch.device = CPU
) -> tuple[float, list[Tensor]]:
    """One step's loss and gradients, of the same weights and items."""
    torch.manual_seed(0)
    model = build_model(config.model, config.tower, weights=None)
    run = step.start(model, config.train, device)
    stepper = step.Stepper(run, config, ALONE, device, Stop())
    model.train()
    loss = stepper.step([first_batch(tiny)], step=0, lr=0.0)
    return loss, [p.grad.clone() for p in model.parameters()]


def cosine(ours: list[Tensor], theirs: list[Tensor]) -> float:
    one, other = (torch.cat([tensor.flatten() for tensor in grads]) for grads in (ours, theirs))
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def test_bf16_is_fp32_to_two_digits(tiny: Any) -> None:
    loss, plain = gradients(tiny, tiny.config)
    rounded_loss, rounded = gradients(tiny, with_train(tiny.config, precision="amp"))
    assert rounded_loss != loss
    assert rounded_loss == pytest.approx(loss, rel=1e-2)
    assert cosine(rounded, plain) > 0.95


def scaled(tiny: Any, monkeypatch: pytest.MonkeyPatch, scale: float) -> Any:
    """A run in fp16, and its stepper."""
    monkeypatch.setattr(step, "autocast_type", lambda train, device: torch.float16)
    torch.manual_seed(0)
    config = with_train(tiny.config, precision="amp")
    run = step.start(build_model(config.model, config.tower, weights=None), config.train, CPU)
    assert run.scaler.is_enabled()
    run.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return run, step.Stepper(run, config, ALONE, CPU, Stop())


def first_batch(tiny: Any) -> Any:
    items = training_items(tiny.config, tiny.table, tiny.images)
    return next(iter(loop.read(items, batch_size=4, workers=0)))


def test_fp16_with_its_loss_scaled_is_fp32_to_three_digits(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, plain = gradients(tiny, tiny.config)
    run, stepper = scaled(tiny, monkeypatch, 64.0)
    run.model.train()
    assert stepper.step([first_batch(tiny)], step=0, lr=0.0) == pytest.approx(loss, rel=2e-3)
    # Fused Adam has divided them by the scale.
    ours = [p.grad for p in run.model.parameters()]
    assert cosine(ours, plain) > 0.995
    for one, other in zip(ours, plain, strict=True):
        assert float(one.norm()) == pytest.approx(float(other.norm()), rel=0.1, abs=1e-3)


def test_a_step_whose_scaled_gradients_overflow_is_left_out(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, stepper = scaled(tiny, monkeypatch, 2.0**40)
    run.model.train()
    before = [p.detach().clone() for p in run.model.parameters()]
    stepper.step([first_batch(tiny)], step=0, lr=1e-2)
    assert all(map(torch.equal, before, run.model.parameters()))
    assert run.scaler.get_scale() == 2.0**39


def test_bf16_is_taken_where_a_gpu_has_it_and_fp16_where_not(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = with_train(tiny.config, precision="amp").train
    cuda = torch.device("cuda")
    for has, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has, **how: has)
        assert step.autocast_type(train, cuda) is dtype
    assert step.autocast_type(tiny.config.train, cuda) is None
    assert step.autocast_type(train, CPU) is torch.bfloat16


@pytest.mark.parametrize("tower", ["vit_b", "rn50"])
def test_recomputed_activations_give_the_same_gradients(tiny: Any, tower: str) -> None:
    config = tiny.config.model_copy(
        update={"tower": tiny.params.active.towers[tower].model_copy(update={"pretrained": "none"})}
    )
    loss, plain = gradients(tiny, config)
    again_loss, again = gradients(tiny, with_train(config, checkpoint_activations=True))
    assert again_loss == loss
    for one, other in zip(again, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_recomputing_is_of_the_towers_blocks(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    from open_clip import transformer

    original = transformer.checkpoint
    monkeypatch.setattr(
        transformer, "checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    gradients(tiny, tiny.config)
    assert not calls
    gradients(tiny, with_train(tiny.config, checkpoint_activations=True))
    assert len(calls) >= 3  # blocks: one of the image's, two of the text's


def test_compiled_steps_give_the_same_gradients(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, plain = gradients(tiny, tiny.config)
    original, compiled = torch.compile, []

    def traced(model: nn.Module) -> Any:
        # The default backend's C++ takes a minute to build; the tracing is what can go wrong here.
        compiled.append(model)
        return original(model, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    compiled_loss, ours = gradients(tiny, with_train(tiny.config, compile=True))
    assert len(compiled) == 1
    assert compiled_loss == pytest.approx(loss, rel=1e-5)
    assert cosine(ours, plain) > 0.99999


def test_channels_last_is_the_plain_layout(tiny: Any) -> None:
    torch.manual_seed(0)
    model = build_model(tiny.config.model, tiny.config.tower, weights=None).eval()
    image, tokens = torch.rand(2, 3, 64, 64), torch.full((2, 17), 7)
    ours = model(image.to(memory_format=torch.channels_last), tokens)
    plain = model.to(memory_format=torch.contiguous_format)(image, tokens)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("side", "other"), [(15, 30), (60, 120), (34, 30), (7, 7)])
def test_resizing_on_a_gpu_is_resizing_on_the_cpu(side: int, other: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, side, side, dtype=torch.float64, requires_grad=True)
    x = x.to(memory_format=torch.channels_last)
    weight = torch.randn(2, 3, other, other, dtype=torch.float64)
    results = []
    for way in (resize, resize_by_products):
        y = way(x, other)
        (gradient,) = torch.autograd.grad((y * weight).sum(), x)
        results.append((y, gradient))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


def test_resizing_to_twice_the_size_keeps_the_digits_of_bf16() -> None:
    # Weights are exact; only sums are rounded, once by rows and once by columns.
    x = torch.randn(2, 3, 30, 30).bfloat16()
    exact = resize(x.double(), 60)
    error = (resize_by_products(x, 60).double() - exact).abs().max() / exact.abs().max()
    assert float(error) < 2 * 2**-8


def test_too_little_memory_says_what_to_set(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")

    monkeypatch.setattr(step, "mask_loss", full)
    with pytest.raises(TrainingError) as caught:
        fit(tiny, tmp_path, tiny.config)
    for advice in (
        "4 items at a time",
        "train.accumulate: 2 (2 at a time)",
        "train.checkpoint_activations: true",
        "train.processes",
        "train.precision: amp",
        "Tried to allocate 2.00 GiB",
    ):
        assert advice in str(caught.value)
    assert "\n" not in str(caught.value)


def test_with_batchnorm_on_vectors_parts_of_one_item_are_not_advised(tiny: Any) -> None:
    config = with_train(tiny.config, accumulate=2)
    for norm in ("none", "all"):
        model = config.model.model_copy(update={"vector_norm": norm})
        full = config.model_copy(update={"model": model})
        error = str(out_of_memory(full, CPU, part_size=2, processes=1, reason="full"))
        assert ("accumulate: 4 (1 at a time)" in error) == (norm == "none")
        assert "train.checkpoint_activations" in error


def test_runtime_settings_are_no_part_of_what_a_training_is(tiny: Any) -> None:
    on_gpu = with_train(tiny.config, device="auto")
    changes = {
        "device": "cuda",
        "threads": 7,
        "workers": 3,
        "processes": 2,
        "accumulate": 2,
        "checkpoint_activations": True,
        "compile": True,
        "save_minutes": 1.0,
    }
    assert with_train(on_gpu, **changes).training_values() == on_gpu.training_values()
    for config, key, value in (
        (on_gpu, "precision", "amp"),
        (on_gpu, "val_threshold", 0.5),
        (tiny.config, "threads", 7),  # on the CPU, rounding depends on it
    ):
        assert with_train(config, **{key: value}).training_values() != config.training_values()


def break_off(*arguments: Any, **keywords: Any) -> float:
    raise KeyboardInterrupt


def test_the_command_calls_torchrun_and_a_stopped_run_resumes_with_fewer_processes(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / Paths("mini").data
    data.mkdir(parents=True)
    (data / "images").symlink_to(tiny.images)
    (data / "images.tsv").symlink_to(tiny.images.with_suffix(".tsv"))
    for name, table in tiny.tables.items():
        (data / f"{name}.parquet").symlink_to(table)
    values = tiny.params.model_dump(mode="json")
    values["profiles"]["mini"]["train"] |= {"epochs": 400, "save_minutes": 1e-9}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    arguments = ["train", "--experiment", "refcoco_vit_b"]
    arguments += ["--set", "profiles.mini.train.processes=2"]
    program = f"import sys; from mmnet.cli.parser import main; sys.exit(main({arguments}))"
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")}
    config = with_train(tiny.config, epochs=400, save_minutes=1e-9)
    work = work_of(tiny, tmp_path, config)
    with subprocess.Popen(
        [sys.executable, "-c", program, "other", "arguments"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        while not work.previous.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "a batch of 4 = 2 process(es) x 1 part(s) x 2 items" in said
    assert said.count("refcoco_vit_b: stopped by SIGTERM in epoch") == 1  # each process's error
    assert "Traceback" not in said
    assert "Warning" not in said
    assert not list((tmp_path / "tmp").glob("mmnet-*"))
    state = checkpoint.load(work.last)
    # The rest by one process, of which one step shows enough.
    monkeypatch.setattr(step.Stepper, "step", break_off)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny, tmp_path, config)
    steps = f" and {len(state['losses'])} steps" if state["losses"] else ""
    resumed = f"resuming after epoch {len(state['history'])}{steps}, from"
    assert resumed in capsys.readouterr().err
