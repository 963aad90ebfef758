"""Training: one epoch, and a run of them that ends the same however often it is interrupted."""

import contextlib
import itertools
import math
import signal
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import pandas as pd
import torch
from torch.utils.data import Subset

from mmnet.config.identity import Identity, RunInputs
from mmnet.config.paths import RunPaths, WorkPaths
from mmnet.config.schema import Config
from mmnet.data.dataset import EvaluationItems, TrainItems, evaluation_items, training_items
from mmnet.data.loader import read
from mmnet.data.tokenizer import say_cut
from mmnet.evaluate.metrics import summary
from mmnet.evaluate.predict import gathered, predict, share_of
from mmnet.model.build import build_model
from mmnet.runtime.distributed import World, joined
from mmnet.runtime.errors import DataError, Stopped, TrainingError
from mmnet.runtime.files import locked
from mmnet.runtime.progress import say, track
from mmnet.runtime.signals import Interruption, Stop, listening
from mmnet.train.recipe import polynomial_decay, training_mode
from mmnet.train.run_state import (
    RunState,
    Saver,
    begin,
    is_finished,
    publish,
    resumable,
    resume,
)
from mmnet.train.step import Stepper, start

T = TypeVar("T")


def fit(
    config: Config,
    identity: Identity | None,
    *,
    inputs: RunInputs,
    run: RunPaths,
    device: torch.device,
) -> None:
    """Train one experiment and publish its checkpoint (best val mIoU) and metrics.

    The training works in a folder named after its `identity`, which the first of several processes
    gives. Each epoch ends with a saved state, and so do every `save_minutes` within one; a training
    that finds a state of its own resumes from it, on as many processes as there are now, and ends
    with the bytes it would have ended with. One that finds itself finished is published again.

    Raises:
        TrainingError: the loss is not finite, or the memory does not suffice.
        DataError: the data do not fit the config.
        Stopped: SIGTERM or SIGUSR1 came; the state is saved.
    """
    with joined(device) as world, _work_folder(run, identity, world) as work:
        items = training_items(config, inputs.table, inputs.images)
        val = evaluation_items(
            config,
            inputs.table,
            inputs.images,
            splits=["val"],
            batch_size=config.train.val_batch_size,
        )
        _check_fits(config, items, val)
        # The first process looks once the lock is its own; the others see what it saw.
        if world.broadcast(identity is not None and is_finished(work, identity)):
            say(f"{work.folder}: this training is finished; publishing it again")
            if identity is not None:
                publish(work, run, identity)
            return
        if identity is not None:
            begin(run, work, identity)
        last = world.broadcast(resumable(work, identity) if identity is not None else None)
        torch.manual_seed(config.seed)
        model = build_model(config.model, config.tower, weights=inputs.weights).to(device)
        state = start(model, config.train, device)
        if last is not None:
            resume(state, last, work)
        saver = Saver(state, work, identity, epochs=config.train.epochs)
        saver.save_best()  # it may have been killed after saving its state
        with listening() as stop, Stepper(state, config, world, device, stop) as stepper:
            try:
                while state.epoch < config.train.epochs:
                    train_one_epoch(state, items, config, stepper, saver)
                    # Without SyncBatchNorm they differ; the first process's are saved.
                    world.share(model.buffers())
                    rows = validate(state, val, config, world, stop, device)
                    if stepper.is_anyone_asked():
                        raise Interruption
                    record_epoch(state, summary(rows), config, len(items))
                    saver.save()
                    saver.save_best()
            except Interruption:
                saver.save()
                world.broadcast(None)  # torchrun would end the first one's saving with the others
                raise _stopped(state, config, stop) from None
        saver.finish(run)


def train_one_epoch(
    state: RunState, items: TrainItems, config: Config, stepper: Stepper, saver: Saver
) -> None:
    """Take the steps of an epoch that are yet to be taken, one per batch.

    Raises:
        TrainingError: a batch's loss is not finite; its step and sentences are named.
        Interruption: a process was asked to stop.
    """
    training_mode(state.model, config.train)
    items.set_epoch(state.epoch)
    size = config.train.batch_size
    steps = len(items) // size
    total_steps = steps * config.train.epochs
    done = len(state.losses)
    chosen = [index for number in range(done, steps) for index in stepper.items(number)]
    parts = read(
        Subset(items, chosen),
        batch_size=stepper.part_size,
        workers=config.train.workers,
        pinned=stepper.device.type == "cuda",
    )
    with contextlib.closing(parts):
        lr = 0.0
        shown = track(
            _batched(parts, config.train.accumulate),
            name=f"{config.experiment} epoch {state.epoch + 1}/{config.train.epochs}",
            total=total_steps * size,
            done=(steps * state.epoch + done) * size,
            unit="items",
            size=lambda parts: size,
            state=lambda: f"loss {state.losses[-1]:.4f} lr {lr:.2e}",
        )
        for number, batch in enumerate(shown, start=done):
            step = steps * state.epoch + number
            lr = config.train.lr * polynomial_decay(step, total_steps, config.train.lr_power)
            loss = stepper.step(batch, step=step, lr=lr)
            if not math.isfinite(loss):
                raise _not_finite(loss, step, number, state, items, config)
            if stepper.is_asked_to_stop:
                raise Interruption
            if number + 1 < steps and stepper.must_save():
                saver.save()


def validate(
    state: RunState,
    val: EvaluationItems,
    config: Config,
    world: World,
    stop: Stop,
    device: torch.device,
) -> pd.DataFrame:
    """Return a row per sentence of val, the batches shared out among the processes.

    Raises:
        Interruption: a signal came, and no other process would wait for this one.
    """
    with contextlib.closing(share_of(val, config, device)) as batches:
        rows = predict(
            state.model,
            stop.watch(batches) if world.size == 1 else batches,
            threshold=config.train.val_threshold,
            device=device,
        )
    return gathered(rows)


def record_epoch(state: RunState, val: dict[str, Any], config: Config, num_items: int) -> None:
    """Add the epoch's line to the history."""
    steps = num_items // config.train.batch_size
    loss = sum(state.losses) / len(state.losses)
    line = {
        "epoch": state.epoch + 1,
        "step": steps * (state.epoch + 1),
        "lr": state.optimizer.param_groups[0]["lr"],
        "loss": loss,
        "val": val,
    }
    state.history, state.losses = [*state.history, line], []
    say(
        f"{config.experiment} epoch {state.epoch}/{config.train.epochs}: loss {loss:.4f}, "
        f"val mIoU {100 * val['mIoU']:.2f}, oIoU {100 * val['oIoU']:.2f}, "
        f"Pr@0.5 {100 * val['Pr@0.5']:.2f}{' (best)' if state.is_at_best else ''}"
    )


@contextlib.contextmanager
def _work_folder(run: RunPaths, identity: Identity | None, world: World) -> Iterator[WorkPaths]:
    """Hold the work folder, once no other training does; remove what a killed one left."""
    own = world.broadcast(identity)
    assert own is not None  # the first process's
    work = run.work(own)
    if not world.is_first:
        yield work
        return
    with locked(work.folder, waiting="another training of the same identity"):
        for name in ("*.pt", "*.json", "*.jsonl"):
            for left in work.folder.glob(f".{name}.*.tmp"):
                left.unlink()
        yield work


def _batched(parts: Iterable[T], count: int) -> Iterator[tuple[T, ...]]:
    iterator = iter(parts)
    while batch := tuple(itertools.islice(iterator, count)):
        yield batch


def _check_fits(config: Config, items: TrainItems, val: EvaluationItems) -> None:
    if len(items) < config.train.batch_size:
        raise DataError(
            f"{config.dataset_name}: train has {len(items)} refs, fewer than one batch of "
            f"{config.train.batch_size}. Lower train.batch_size."
        )
    say_cut(f"{config.dataset_name} train", items.tokens, items.num_cut)
    say_cut(f"{config.dataset_name} val", val.tokens, val.num_cut)


def _not_finite(
    loss: float, step: int, number: int, state: RunState, items: TrainItems, config: Config
) -> TrainingError:
    size = config.train.batch_size
    drawn = items.order[number * size : (number + 1) * size]
    sentences = ", ".join(str(items.records[i].sent_id) for i in drawn)
    return TrainingError(
        f"{config.experiment}: the loss is {loss} at step {step} (epoch {state.epoch + 1}, batch "
        f"{number + 1}; sentences {sentences}). Lower train.lr, or check the images and masks of "
        "these sentences."
    )


def _stopped(state: RunState, config: Config, stop: Stop) -> Stopped:
    number = stop.signal or signal.SIGTERM
    return Stopped(
        f"{config.experiment}: stopped by {signal.Signals(number).name} in epoch "
        f"{state.epoch + 1}, after {len(state.losses)} of its steps, and saved. The same command "
        "resumes it.",
        number,
    )
