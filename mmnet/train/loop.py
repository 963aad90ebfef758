"""Training: one epoch, and a run of them that ends the same however often it is interrupted."""

import contextlib
import itertools
import math
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch.utils.data import Subset

from mmnet.config.schema import Config
from mmnet.data.dataset import (
    EvaluationItems,
    ImageBatch,
    TrainItems,
    evaluation_items,
    training_items,
)
from mmnet.data.loader import read
from mmnet.data.tokenizer import say_cut
from mmnet.evaluate.metrics import score
from mmnet.evaluate.predict import predict_together
from mmnet.model.build import build_model
from mmnet.runtime.distributed import joined
from mmnet.runtime.errors import DataError, Stopped, TrainingError
from mmnet.runtime.files import locked
from mmnet.runtime.progress import say, track
from mmnet.runtime.signals import Interruption, listening
from mmnet.train.recipe import polynomial_decay
from mmnet.train.run_state import (
    Run,
    finish,
    identity_of,
    is_finished,
    publish,
    resumable,
    resume,
    save,
    save_best,
)
from mmnet.train.step import Stepper, start

T = TypeVar("T")


def fit(
    config: Config,
    *,
    table: Path,
    images: Path,
    manifest: Path,
    weights: Path | None,
    folder: Path,
    device: torch.device,
) -> None:
    """Train one experiment and publish `checkpoint.pt` (best val mIoU) and `metrics.jsonl`.

    Each epoch ends with `work/last.pt`, and so do every `save_minutes` within one; a run that
    finds one of its own goes on from it, on as many processes as there are now, and ends with the
    bytes it would have ended with. One that finds itself finished publishes again: a workflow that
    was killed, or that removed the outputs before it failed, costs no training.

    Raises:
        TrainingError: the loss is not finite, or the memory does not suffice.
        DataError: the data do not fit the config.
        Stopped: SIGTERM or SIGUSR1 came; the run is saved.
    """
    work = folder / "work"
    with joined(device) as world, locked(folder) if world.is_first else contextlib.nullcontext():
        items = training_items(config, table, images)
        val = evaluation_items(config, table, images, splits=["val"])
        _check_fits(config, items, val)
        identity = identity_of(config, table=table, manifest=manifest, weights=weights)
        if world.is_first:
            for left in (*folder.glob(".*.tmp"), *work.glob(".*.tmp")):
                left.unlink()  # of a run killed while it wrote
        # The first process looks, once the lock is its own: the others see what it saw.
        if world.broadcast(world.is_first and is_finished(work, identity)):
            say(f"{folder}: this very run is finished; published again")
            if world.is_first:
                publish(work, folder)
            return
        last = world.broadcast(resumable(work, identity) if world.is_first else None)
        torch.manual_seed(config.seed)
        model = build_model(config.model, config.tower, weights=weights).to(device)
        run = start(model, config.train, device)
        if last is not None:
            resume(run, last)
        if world.is_first:
            # Of another config: best.pt will change.
            (work / "finished.json").unlink(missing_ok=True)

        def keep() -> None:
            if world.is_first:
                save(run, work, identity)

        def keep_best() -> None:
            if world.is_first and run.is_at_best:
                save_best(run, work, identity)

        keep_best()  # killed between the two, it would be of another epoch

        with listening() as stop, Stepper(run, config, world, device, stop) as stepper:

            def watched(batches: Iterable[ImageBatch], count: int) -> Iterable[ImageBatch]:
                # Of several processes, none may leave while others wait for it.
                return stop.watch(batches) if world.size == 1 else batches

            try:
                while run.epoch < config.train.epochs:
                    train_one_epoch(run, items, config, stepper, keep)
                    # Without synchronised BatchNorm they differ; the first process's are saved.
                    world.share(run.model.buffers())
                    rows = predict_together(run.model, val, config, device=device, shown=watched)
                    if stepper.is_anyone_asked():
                        raise Interruption
                    _record(run, score(rows), config, len(items))
                    keep()
                    keep_best()
            except Interruption:
                keep()
                world.broadcast(None)  # torchrun would end the first one's saving with the others
                number = stop.signal or signal.SIGTERM
                raise Stopped(
                    f"{config.experiment}: stopped by {signal.Signals(number).name} in epoch "
                    f"{run.epoch + 1}, after {len(run.losses)} of its steps, and saved. The same "
                    "command goes on.",
                    number,
                ) from None
        if world.is_first:
            finish(work, identity)
            publish(work, folder)


def train_one_epoch(
    run: Run, items: TrainItems, config: Config, stepper: Stepper, keep: Callable[[], None]
) -> None:
    """Take the steps of an epoch that are yet to be taken, one per batch.

    Raises:
        TrainingError: a batch's loss is not finite; its step and sentences are named.
        Interruption: a process was asked to stop.
    """
    run.model.train()
    items.set_epoch(run.epoch)
    size = config.train.batch_size
    steps = len(items) // size
    total_steps = steps * config.train.epochs
    done = len(run.losses)
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
            name=f"{config.experiment} epoch {run.epoch + 1}/{config.train.epochs}",
            total=total_steps * size,
            done=(steps * run.epoch + done) * size,
            unit="items",
            size=lambda parts: size,
            state=lambda: f"loss {run.losses[-1]:.4f} lr {lr:.2e}",
        )
        for number, batch in enumerate(shown, start=done):
            step = steps * run.epoch + number
            lr = config.train.lr * polynomial_decay(step, total_steps, config.train.lr_power)
            loss = stepper.step(batch, step=step, lr=lr)
            if not math.isfinite(loss):
                sentences = [
                    str(items.records[i].sent_id)
                    for i in items.order[number * size : (number + 1) * size]
                ]
                raise TrainingError(
                    f"{config.experiment}: the loss is {loss} at step {step} (epoch "
                    f"{run.epoch + 1}, batch {number + 1}; sentences {', '.join(sentences)}). "
                    "Lower train.lr, or look at these sentences' images and masks."
                )
            if stepper.is_asked_to_stop:
                raise Interruption
            if number + 1 < steps and stepper.must_save():
                keep()


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


def _record(run: Run, val: dict[str, float], config: Config, num_items: int) -> None:
    """Add the epoch's line to the history."""
    steps = num_items // config.train.batch_size
    loss = sum(run.losses) / len(run.losses)
    line = {
        "epoch": run.epoch + 1,
        "step": steps * (run.epoch + 1),
        "lr": run.optimizer.param_groups[0]["lr"],
        "loss": loss,
        "val": val,
    }
    run.history, run.losses = [*run.history, line], []
    say(
        f"{config.experiment} epoch {run.epoch}/{config.train.epochs}: loss {loss:.4f}, "
        f"val mIoU {100 * val['mIoU']:.2f}, oIoU {100 * val['oIoU']:.2f}, "
        f"Pr@0.5 {100 * val['Pr@0.5']:.2f}{' (best)' if run.is_at_best else ''}"
    )
