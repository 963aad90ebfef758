"""What a training changes as it goes, kept so that it ends the same wherever it was interrupted.

In a run's `work/`: `last.pt`, the whole state, and `previous.pt`, the one before; `best.pt`, the
model of the best epoch; `metrics.jsonl`; and, once finished, `finished.json`.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mmnet.config.schema import Config
from mmnet.model import checkpoint
from mmnet.model.mmnet import MMNet
from mmnet.runtime.errors import CheckpointError
from mmnet.runtime.files import atomic_path, atomic_write, checksum
from mmnet.runtime.fingerprint import code_version
from mmnet.runtime.progress import say


@dataclass
class Run:
    """What changes while training, and what an interrupted run goes on from.

    Order, sentences and random numbers are functions of seed, epoch and step (and, for dropout,
    of the process): the position is all that is kept of them. So is the schedule of the step.
    """

    model: MMNet
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    history: list[dict[str, Any]] = field(default_factory=list)
    """A line of metrics.jsonl for each finished epoch."""
    losses: list[float] = field(default_factory=list)
    """Of the steps that this epoch has taken."""

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return len(self.history)

    @property
    def is_at_best(self) -> bool:
        """Whether the model is that of the best epoch."""
        return not self.losses and 0 < best_epoch(self.history) == self.epoch


def best_epoch(history: list[dict[str, Any]]) -> int:
    """Return the epoch of the best val mIoU, the first of equals; 0 before the first."""
    return max(history, key=lambda line: line["val"]["mIoU"], default={"epoch": 0})["epoch"]


def identity_of(
    config: Config, *, table: Path, manifest: Path, weights: Path | None
) -> dict[str, Any]:
    """Return what decides whether two runs are the same: values, data, weights and code."""
    return {
        "config": config.identity(),
        "table": checksum(table),
        "images": checksum(manifest),
        "weights": checksum(weights) if weights else None,
        "code": code_version("mmnet.train.loop"),
    }


def save_best(run: Run, work: Path, identity: dict[str, Any]) -> None:
    content = {"model": run.model.state_dict(), **identity, "epoch": run.epoch}
    checkpoint.save(work / "best.pt", content)


def save(run: Run, work: Path, identity: dict[str, Any]) -> None:
    """Write what a later process goes on from; the one before is kept."""
    with atomic_write(work / "metrics.jsonl") as file:
        file.writelines(_lines(run.history))
    content = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "history": run.history,
        "losses": run.losses,
        **identity,
    }
    checkpoint.save(work / "last.pt", content, previous=work / "previous.pt")


def resumable(work: Path, identity: dict[str, Any]) -> Path | None:
    """Return the latest state of this very run that is whole, or None."""
    for path in (work / "last.pt", work / "previous.pt"):
        if not path.exists():
            continue
        try:
            content = checkpoint.load(path)
        except CheckpointError as error:
            say(f"{error} Going back to the one before.")
            continue
        changed = [key for key, value in identity.items() if content.get(key) != value]
        if changed:
            say(f"{path}: is of another {' and '.join(changed)}: starting afresh")
            return None
        best, epochs = best_epoch(content["history"]), len(content["history"])
        has_best = best == epochs and not content["losses"]
        if not has_best and _epoch_saved(work / "best.pt", identity) < best:
            say(f"{work}/best.pt: is not that of epoch {best}, the best so far: starting afresh")
            return None
        return path
    if any((work / name).exists() for name in ("last.pt", "previous.pt")):
        say(f"{work}: no whole checkpoint. Starting afresh.")
    return None


def resume(run: Run, path: Path) -> None:
    content = checkpoint.load(path)
    run.model.load_state_dict(content["model"])
    run.optimizer.load_state_dict(content["optimizer"])
    if content["scaler"] and run.scaler.is_enabled():
        # From a GPU with bf16 to one without, or back, the scale begins anew.
        run.scaler.load_state_dict(content["scaler"])
    run.history, run.losses = content["history"], content["losses"]
    steps = f" and {len(run.losses)} steps" if run.losses else ""
    say(f"going on after epoch {run.epoch}{steps}, from {path}")


def is_finished(work: Path, identity: dict[str, Any]) -> bool:
    try:
        is_same = json.loads((work / "finished.json").read_text()) == identity
        history = [*map(json.loads, (work / "metrics.jsonl").read_text().splitlines())]
    except (FileNotFoundError, ValueError):
        return False
    return is_same and _epoch_saved(work / "best.pt", identity) == best_epoch(history) > 0


def finish(work: Path, identity: dict[str, Any]) -> None:
    """Leave what publishing needs: best.pt, metrics.jsonl, and whose they are."""
    with atomic_write(work / "finished.json") as file:
        json.dump(identity, file)
    for name in ("last.pt", "previous.pt"):
        (work / name).unlink(missing_ok=True)


def publish(work: Path, folder: Path) -> None:
    for kept, published in (("best.pt", "checkpoint.pt"), ("metrics.jsonl", "metrics.jsonl")):
        with atomic_path(folder / published) as path:
            path.unlink()
            try:
                path.hardlink_to(work / kept)  # no second copy on the disk
            except OSError:
                shutil.copyfile(work / kept, path)
            path.touch()  # as new as what it was made from, however old the run is


def _epoch_saved(best: Path, identity: dict[str, Any]) -> int:
    """Return the epoch of best.pt's model; 0 where it is not whole, or another run's."""
    try:
        content = checkpoint.load(best)
    except CheckpointError:
        return 0
    return content["epoch"] if identity.items() <= content.items() else 0


def _lines(history: list[dict[str, Any]]) -> Iterator[str]:
    return (json.dumps(line) + "\n" for line in history)
