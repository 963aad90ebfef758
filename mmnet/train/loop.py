"""Training: one epoch, and a run of them that survives interruption unchanged."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmnet.code_version import code_version
from mmnet.config import Config
from mmnet.data.dataset import EvaluationItems, TrainItems, evaluation_items, read, training_items
from mmnet.data.tokenizer import say_cut
from mmnet.data.transforms import normalise
from mmnet.errors import CheckpointError, DataError, TrainingError
from mmnet.evaluate.metrics import score
from mmnet.evaluate.predict import predict
from mmnet.files import atomic_path, atomic_write, checksum, locked
from mmnet.model import checkpoint
from mmnet.model.build import build_model
from mmnet.model.mmnet import MMNet
from mmnet.progress import say, track
from mmnet.train.loss import mask_loss
from mmnet.train.schedule import polynomial_decay

CLIP_PARTS = ("backbone.visual.", "text_encoder.")
"""Pre-trained; everything else learns `head_lr_multiplier` times faster (reading 10)."""


@dataclass
class Run:
    """What changes while training, and what an interrupted run goes on from."""

    model: MMNet
    optimizer: torch.optim.Optimizer
    history: list[dict[str, Any]]
    """A line of metrics.jsonl for each finished epoch."""

    @property
    def epoch(self) -> int:
        return len(self.history)

    @property
    def best(self) -> float:
        return max((line["val"]["mIoU"] for line in self.history), default=-1.0)


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

    Each epoch ends with `work/last.pt`; a run that finds one of its own goes on from it, and ends
    with the bytes it would have ended with. One that finds itself finished publishes again: a
    workflow that was killed, or that removed the outputs before it failed, costs no training.

    Raises:
        TrainingError: the loss is not finite.
        DataError: the data do not fit the config.
    """
    work = folder / "work"
    with locked(folder):
        items = training_items(config, table, images)
        val = evaluation_items(config, table, images, splits=["val"])
        _check_fits(config, items, val)
        identity = {
            "config": config.identity(),
            "table": checksum(table),
            "images": checksum(manifest),
            "weights": checksum(weights) if weights else None,
            "code": code_version(__name__),
        }
        if _is_finished(work, identity):
            say(f"{folder}: this very run is finished; published again")
            _publish(work, folder)
            return
        torch.manual_seed(config.seed)
        run = _start(config, weights, device)
        _resume(run, work / "last.pt", identity)
        (work / "finished.json").unlink(missing_ok=True)  # of another config: best.pt will change
        while run.epoch < config.train.epochs:
            loss = train_one_epoch(run, items, config, device)
            rows = predict(
                run.model,
                read(val, batch_size=None, workers=config.train.workers),
                threshold=config.evaluate.threshold,
                device=device,
            )
            better = _record(run, loss, score(rows), config, len(items))
            _save(run, work, identity, better=better)
        _finish(work, identity)
        _publish(work, folder)


def train_one_epoch(run: Run, items: TrainItems, config: Config, device: torch.device) -> float:
    """Take one step per batch and return the epoch's mean loss.

    Raises:
        TrainingError: a batch's loss is not finite; its step and sentences are named.
    """
    run.model.train()
    items.set_epoch(run.epoch)
    steps = len(items) // config.train.batch_size
    total_steps = steps * config.train.epochs
    losses: list[float] = []
    lr = 0.0
    batches = read(items, batch_size=config.train.batch_size, workers=config.train.workers)
    shown = track(
        batches,
        name=f"{config.experiment} epoch {run.epoch + 1}/{config.train.epochs}",
        total=total_steps * config.train.batch_size,
        done=steps * run.epoch * config.train.batch_size,
        unit="items",
        size=lambda batch: len(batch.image),
        state=lambda: f"loss {losses[-1]:.4f} lr {lr:.2e}",
    )
    for number, batch in enumerate(shown):
        step = steps * run.epoch + number
        lr = config.train.lr * polynomial_decay(step, total_steps, config.train.lr_power)
        for group in run.optimizer.param_groups:
            group["lr"] = lr * group["multiplier"]
        logits = run.model(normalise(batch.image.to(device)), batch.tokens.to(device))
        loss = mask_loss(logits, batch.mask.to(device))
        losses.append(loss.item())
        if not loss.isfinite():
            size = config.train.batch_size
            sentences = [
                str(items.records[i].sent_id)
                for i in items.order[number * size : (number + 1) * size]
            ]
            raise TrainingError(
                f"{config.experiment}: the loss is {losses[-1]} at step {step} (epoch "
                f"{run.epoch + 1}, batch {number + 1}; sentences {', '.join(sentences)}). "
                "Lower train.lr, or look at these sentences' images and masks."
            )
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
    return sum(losses) / len(losses)


def _check_fits(config: Config, items: TrainItems, val: EvaluationItems) -> None:
    if len(items) < config.train.batch_size:
        raise DataError(
            f"{config.dataset_name}: train has {len(items)} refs, fewer than one batch of "
            f"{config.train.batch_size}. Lower train.batch_size."
        )
    say_cut(f"{config.dataset_name} train", items.tokens, items.num_cut)
    say_cut(f"{config.dataset_name} val", val.tokens, val.num_cut)


def _start(config: Config, weights: Path | None, device: torch.device) -> Run:
    model = build_model(config.model, config.tower, weights=weights).to(device)
    parts: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        parts[name.startswith(CLIP_PARTS)].append(parameter)
    optimizer = torch.optim.Adam(
        [
            {"params": parts[True], "multiplier": 1.0},
            {"params": parts[False], "multiplier": config.train.head_lr_multiplier},
        ],
        lr=config.train.lr,
        fused=True,
    )
    return Run(model, optimizer, [])


def _resume(run: Run, path: Path, identity: dict[str, Any]) -> None:
    """Bring an interrupted run back, if this is one of the same config and inputs."""
    if not path.exists():
        return
    try:
        last = checkpoint.load(path)
    except CheckpointError as error:
        say(f"{error} Starting afresh.")
        return
    changed = [key for key, value in identity.items() if last.get(key) != value]
    if changed:
        say(f"{path}: is of another {' and '.join(changed)}: starting afresh")
        return
    run.model.load_state_dict(last["model"])
    run.optimizer.load_state_dict(last["optimizer"])
    run.history = last["history"]
    torch.set_rng_state(last["rng"])
    if "cuda_rng" in last and torch.cuda.is_available():
        torch.cuda.set_rng_state(last["cuda_rng"])
    say(f"going on after epoch {run.epoch}, from {path}")


def _record(run: Run, loss: float, val: dict[str, float], config: Config, num_items: int) -> bool:
    """Add the epoch's line to the history; return whether it is the best so far."""
    better = val["mIoU"] > run.best
    steps = num_items // config.train.batch_size
    line = {
        "epoch": run.epoch + 1,
        "step": steps * (run.epoch + 1),
        "lr": run.optimizer.param_groups[0]["lr"],
        "loss": loss,
        "val": val,
    }
    run.history = [*run.history, line]
    say(
        f"{config.experiment} epoch {run.epoch}/{config.train.epochs}: loss {loss:.4f}, "
        f"val mIoU {100 * val['mIoU']:.2f}, oIoU {100 * val['oIoU']:.2f}, "
        f"Pr@0.5 {100 * val['Pr@0.5']:.2f}{' (best)' if better else ''}"
    )
    return better


def _save(run: Run, work: Path, identity: dict[str, Any], *, better: bool) -> None:
    model = run.model.state_dict()
    # best.pt first: killed between the two, the epoch is done again and both written again.
    if better:
        checkpoint.save(work / "best.pt", {"model": model, **identity, "epoch": run.epoch})
    rng = {"rng": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["cuda_rng"] = torch.cuda.get_rng_state()
    last = {"model": model, "optimizer": run.optimizer.state_dict(), "history": run.history}
    with atomic_write(work / "metrics.jsonl") as file:
        file.writelines(_lines(run.history))
    checkpoint.save(work / "last.pt", {**last, **rng, **identity})


def _is_finished(work: Path, identity: dict[str, Any]) -> bool:
    try:
        return bool(json.loads((work / "finished.json").read_text()) == identity)
    except (FileNotFoundError, ValueError):
        return False


def _finish(work: Path, identity: dict[str, Any]) -> None:
    """Leave what publishing needs: best.pt, metrics.jsonl, and whose they are."""
    with atomic_write(work / "finished.json") as file:
        json.dump(identity, file)
    (work / "last.pt").unlink()


def _publish(work: Path, folder: Path) -> None:
    for kept, published in (("best.pt", "checkpoint.pt"), ("metrics.jsonl", "metrics.jsonl")):
        with atomic_path(folder / published) as path:
            path.unlink()
            try:
                path.hardlink_to(work / kept)  # no second copy on the disk
            except OSError:
                shutil.copyfile(work / kept, path)
            path.touch()  # as new as what it was made from, however old the run is


def _lines(history: list[dict[str, Any]]) -> Iterator[str]:
    return (json.dumps(line) + "\n" for line in history)
