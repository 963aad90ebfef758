"""What a training changes as it goes, kept so that it ends the same wherever it was interrupted."""

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mmnet.config.identity import Identity, differences
from mmnet.config.paths import RunPaths, WorkPaths
from mmnet.model import checkpoint
from mmnet.model.mmnet import MMNet
from mmnet.runtime.errors import CheckpointError
from mmnet.runtime.files import atomic_path, atomic_write, read_json, write_json
from mmnet.runtime.progress import readable, say


@dataclass
class RunState:
    """What changes while training, and what an interrupted run resumes from.

    Order, sentences and random numbers are functions of seed, epoch and step (and, for dropout,
    of the process): of them the position is all that is kept.
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


class Saver:
    """Writes a training's state into its work folder. Of several processes, the first saves."""

    def __init__(
        self, state: RunState, work: WorkPaths, identity: Identity | None, *, epochs: int
    ) -> None:
        self.state, self.work, self.identity, self.epochs = state, work, identity, epochs
        spent = read_json(work.progress).get("seconds", 0.0) if state.history or state.losses else 0
        self.start = time.monotonic() - spent

    def save(self) -> None:
        """Write what a later process resumes from; the state before is kept."""
        if self.identity is None:
            return
        state = self.state
        with atomic_write(self.work.metrics) as file:
            file.writelines(json.dumps(line) + "\n" for line in state.history)
        content = {
            "model": state.model.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "scaler": state.scaler.state_dict(),
            "history": state.history,
            "losses": state.losses,
            "identity": self.identity.as_dict(),
        }
        checkpoint.save(self.work.last, content, previous=self.work.previous)
        progress = {
            "epochs": self.epochs,
            "epoch": state.epoch,
            "steps": len(state.losses),
            "seconds": time.monotonic() - self.start,
        }
        write_json(self.work.progress, progress)

    def save_best(self) -> None:
        """Write the model, where it is that of the best epoch so far."""
        if self.identity is None or not self.state.is_at_best:
            return
        content = {
            "model": self.state.model.state_dict(),
            "identity": self.identity.as_dict(),
            "epoch": self.state.epoch,
        }
        checkpoint.save(self.work.best, content)

    def finish(self, run: RunPaths) -> None:
        """Leave what publishing needs, and publish."""
        if self.identity is None:
            return
        epochs = {"epochs": self.state.epoch, "best_epoch": best_epoch(self.state.history)}
        write_json(self.work.finished, epochs)
        publish(self.work, run, self.identity)


def begin(run: RunPaths, work: WorkPaths, identity: Identity) -> None:
    """Note which training works in a folder; say what other unfinished work of the run there is."""
    about = {"experiment": run.experiment, "seed": run.seed, "identity": identity.as_dict()}
    write_json(work.about, about)
    work.finished.unlink(missing_ok=True)  # of one whose best model is lost
    for other in unfinished_work(run, work.folder.parent):
        if other.folder != work.folder:
            size = sum(path.stat().st_size for path in other.folder.glob("*.pt"))
            known = Identity.from_dict(read_json(other.about).get("identity"))
            why = differences(known, identity) if known else []
            say(
                f"{other.folder}: unfinished training of {run.name}, {readable(size)} "
                f"({'; '.join(why[:3]) or 'unknown values'}). It resumes with its own values and "
                "code; delete it if it is not needed."
            )


def unfinished_work(run: RunPaths, folder: Path) -> list[WorkPaths]:
    """Return the work folders of a run's trainings that are not finished."""
    found = []
    for path in sorted(folder.glob("*/run.json")):
        about, work = read_json(path), WorkPaths(path.parent)
        is_same = (about.get("experiment"), about.get("seed")) == (run.experiment, run.seed)
        if is_same and not work.finished.exists():
            found.append(work)
    return found


def resumable(work: WorkPaths, identity: Identity) -> Path | None:
    """Return the latest whole state of this very training, or None."""
    for path in (work.last, work.previous):
        if not path.exists():
            continue
        try:
            content = checkpoint.load(path)
        except CheckpointError as error:
            say(f"{path}: damaged; looking for the state before it ({error})")
            continue
        if content["identity"] != identity.as_dict():
            say(f"{path}: belongs to another training; starting from scratch")
            return None
        best, epochs = best_epoch(content["history"]), len(content["history"])
        has_best = best == epochs and not content["losses"]
        if not has_best and _epoch_saved(work.best, identity) < best:
            say(f"{work.best}: is not the model of epoch {best}, the best; starting from scratch")
            return None
        return path
    if work.last.exists() or work.previous.exists():
        say(f"{work.folder}: no whole checkpoint; starting from scratch")
    return None


def resume(state: RunState, path: Path, work: WorkPaths) -> None:
    """Take over a saved state; a newer one that is damaged is removed, or it would replace it."""
    content = checkpoint.load(path)
    if path == work.previous:
        work.last.unlink(missing_ok=True)
    state.model.load_state_dict(content["model"])
    state.optimizer.load_state_dict(content["optimizer"])
    if content["scaler"] and state.scaler.is_enabled():
        # From a GPU with bf16 to one without, or back, the scale starts from its default.
        state.scaler.load_state_dict(content["scaler"])
    state.history, state.losses = content["history"], content["losses"]
    say(
        f"resuming after epoch {state.epoch}"
        f"{f' and {len(state.losses)} steps' if state.losses else ''}, from {path}"
    )


def is_finished(work: WorkPaths, identity: Identity) -> bool:
    """Whether this very training has ended, with its best model and its metrics whole."""
    if not work.finished.is_file():
        return False
    end = read_json(work.finished)
    has_metrics = end.get("epochs") == _lines(work.metrics)
    has_best = 0 < end.get("best_epoch", 0) == _epoch_saved(work.best, identity)
    if not (has_metrics and has_best):
        damaged = work.best if has_metrics else work.metrics if end else work.finished
        say(f"{damaged}: damaged or of another training; starting from scratch")
    return has_metrics and has_best


def publish(work: WorkPaths, run: RunPaths, identity: Identity) -> None:
    """Put a finished training's results where tables look for them."""
    for kept, published in ((work.best, run.checkpoint), (work.metrics, run.metrics)):
        for left in published.parent.glob(f".{published.name}.*.tmp"):
            left.unlink()  # of a process killed while it published
        with atomic_path(published) as path:
            path.unlink()
            try:
                path.hardlink_to(kept)  # no second copy on the disk
            except OSError:
                shutil.copyfile(kept, path)
            path.touch()  # as new as what it was made from, however old the run is
    names = {"experiment": run.experiment, "seed": run.seed}  # they may be new
    about = {**read_json(work.about), **names, "identity": identity.as_dict()}
    for path in (work.about, run.identity):
        write_json(path, about)
    for path in (work.last, work.previous):
        path.unlink(missing_ok=True)


def _lines(metrics: Path) -> int:
    try:
        return len(metrics.read_text(encoding="utf-8").splitlines())
    except OSError:
        return 0


def _epoch_saved(best: Path, identity: Identity) -> int:
    """Return the epoch of the best model; 0 where it is not whole, or of another training."""
    try:
        content = checkpoint.load(best)
    except CheckpointError:
        return 0
    return int(content["epoch"]) if content["identity"] == identity.as_dict() else 0
