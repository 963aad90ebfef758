"""What every run is doing: finished, training, interrupted, stale and why, or missing.

It reads small files and hashes inputs. Torch is imported only for times that no run has measured.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import mean
from typing import Any, NamedTuple

from tabulate import tabulate

from mmnet.config.code import code
from mmnet.config.identity import Identity, RunInputs, differences
from mmnet.config.paths import Paths, WorkPaths
from mmnet.config.schema import Config, Params
from mmnet.runtime.errors import ConfigError
from mmnet.runtime.files import checksum, is_locked, read_json
from mmnet.runtime.progress import duration, readable

Kind = tuple[str, int]
"""Of runs that take about equally long per epoch: the tower's architecture and the image size."""

SHOWN = 3
"""Differences that a line names; of more, the count."""


@dataclass(frozen=True)
class Work:
    """A work folder, and which training works in it."""

    paths: WorkPaths
    about: dict[str, Any]
    identity: Identity

    @property
    def experiment_and_seed(self) -> tuple[Any, Any]:
        return self.about.get("experiment"), self.about.get("seed")

    @property
    def state(self) -> str:
        if self.paths.finished.is_file() and self.paths.best.is_file():
            return "finished"
        return "training" if is_locked(self.paths.folder) else "interrupted"

    @property
    def has_saved(self) -> bool:
        """Whether there is anything to resume from."""
        return self.paths.last.is_file() or self.paths.previous.is_file()

    @property
    def size(self) -> int:
        """Bytes of its checkpoints."""
        return sum(path.stat().st_size for path in self.paths.folder.glob("*.pt"))

    @cached_property
    def epochs_done(self) -> float:
        """Until its last saved state; without the steps of an unfinished first epoch."""
        progress = read_json(self.paths.progress)
        epoch, steps = progress.get("epoch", 0), progress.get("steps", 0)
        if not epoch or not self.paths.metrics.is_file():
            return float(epoch)
        last = json.loads(self.paths.metrics.read_text(encoding="utf-8").splitlines()[-1])
        return float(epoch + steps * last["epoch"] / last["step"])

    @property
    def pace(self) -> float | None:
        """Measured seconds per epoch; None before the end of the first."""
        seconds = read_json(self.paths.progress).get("seconds", 0.0)
        return seconds / self.epochs_done if self.epochs_done else None

    @property
    def position(self) -> str:
        epochs = self.identity.values["train"]["epochs"]
        return f"epoch {min(int(self.epochs_done) + 1, epochs)}/{epochs}"


@dataclass(frozen=True)
class Expected:
    """What a run's identity is now, as far as its inputs exist."""

    config: Config
    inputs: RunInputs
    code: dict[str, str]
    data: dict[str, str | None]

    def beside(self, known: Identity) -> Identity:
        """Return it; inputs that do not exist are taken to be those of a `known` identity."""
        data = {**known.data, **self.data}
        return Identity(values=self.config.training_values(), data=data, code=self.code)


class RunStatus(NamedTuple):
    expected: Expected
    state: str
    detail: str = ""
    work: Work | None = None
    """Its own work folder."""

    @property
    def epochs_left(self) -> float:
        """Of this training; a stale or missing run has all of them left."""
        epochs = self.expected.config.train.epochs
        done = {"finished": epochs, "stale": 0, "missing": 0}
        return epochs - done.get(self.state, self.work.epochs_done if self.work else 0)


def status(params: Params, paths: Paths, tables: Sequence[str], *, tflops: float) -> str:
    """Return a line for each run of the tables, or of all; other work folders; the time left."""
    works = works_of(paths)
    measured = _measured(works)
    runs = [status_of(run, paths, works) for run in expected_runs(params, paths, tables)]
    rows = [("experiment", "seed", "state", "")]
    for run in runs:
        seconds = _seconds_left(run, measured)
        left = f", {duration(seconds)} left" if run.state == "training" and seconds else ""
        config = run.expected.config
        rows.append((config.experiment, str(config.seed), run.state, run.detail + left))
    counts = Counter(run.state for run in runs)
    lines = [
        f"Profile {params.profile} ({params.active.label}), runs: "
        + ", ".join(f"{count} {state}" for state, count in counts.items()),
        "",
        _table(rows),
        *_others(runs, works, of_all=not tables),
        "",
        _in_all(runs, measured, params, paths, tflops),
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
            data = inputs.checksums(checksum_once)
            runs.append(Expected(config, inputs, code("train", config), data))
    return runs


def status_of(run: Expected, paths: Paths, works: Iterable[Work]) -> RunStatus:
    """Return what a run is doing, as its published files and the work folders say."""
    files = paths.run(run.config.experiment, run.config.seed)
    published = read_json(files.identity)
    known = Identity.from_dict(published.get("identity"))
    work = next((w for w in works if run.beside(w.identity) == w.identity), None)
    missing = ", ".join(map(str, run.inputs.missing))
    has_checkpoint = files.checkpoint.is_file()
    if known is not None and has_checkpoint and run.beside(known) == known:
        unsure = f"not compared, since not found: {missing}" if missing else ""
        return RunStatus(run, "finished", _joined(_accepted(published), unsure), work)
    if work is not None and (work.state != "interrupted" or work.has_saved):
        details = {
            "finished": _joined("not published: snakemake publishes it", _accepted(work.about)),
            "training": work.position,
            "interrupted": f"{work.position}, {readable(work.size)}",
        }
        return RunStatus(run, work.state, details[work.state], work)
    if has_checkpoint and known is not None:
        return RunStatus(run, "stale", shown(differences(known, run.beside(known))), work)
    if has_checkpoint:
        why = f"{files.identity} does not say how it was trained"
        return RunStatus(run, "stale", why, work)
    return RunStatus(run, "missing", f"needs {missing}" if missing else "", work)


def works_of(paths: Paths) -> list[Work]:
    """Return the profile's work folders, of trainings finished and not."""
    found = []
    for work in paths.works:
        about = read_json(work.about)
        if identity := Identity.from_dict(about.get("identity")):
            found.append(Work(work, about, identity))
    return found


def shown(differences: Sequence[str]) -> str:
    """Return the first few differences, and how many more there are."""
    more = len(differences) - SHOWN
    return "; ".join([*differences[:SHOWN], *([f"and {more} more"] if more > 0 else [])])


def _accepted(about: dict[str, Any]) -> str:
    """What a run was accepted in spite of."""
    found = [one for accepted in about.get("accepted", []) for one in accepted["differences"]]
    return f"accepted: {shown(found)}" if found else ""


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def _table(rows: Sequence[Sequence[str]]) -> str:
    text: str = tabulate(rows, tablefmt="plain", disable_numparse=True)
    return text


def _measured(works: Iterable[Work]) -> dict[Kind, float]:
    """Seconds per epoch, as runs of the profile took them."""
    found: dict[Kind, list[float]] = {}
    for work in works:
        values = work.identity.values
        kind = values["tower"]["architecture"], values["model"]["image_size"]
        if pace := work.pace:
            found.setdefault(kind, []).append(pace)
    return {kind: mean(paces) for kind, paces in found.items()}


def _seconds_left(run: RunStatus, measured: dict[Kind, float]) -> float | None:
    """As measured of the run itself, else of others of its kind; None where nothing is."""
    config = run.expected.config
    pace = run.work.pace if run.work else None
    pace = pace or measured.get((config.tower.architecture, config.model.image_size))
    return run.epochs_left * pace if pace else None


def _in_all(
    runs: Sequence[RunStatus],
    measured: dict[Kind, float],
    params: Params,
    paths: Paths,
    tflops: float,
) -> str:
    """What is left, and where that is from."""
    seconds, sources = 0.0, []
    left = [run for run in runs if run.epochs_left > 0]
    times = [_seconds_left(run, measured) for run in left]
    if known := [time for time in times if time is not None]:
        seconds += sum(known)
        sources.append(f"{len(known)} by measured times of this profile's runs")
    unmeasured = [run for run, time in zip(left, times, strict=True) if time is None]
    if unmeasured:
        from mmnet.pipeline.plan import flops_of, flops_per_second  # imports torch

        rate = flops_per_second(tflops)
        try:
            epochs = [(run.expected.config, run.epochs_left) for run in unmeasured]
            seconds += flops_of(epochs, params, paths) / rate
            sources.append(f"{len(unmeasured)} at {tflops:g} TFLOP/s, an assumed rate (--tflops)")
        except ConfigError as error:
            sources.append(f"{len(unmeasured)} not counted: {error}")
    if not left:
        return "Nothing is left to train."
    return f"Left to train: {duration(seconds)}, one run after another ({'; '.join(sources)})"


def _others(runs: Iterable[RunStatus], works: Iterable[Work], *, of_all: bool) -> list[str]:
    """A line for each work folder that is not of a run's training as it is now."""
    expected = {(r.expected.config.experiment, r.expected.config.seed): r.expected for r in runs}
    current = [run.work.paths for run in runs if run.work]
    others = [
        work
        for work in works
        if work.paths not in current and (of_all or work.experiment_and_seed in expected)
    ]
    if not others:
        return []
    rows = []
    for work in others:
        experiment, seed = work.experiment_and_seed
        run = expected.get((experiment, seed))
        state = work.state if work.state == "finished" else f"{work.state}, {work.position}"
        why = shown(differences(work.identity, run.beside(work.identity))) if run else "not a run"
        rows.append(
            (str(work.paths.folder), f"{experiment} seed {seed}", state, readable(work.size), why)
        )
    size = readable(sum(work.size for work in others))
    return [
        "",
        f"Work folders of other values, data or code ({size}), used again when these are restored. "
        "Delete what is not needed:",
        _table(rows),
    ]
