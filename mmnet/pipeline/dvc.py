"""Between Snakemake's files and DVC's records of them (dvc.yaml, dvc.lock).

Snakemake goes by times and by notes of its own, which a pulled file does not have: `adopt` gives
them, once DVC has found the files to be those of dvc.lock. `record` is the way back: what Snakemake
has made goes into dvc.lock at once, where `dvc repro` would call it for each stage.
"""

import csv
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo

from mmnet.runtime.errors import LedgerError

SHOWN = 20
"""Differences named in one message."""

NOTHING_TO_DO = "Nothing to be done"


def adopt() -> tuple[int, int]:
    """Make Snakemake take pulled files for its own; count their stages, and those without record.

    Raises:
        LedgerError: a recorded file is missing or not that of dvc.lock, or code or values are
            others; or dvc.lock has no stage. Nothing is touched then.
    """
    with _ledger() as repo:
        stages = list(repo.index.stages)
        recorded = [stage for stage in stages if _is_recorded(stage)]
        if not recorded:
            raise LedgerError("dvc.lock has no record of these stages. Fetch it with `git pull`.")
        differences = [line for stage in recorded for line in _differences(stage)]
    if differences:
        raise LedgerError(
            f"not as dvc.lock has it: {_listed(differences)}. Fetch what is missing with `dvc "
            "pull`, put back what was changed with `dvc checkout`, or let snakemake make it anew."
        )
    done = _snakemake("--touch", "--forceall", "--cores", "1", "--", *map(_target, recorded))
    if done.returncode:
        raise LedgerError(f"snakemake could not take them over: {_last_line(done)}")
    return len(recorded), len(stages) - len(recorded)


def record() -> tuple[int, int, int]:
    """Put what Snakemake has made into dvc.lock and DVC's cache.

    Returns how many stages are recorded; how many are not, as Snakemake would make something of
    theirs anew; and how many, as not all of their files are there. Of a folder, such as the
    towers', what is there is recorded: that another table needs more is no matter to the first.

    Raises:
        LedgerError: nothing is up to date, or a job was killed; or something was changed by hand.
    """
    with _ledger() as repo:
        stages = list(repo.index.stages)
        present = [s for s in stages if all(f.exists for f in [*s.outs, *s.deps])]
        if not present:
            raise LedgerError("no stage of dvc.yaml has its files here. Run snakemake first.")
        files = _files(present)
        stale = [path for path, is_current in files.items() if not is_current]
        done = [s for s in present if not any(_holds(f, stale) for f in [*s.outs, *s.deps])]
        made = [path for path in files if any(_holds(f, [path]) for s in done for f in s.outs)]
        # The summary passes over files that a killed job left: a dry run does not.
        planned = _snakemake("--dry-run", "--", *map(str, made)) if made else None
        if planned and planned.returncode:
            raise LedgerError(f"snakemake cannot plan: {_last_line(planned)}")
        if not done or (planned and NOTHING_TO_DO not in planned.stdout + planned.stderr):
            raise LedgerError(
                "what is here is not up to date: `snakemake -n` says what is to be done. Run "
                "snakemake, then record again."
            )
        forged = [line for stage in done if _is_recorded(stage) for line in _forged(stage)]
        if forged:
            raise LedgerError(
                f"changed, though nothing that it comes from did: {_listed(forged)}. Put it back "
                "with `dvc checkout FILE`, or delete it and run snakemake. If other bytes are "
                "right, as of another machine: `dvc commit --force STAGE`."
            )
        # As `dvc commit --force`, which would stop at the first stage that was never run.
        for stage in done:
            stage.save()
            stage.commit()
        done[0].dvcfile.dump_stages(done, update_pipeline=False)
    return len(done), len(present) - len(done), len(stages) - len(present)


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


def _is_recorded(stage: Any) -> bool:
    """Whether dvc.lock has an entry for it."""
    return all(out.hash_info for out in stage.outs)


def _files(stages: list[Any]) -> dict[Path, bool]:
    """The files of these stages that are there, and whether Snakemake would leave them so."""
    told = _snakemake("--summary", "--", *map(_target, stages))
    if told.returncode:
        raise LedgerError(f"snakemake cannot plan: {_last_line(told)}")
    rows = csv.DictReader(told.stdout.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    found = {Path(row["output_file"]): row["plan"] == "no update" for row in rows}
    return {path: is_current for path, is_current in found.items() if path.exists()}


def _holds(place: Any, files: list[Path]) -> bool:
    """Whether a stage's file or folder is one of the files, or has one of them in it."""
    return any(file.is_relative_to(place.def_path) for file in files)


def _forged(stage: Any) -> Iterator[str]:
    """Outputs that dvc.lock has otherwise, while the stage's code, values and inputs are its."""
    if any(dep.status() for dep in stage.deps):
        return
    for out in stage.outs:
        recorded, known = out.hash_info, out.get_obj()
        out.save()
        if out.hash_info == recorded:
            continue
        if recorded.isdir and known:
            # More files than were recorded are no forgery: another tower was trained.
            for key, (_, content) in known.as_dict().items():
                if (out.obj.get(key) or (None, None))[1] != content:
                    yield "/".join([out.def_path, *key])
        else:
            yield out.def_path


def _differences(stage: Any) -> Iterator[str]:
    if stage.changed_stage():
        yield f"{stage.addressing} (another command)"
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
