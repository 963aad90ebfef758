"""Between Snakemake's files and DVC's records of them (dvc.yaml, dvc.lock).

Snakemake goes by times and by notes of its own, which a pulled file does not have: `adopt` gives
them, once DVC has found the files to be those of dvc.lock. `record` is the way back: what Snakemake
has made goes into dvc.lock at once, where `dvc repro` would call it for each stage.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo

from mmnet.errors import LedgerError

SHOWN = 20
"""Differences named in one message."""


def adopt() -> int:
    """Make Snakemake take pulled files for its own; return how many stages of dvc.yaml they are.

    Raises:
        LedgerError: a file is missing or not that of dvc.lock, or code or values are others.
            Nothing is touched then.
    """
    with _ledger() as repo:
        stages = list(repo.index.stages)
        differences = [line for stage in stages for line in _differences(stage)]
    if differences:
        raise LedgerError(
            f"not as dvc.lock has it: {_listed(differences)}. Fetch what is missing with `dvc "
            "pull`, put back what was changed with `dvc checkout`, or let snakemake make it anew."
        )
    done = _snakemake("--touch", "--forceall", "--cores", "1", "--", *map(_target, stages))
    if done.returncode:
        raise LedgerError(f"snakemake could not take them over: {_last_line(done)}")
    return len(stages)


def record() -> list[str]:
    """Put what Snakemake has made into dvc.lock and DVC's cache; return the stages' names.

    Stages whose files are not all there are left out: after one table, its part is recorded.

    Raises:
        LedgerError: there is something for Snakemake to do; or nothing to record.
    """
    with _ledger() as repo:
        stages = [s for s in repo.index.stages if all(f.exists for f in [*s.outs, *s.deps])]
        if not stages:
            raise LedgerError("no stage of dvc.yaml has its files here. Run snakemake first.")
        planned = _snakemake("--dry-run", "--", *map(_target, stages))
        if planned.returncode:
            raise LedgerError(f"snakemake cannot plan: {_last_line(planned)}")
        if "Nothing to be done" not in planned.stdout + planned.stderr:
            raise LedgerError(
                "what is here is not up to date: `snakemake -n` says what is to be done. Run "
                "snakemake, then record again."
            )
        # As `dvc commit --force`, which would stop at the first stage that was never run.
        for stage in stages:
            stage.save()
            stage.commit()
        stages[0].dvcfile.dump_stages(stages, update_pipeline=False)
    return [stage.addressing for stage in stages]


@contextmanager
def _ledger() -> Iterator[Any]:
    """The repository as DVC sees it, no other DVC beside; its errors in one line.

    Raises:
        LedgerError: DVC cannot read it, or cannot write.
    """
    try:
        with Repo() as repo, repo.lock:
            yield repo
    except DvcException as error:
        cause = error.__cause__ if isinstance(error.__cause__, DvcException) else None
        said = ": ".join(str(e) for e in (error, cause) if e)
        raise LedgerError(f"dvc: {' '.join(said.split())}") from None


def _differences(stage: Any) -> Iterator[str]:
    if stage.changed_stage():
        yield f"{stage.addressing} (no record)"
    for out in stage.outs:
        # Not `status`: that a file is missing from the cache is no matter here.
        yield from _lines(out.workspace_status())
    for dep in stage.deps:
        yield from _lines(dep.status())


def _lines(status: dict[str, Any]) -> Iterator[str]:
    for path, state in status.items():
        if isinstance(state, dict):
            yield from (f"{path}: {line}" for line in _lines(state))
        else:
            yield f"{path} ({state})"


def _listed(lines: list[str]) -> str:
    lines = list(dict.fromkeys(lines))
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return ", ".join(lines[:SHOWN]) + more


def _target(stage: Any) -> str:
    """What the stage's command asks Snakemake for."""
    command = stage.cmd if isinstance(stage.cmd, str) else stage.cmd[-1]
    return str(command).rpartition(" -- ")[2]


def _snakemake(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[-1] if lines else f"it ended with {done.returncode}"
