"""What every run is doing: finished, training, interrupted, stale and why, or missing.

It reads small files and hashes inputs. Torch is imported only for times that no run has measured.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import mean
from typing import Any, NamedTuple

from tabulate import tabulate

from mmnet.config.code import code
from mmnet.config.identity import Identity, differences
from mmnet.config.paths import Paths, RunPaths, WorkPaths
from mmnet.config.schema import Config, Params
from mmnet.runtime.errors import ConfigError
from mmnet.runtime.files import checksum, is_locked, read_json
from mmnet.runtime.progress import duration, readable

SHOWN = 3
"""Differences that a line names; of more, the count."""


@dataclass
class Work:
    """A work folder: which training works in it, and how far it is."""

    paths: WorkPaths
    about: dict[str, Any]
    identity: Identity

    def __post_init__(self) -> None:
        paths, epochs = self.paths, self.identity.values["train"]["epochs"]
        self.run: tuple[Any, Any] = self.about.get("experiment"), self.about.get("seed")
        self.state = "training" if is_locked(paths.folder) else "interrupted"
        if paths.finished.is_file() and paths.best.is_file():
            self.state = "finished"
        self.has_saved = paths.last.is_file() or paths.previous.is_file()
        self.size = sum(path.stat().st_size for path in paths.folder.glob("*.pt"))
        self.epochs_done, self.pace = 0.0, None
        """Until its last saved state; measured seconds per epoch, None before the first's end."""
        progress = read_json(paths.progress)
        # Where these are damaged, it is as if nothing was measured: no result depends on them.
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, ArithmeticError):
            last = json.loads(paths.metrics.read_text(encoding="utf-8").splitlines()[-1])
            self.epochs_done = progress["epoch"] + progress["steps"] * last["epoch"] / last["step"]
            self.pace = progress["seconds"] / self.epochs_done
        self.position = f"epoch {min(int(self.epochs_done) + 1, epochs)}/{epochs}"


class Expected(NamedTuple):
    """What a run's identity is now, as far as its inputs exist."""

    config: Config
    missing: str
    """The inputs that do not exist."""
    code: dict[str, str]
    data: dict[str, str | None]

    @property
    def run(self) -> tuple[str, int]:
        return self.config.experiment, self.config.seed

    def beside(self, known: Identity) -> Identity:
        """Return it; inputs that do not exist are taken to be those of a `known` identity."""
        data = {**known.data, **self.data}
        return Identity(values=self.config.training_values(), data=data, code=self.code)


class RunStatus(NamedTuple):
    expected: Expected
    state: str
    detail: str
    work: Work | None
    """Its own work folder."""
    pace: float | None
    """Measured seconds per epoch: its own, else those of other runs of its kind."""

    @property
    def epochs_left(self) -> float:
        """Of this training; a stale or missing run has all of them left."""
        epochs = self.expected.config.train.epochs
        done = {"finished": epochs, "stale": 0, "missing": 0}
        return epochs - done.get(self.state, self.work.epochs_done if self.work else 0)

    @property
    def seconds_left(self) -> float:
        return self.epochs_left * (self.pace or 0.0)


def status(params: Params, paths: Paths, tables: Sequence[str], *, tflops: float) -> str:
    """Return a line for each run of the tables, or of all; other work folders; the time left."""
    works = works_of(paths)
    runs = [_status(run, paths, works) for run in expected_runs(params, paths, tables)]
    rows = [("experiment", "seed", "state", "")]
    for run in runs:
        experiment, seed = run.expected.run
        is_timed = run.state == "training" and run.pace
        left = f", {duration(run.seconds_left)} left" if is_timed else ""
        rows.append((experiment, str(seed), run.state, run.detail + left))
    counts = Counter(run.state for run in runs)
    lines = [
        f"Profile {params.profile} ({params.active.label}), runs: "
        + ", ".join(f"{count} {state}" for state, count in counts.items()),
        "",
        tabulate(rows, tablefmt="plain", disable_numparse=True),
        *_others(runs, works, of_all=not tables),
        "",
        _time_left(runs, params, paths, tflops),
    ]
    return "\n".join(lines)


def expected_runs(params: Params, paths: Paths, tables: Sequence[str]) -> list[Expected]:
    """Return what the runs of the tables, or all, should be. Each input is hashed once."""
    checksum_once = cache(checksum)
    runs = []
    for name, experiment in params.experiments.items():
        if tables and not {*tables} & {*experiment.tables}:
            continue
        for config in (params.resolve(name, seed) for seed in params.seeds):
            inputs = paths.inputs(config)
            data, missing = inputs.checksums(checksum_once), ", ".join(map(str, inputs.missing))
            runs.append(Expected(config, missing, code("train", config), data))
    return runs


def _status(run: Expected, paths: Paths, works: Sequence[Work]) -> RunStatus:
    """Return what a run is doing, as its published files and the work folders say."""

    def kind(values: dict[str, Any]) -> tuple[Any, Any]:  # about equally long epochs
        return values["tower"]["architecture"], values["model"]["image_size"]

    own = next((w for w in works if run.beside(w.identity) == w.identity), None)
    own_kind = kind(run.config.training_values())
    alike = [w.pace for w in works if w.pace and kind(w.identity.values) == own_kind]
    pace = (own and own.pace) or (mean(alike) if alike else None)
    return RunStatus(run, *_state(run, paths.run(*run.run), own), own, pace)


def _state(run: Expected, files: RunPaths, work: Work | None) -> tuple[str, str]:
    """A run's state, and why it is so."""
    published = read_json(files.identity)
    known = Identity.from_dict(published.get("identity"))
    has_checkpoint = files.checkpoint.is_file()
    if known is not None and has_checkpoint and run.beside(known) == known:
        unsure = f"not compared, since not found: {run.missing}" if run.missing else ""
        return "finished", "; ".join(filter(None, (_accepted(published), unsure)))
    if work is not None and (work.state != "interrupted" or work.has_saved):
        if work.state == "finished":
            why = filter(None, ("not published: run mmnet train", _accepted(work.about)))
            return work.state, "; ".join(why)
        size = f", {readable(work.size)}" if work.state == "interrupted" else ""
        return work.state, work.position + size
    if has_checkpoint and known is not None:
        return "stale", shown(differences(known, run.beside(known)))
    if has_checkpoint:
        return "stale", f"{files.identity} does not say how it was trained"
    return "missing", f"needs {run.missing}" if run.missing else ""


def works_of(paths: Paths) -> list[Work]:
    """Return the profile's work folders, of trainings finished and not."""
    abouts = [(work, read_json(work.about)) for work in paths.works]
    read = [(work, about, Identity.from_dict(about.get("identity"))) for work, about in abouts]
    return [Work(work, about, identity) for work, about, identity in read if identity]


def shown(differences: Sequence[str]) -> str:
    """Return the first few differences, and how many more there are."""
    more = len(differences) - SHOWN
    return "; ".join([*differences[:SHOWN], *([f"and {more} more"] if more > 0 else [])])


def _accepted(about: dict[str, Any]) -> str:
    """What a run was accepted in spite of."""
    found = [one for accepted in about.get("accepted", []) for one in accepted["differences"]]
    return f"accepted: {shown(found)}" if found else ""


def _time_left(runs: Iterable[RunStatus], params: Params, paths: Paths, tflops: float) -> str:
    left = [run for run in runs if run.epochs_left > 0]
    if not left:
        return "Nothing is left to train."
    timed = [run.seconds_left for run in left if run.pace]
    untimed = [(run.expected.config, run.epochs_left) for run in left if not run.pace]
    seconds = sum(timed)
    sources = [f"{len(timed)} by measured times of this profile's runs"] if timed else []
    if untimed:
        from mmnet.pipeline.plan import flops_of, flops_per_second  # imports torch

        rate = flops_per_second(tflops)
        try:
            seconds += flops_of(untimed, params, paths) / rate
            sources.append(f"{len(untimed)} at {tflops:g} TFLOP/s, an assumed rate (--tflops)")
        except ConfigError as error:
            sources.append(f"{len(untimed)} not counted: {error}")
    return f"Left to train: {duration(seconds)}, one run after another ({'; '.join(sources)})"


def _others(runs: Iterable[RunStatus], works: Iterable[Work], *, of_all: bool) -> list[str]:
    """A line for each work folder that is not of a run's training as it is now."""
    expected = {run.expected.run: run.expected for run in runs}
    current = [run.work for run in runs]
    others = [w for w in works if w not in current and (of_all or w.run in expected)]
    if not others:
        return []
    rows = []
    for work in others:
        (experiment, seed), run = work.run, expected.get(work.run)
        state = work.state if work.state == "finished" else f"{work.state}, {work.position}"
        why = shown(differences(work.identity, run.beside(work.identity))) if run else "not a run"
        name = f"{experiment} seed {seed}"
        rows.append((str(work.paths.folder), name, state, readable(work.size), why))
    size = readable(sum(work.size for work in others))
    return [
        "",
        f"Work folders of other values, data or code ({size}), used again when these are restored. "
        "Delete what is not needed:",
        tabulate(rows, tablefmt="plain", disable_numparse=True),
    ]
