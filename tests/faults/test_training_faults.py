"""Training that is killed, stopped or loses files: it resumes exactly, or says what to do."""

import contextlib
import gc
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, dataloader

from mmnet.data import loader
from mmnet.data.dataset import evaluation_items, training_items
from mmnet.data.loader import read
from mmnet.model import checkpoint
from mmnet.model.build import build_model
from mmnet.runtime.errors import CheckpointError, DataError, MMNetError, Stopped, TrainingError
from mmnet.runtime.files import checksum
from mmnet.train import loop, step
from mmnet.train import run_state as state
from support.forks import ended, forked
from support.training import CPU, fit, identity_of, run_in, with_train, work_of

PUBLISHED = ("checkpoint.pt", "metrics.jsonl")
OFTEN = 1e-9
"""Minutes: a checkpoint after each step."""


@pytest.fixture
def undisturbed(tiny: Any, undisturbed: Path) -> Path:
    """What the tiny training publishes."""
    return run_in(undisturbed, tiny.config).folder


def assert_same(ours: Path, theirs: Path) -> None:
    for name in PUBLISHED:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


def after_steps(monkeypatch: pytest.MonkeyPatch, count: int, action: Callable[[], None]) -> None:
    """Do something behind the given step, counted over the whole run."""
    original = step.Stepper.step
    taken = []

    def counted(self: step.Stepper, *arguments: Any, **keywords: Any) -> float:
        loss = original(self, *arguments, **keywords)
        taken.append(loss)
        if len(taken) == count:
            action()
        return loss

    monkeypatch.setattr(step.Stepper, "step", counted)


def break_off() -> None:
    raise KeyboardInterrupt


def broken_off(tiny: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Train with a checkpoint behind each step, and break off behind one of them."""
    with monkeypatch.context() as patch:
        after_steps(patch, steps, break_off)
        with pytest.raises(KeyboardInterrupt):
            fit(tiny, folder, with_train(tiny.config, save_minutes=OFTEN))


def wait_for_a_save(last: Path, pid: int) -> None:
    """Until last.pt is there, or another; or the process has ended."""
    before = last.stat().st_ino if last.exists() else None
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        with contextlib.suppress(FileNotFoundError):
            if last.stat().st_ino != before:
                return
        time.sleep(0.001)


def test_run_killed_at_twenty_moments_ends_with_the_bytes_of_an_undisturbed_one(
    tiny: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = with_train(tiny.config, epochs=6, save_minutes=OFTEN)
    last = work_of(tiny, tmp_path, config).last
    moments = random.Random(0)
    began, first_save, kills = time.monotonic(), 0.0, 0
    while kills < 20:
        pid = forked(lambda: fit(tiny, tmp_path, config))
        if not first_save or moments.random() < 0.5:  # however slow the machine has become
            wait_for_a_save(last, pid)
            first_save = first_save or time.monotonic() - began
        time.sleep(moments.uniform(0, first_save))
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL, f"finished after {kills} kills: train for longer"
        kills += 1
    assert ended(forked(lambda: fit(tiny, tmp_path, config))) == 0
    said = capfd.readouterr().err
    # Within epochs too, or the moments were no test.
    assert said.count("resuming after epoch") >= 5
    assert " steps, from " in said
    whole = fit(tiny, tmp_path / "undisturbed", with_train(tiny.config, epochs=6))
    assert_same(run_in(tmp_path, config).folder, whole)


def test_run_broken_off_within_an_epoch_goes_on_within_it(
    tiny: Any,
    tmp_path: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken_off(tiny, tmp_path, monkeypatch, steps=9)
    capsys.readouterr()
    # The ninth was the third of the second epoch, and was not saved.
    content = checkpoint.load(work_of(tiny, tmp_path).last)
    assert content["identity"] == identity_of(tiny).as_dict()
    assert (len(content["history"]), len(content["losses"])) == (1, 2)
    assert {"model", "optimizer", "scaler"} <= set(content)
    assert_same(fit(tiny, tmp_path), undisturbed)
    assert "resuming after epoch 1 and 2 steps, from " in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_of_a_queue_saves_and_stops_and_the_run_goes_on(
    number: signal.Signals,
    tiny: Any,
    tmp_path: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        after_steps(patch, 8, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Stopped) as caught:
            fit(tiny, tmp_path)
    assert signal.getsignal(number) == before
    assert caught.value.exit_code == 128 + number
    # Heard behind the step that was under way when it came.
    assert f"{number.name} in epoch 2, after 3 of its steps" in str(caught.value)
    assert len(checkpoint.load(work_of(tiny, tmp_path).last)["losses"]) == 3
    assert_same(fit(tiny, tmp_path), undisturbed)


def test_signal_while_evaluating_loses_no_step(
    tiny: Any, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate = loop.validate

    def signalled(*arguments: Any, **keywords: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", signalled)
        with pytest.raises(Stopped, match="in epoch 1, after 6 of its steps"):
            fit(tiny, tmp_path)
        patch.setattr(step.Stepper, "step", lambda *a, **k: pytest.fail("a step twice"))
        patch.setattr(loop, "validate", lambda *a, **k: break_off())
        with pytest.raises(KeyboardInterrupt):
            fit(tiny, tmp_path)
    assert_same(fit(tiny, tmp_path), undisturbed)


def test_run_killed_before_its_best_model_was_written_writes_it(
    tiny: Any, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = checkpoint.load(undisturbed / "checkpoint.pt")["epoch"]
    original = state.Saver.save_best

    def broken_at_the_best(self: state.Saver) -> None:
        if self.state.epoch == best:
            break_off()
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(state.Saver, "save_best", broken_at_the_best)
        with pytest.raises(KeyboardInterrupt):
            fit(tiny, tmp_path)
    # That epoch is not taken again: on a GPU it might end with other bits.
    assert checkpoint.load(work_of(tiny, tmp_path).last)["losses"] == []
    assert_same(fit(tiny, tmp_path), undisturbed)


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(255 - byte for byte in content[middle : middle + 64])
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [remove, flip])
def test_run_whose_best_model_is_lost_starts_from_scratch_and_says_so(
    damage: Callable[[Path], None],
    tiny: Any,
    tmp_path: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    best = work_of(tiny, tmp_path).best
    broken_off(tiny, tmp_path, monkeypatch, steps=9)
    damage(best)
    assert_same(fit(tiny, tmp_path), undisturbed)
    assert f"{best}: is not the model of epoch 1" in capsys.readouterr().err
    # Finished, it cannot be published again either.
    damage(best)
    assert_same(fit(tiny, tmp_path), undisturbed)


@pytest.mark.parametrize("damage", [cut, flip])
def test_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    damage: Callable[[Path], None],
    tiny: Any,
    tmp_path: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken_off(tiny, tmp_path, monkeypatch, steps=4)
    last = work_of(tiny, tmp_path).last
    damage(last)
    capsys.readouterr()
    assert_same(fit(tiny, tmp_path), undisturbed)
    said = capsys.readouterr().err
    assert f"{last}: damaged" in said
    assert f"resuming after epoch 0 and 2 steps, from {last.with_name('previous.pt')}" in said


def test_checkpoint_whose_checksum_differs_after_writing_is_refused(
    tiny: Any, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_off(tiny, tmp_path, monkeypatch, steps=2)
    last = work_of(tiny, tmp_path).last
    before = last.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "checksum", lambda path: "another")
        with pytest.raises(CheckpointError, match="checksum mismatch after writing"):
            checkpoint.save(last, {"model": {}}, previous=tmp_path / "previous.pt")
    assert last.read_bytes() == before
    assert not list(last.parent.glob(".*"))
    assert_same(fit(tiny, tmp_path), undisturbed)


def test_full_disk_stops_training_with_the_last_good_checkpoint_intact(
    tiny: Any, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    last = work_of(tiny, tmp_path).last
    good: list[str] = []

    def fill() -> None:
        # What a file can grow to: the next checkpoint cannot be written.
        good.append(checksum(last))
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))

    with monkeypatch.context() as patch:
        after_steps(patch, 3, fill)
        try:
            with pytest.raises(MMNetError, match=r"last\.pt: cannot be written: File too large"):
                fit(tiny, tmp_path, with_train(tiny.config, save_minutes=OFTEN))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [checksum(last)] == good
    assert not list(tmp_path.rglob("*.tmp"))
    assert_same(fit(tiny, tmp_path), undisturbed)


def test_random_numbers_are_those_of_seed_step_and_process(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.config.model.model_copy(update={"dropout": 0.5})
    config = tiny.config.model_copy(update={"model": model})
    undisturbed = fit(tiny, tmp_path / "undisturbed", config)
    with monkeypatch.context() as patch:
        after_steps(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped):
            fit(tiny, tmp_path / "stopped", config)
    torch.rand(7)
    assert_same(fit(tiny, tmp_path / "stopped", config), undisturbed)


class DyingItems(Dataset[Any]):
    """Reading the third kills the process, as a kernel short of memory does."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> int:
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return index

    def paths(self, index: int) -> list[Path]:
        return [Path(f"image{index}.jpg")]


def test_dead_reader_names_the_image_it_was_at() -> None:
    with pytest.raises(DataError) as caught:
        list(read(DyingItems(), batch_size=None, workers=2))
    assert str(caught.value).startswith("image2.jpg: the process that was reading it died (")
    assert "Lower train.workers" in str(caught.value)


class Unsendable:
    """What a full /dev/shm, a socket's path that is too long or too many open files do."""

    def __reduce__(self) -> Any:
        raise OSError(28, "No space left on device")


class UnsendableItems(DyingItems):
    def __getitem__(self, index: int) -> Any:
        return Unsendable() if index == 2 else torch.zeros(1000, dtype=torch.uint8)


class HangingItems(DyingItems):
    def __getitem__(self, index: int) -> int:
        if index == 2:
            time.sleep(1e6)
        return index


def test_item_that_cannot_be_handed_over_is_an_error_and_no_endless_wait() -> None:
    with pytest.raises(DataError) as caught:
        list(read(UnsendableItems(), batch_size=None, workers=2))
    for fact in ("No space left on device", "--shm-size", "workers: 0", "/dev/shm has"):
        assert fact in str(caught.value)
    assert "\n" not in str(caught.value)


class SmallItems(DyingItems):
    def __getitem__(self, index: int) -> Any:
        return torch.zeros(1000, dtype=torch.uint8)


def test_shared_memory_too_small_for_what_is_read_ahead_is_refused_with_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader, "shared_memory", lambda: (3000, 4000))
    assert len(list(read(SmallItems(), batch_size=None, workers=1))) == 6
    monkeypatch.setattr(loader, "shared_memory", lambda: (3000, 3900))
    with pytest.raises(DataError, match=r"4\.0 kB .*3\.0 kB free of 3\.9 kB"):
        list(read(SmallItems(), batch_size=None, workers=1))
    assert len(list(read(SmallItems(), batch_size=None, workers=0))) == 6


def test_silent_readers_end_the_run_and_name_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "SILENCE", 2.0)
    with pytest.raises(DataError, match=r"image2\.jpg.*workers: 0"):
        list(read(HangingItems(), batch_size=None, workers=1))


def test_run_whose_readers_fall_silent_or_that_is_signalled_then_saves_first(
    tiny: Any, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_train(tiny.config, workers=1)
    stopped = signalled_midway(signal.SIGSTOP, readers)
    for action, error, limit in (
        (stopped, DataError, "SILENCE"),
        (lambda: (stopped(), os.kill(os.getpid(), signal.SIGTERM)), Stopped, "GRACE"),
    ):
        with monkeypatch.context() as patch:
            # Behind the last step of an epoch, as those before may have been read already.
            patch.setattr(loader, limit, 2.0)
            after_steps(patch, 1, action)
            with pytest.raises(error):
                fit(tiny, tmp_path, config)
        content = checkpoint.load(work_of(tiny, tmp_path).last)
        assert len(content["losses"]) + len(content["history"]) > 0
    assert_same(fit(tiny, tmp_path), undisturbed)


def signalled_midway(number: int, pids: Callable[[], list[int]]) -> Callable[[], None]:
    """Signal processes from another one, as a queue or the kernel does, and compute on."""

    def act() -> None:
        subprocess.run(["/bin/kill", f"-{number}", *map(str, pids())], check=True)
        time.sleep(0.5)

    return act


def readers() -> list[int]:
    return [process.pid for process in multiprocessing.active_children() if process.pid]


def test_queue_that_signals_readers_too_gets_a_saved_run(
    tiny: Any, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_train(tiny.config, workers=1)
    with monkeypatch.context() as patch:
        everyone = signalled_midway(signal.SIGTERM, lambda: [os.getpid(), *readers()])
        after_steps(patch, 2, everyone)
        with pytest.raises(Stopped, match="after 3 of its steps"):
            fit(tiny, tmp_path, config)
    assert_same(fit(tiny, tmp_path), undisturbed)


def test_lock_that_a_killed_reader_held_holds_up_nobody() -> None:
    before = set(map(id, iterators()))
    batches = read(SmallItems(), batch_size=None, workers=1)
    next(batches)
    (iterator,) = (found for found in iterators() if id(found) not in before)
    with iterator._workers_done_event._cond:  # as a reader that is killed looking at it
        batches.close()
        ending = threading.Thread(target=iterator._shutdown_workers, daemon=True)
        ending.start()  # what collecting the iterator does
        ending.join(10)
    assert not ending.is_alive()


def iterators() -> list[Any]:
    """Return PyTorch's iterators over processes that exist."""
    kind = dataloader._MultiProcessingDataLoaderIter
    return [found for found in gc.get_objects() if type(found) is kind]


def test_reader_that_dies_while_a_step_is_computed_is_told_by_its_image(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_steps(monkeypatch, 1, signalled_midway(signal.SIGKILL, readers))
    with pytest.raises(DataError, match=r"\.jpg: the process that was reading it died"):
        fit(tiny, tmp_path, with_train(tiny.config, workers=1))


def test_state_of_a_gpu_without_scaled_loss_is_taken_by_one_with(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_off(tiny, tmp_path, monkeypatch, steps=3)
    model = build_model(tiny.config.model, tiny.config.tower, weights=None)
    run = step.start(model, tiny.config.train, CPU)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    work = work_of(tiny, tmp_path)
    state.resume(run, work.last, work)
    assert run.scaler.get_scale() == 4.0
    assert len(run.losses) == 2


def test_too_little_memory_for_evaluating_says_what_to_lower(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("mmnet.evaluate.predict._masks", full)
    with pytest.raises(TrainingError, match=r"train\.val_batch_size"):
        fit(tiny, tmp_path)


def test_missing_image_in_evaluation_is_named_and_its_readers_end(
    tiny: Any, tmp_path: Path
) -> None:
    items = evaluation_items(tiny.config, tiny.table, tiny.images, splits=["val"])
    image = items.paths(0)[0]
    content = image.read_bytes()
    image.unlink()
    before = readers()
    try:
        with pytest.raises(DataError, match=rf"{image}: image not found") as caught:
            fit(tiny, tmp_path, with_train(tiny.config, workers=2))
        # They leave SIGTERM alone: multiprocessing would wait for them for ever.
        assert caught
        assert readers() == before
    finally:
        image.write_bytes(content)


def test_pieces_that_a_killed_run_was_writing_are_cleared_away(tiny: Any, tmp_path: Path) -> None:
    work, run = work_of(tiny, tmp_path), run_in(tmp_path, tiny.config)
    pieces = [work.folder / ".last.pt.1.tmp", run.folder / ".checkpoint.pt.2.tmp"]
    others = run.folder / ".predictions.png.3.tmp"
    for piece in (*pieces, others):
        piece.parent.mkdir(parents=True, exist_ok=True)
        piece.write_bytes(b"half")
    fit(tiny, tmp_path)
    assert not any(piece.exists() for piece in pieces)
    assert others.exists()  # another command's


def test_unreadable_image_in_training_is_named(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = training_items(tiny.config, tiny.table, tiny.images)
    image = items.paths(5)[0]
    content = image.read_bytes()
    image.write_bytes(content[:100])
    try:
        with pytest.raises(DataError, match=rf"{image}: image damaged"):
            fit(tiny, tmp_path, with_train(tiny.config, workers=1))
    finally:
        image.write_bytes(content)
