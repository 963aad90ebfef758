"""Between Snakemake's files and DVC's records of them (dvc.yaml, dvc.lock).

Snakemake decides by times and by metadata of its own, which a pulled file does not have. `adopt`
supplies them once DVC has found the files to be those of dvc.lock. `record` is the other direction:
what Snakemake has made goes into dvc.lock at once, where `dvc repro` would call it for each stage.
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
from mmnet.tracking.provenance import revision

SHOWN = 20
"""Files named in one message."""


def adopt() -> tuple[int, int]:
    """Make Snakemake accept pulled files; return how many stages have a record, and how many not.

    Raises:
        LedgerError: no stage has a record; or a recorded file, code or value differs from dvc.lock.
            Nothing is touched then.
    """
    with _repo() as repo:
        stages = list(repo.index.stages)
        recorded = [stage for stage in stages if _is_recorded(stage)]
        if not recorded:
            raise LedgerError("dvc.lock has no record of these stages. Fetch it with `git pull`.")
        differences = [f"{path} ({change})" for path, change in _changes(repo, recorded)]
        differences += [line for s in recorded for dep in s.deps for line in _lines(dep.status())]
    if differences:
        raise LedgerError(
            f"not as dvc.lock has it: {_listed(differences)}. Fetch what is missing with `dvc "
            "pull`, restore what was changed with `dvc checkout`, or run snakemake instead."
        )
    _snakemake("--touch", "--forceall", "--cores", "1", "--", *_targets(recorded))
    return len(recorded), len(stages) - len(recorded)


def record() -> tuple[int, int]:
    """Put what Snakemake has made into dvc.lock and DVC's cache.

    Returns how many stages are recorded; and how many are not, since they lack files.

    Raises:
        LedgerError: Snakemake would make again what is here, or an output was changed by hand.
            Nothing is recorded then.
    """
    with _repo() as repo:
        stages = list(repo.index.stages)
        present = [s for s in stages if all(f.exists for f in [*s.outs, *s.deps])]
        if not present:
            raise LedgerError("no stage of dvc.yaml has all its files here. Run snakemake first.")
        _check_up_to_date(present)
        # Outputs that dvc.lock has otherwise, though code, values and inputs are the recorded ones.
        same = [s for s in present if _is_recorded(s) and not any(d.status() for d in s.deps)]
        # More files than were recorded are no damage: another tower was trained.
        if changed := [path for path, change in _changes(repo, same) if change != "added"]:
            raise LedgerError(
                f"changed, although its inputs did not: {_listed(changed)}. Restore it with `dvc "
                "checkout FILE`, or delete it and run snakemake. If other bytes are right, as from "
                "another machine: `dvc commit --force STAGE`."
            )
        # As `dvc commit --force`, which would stop at the first stage that was never run.
        for stage in present:
            stage.save()
            stage.commit()
        present[0].dvcfile.dump_stages(present, update_pipeline=False)
    return len(present), len(stages) - len(present)


@contextmanager
def _repo() -> Iterator[Any]:
    """The repository as DVC sees it, with no other DVC at work; its errors in one line.

    Raises:
        LedgerError: DVC cannot read it, or cannot write.
    """
    try:
        with Repo() as repo, repo.lock:
            yield repo
    except DvcException as error:
        cause = error.__cause__ if isinstance(error.__cause__, DvcException) else None
        text = ": ".join(str(e) for e in (error, cause) if e)
        remedy = ""
        if reason := revision(Path()).get("reason"):
            remedy = (
                f" (git: {reason}). adopt, record and dvc need a git clone: clone the repository, "
                "or make this folder one (`git init && git add . && git commit -m start`). "
                "Everything else works without."
            )
        raise LedgerError(f"dvc: {' '.join(text.split())}{remedy}") from None


def _is_recorded(stage: Any) -> bool:
    """Whether dvc.lock has an entry for it."""
    return all(out.hash_info for out in stage.outs)


def _check_up_to_date(stages: list[Any]) -> None:
    """Refuse files of these stages that Snakemake would make again."""
    summary = _snakemake("--summary", "--", *_targets(stages)).stdout
    rows = csv.DictReader(summary.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    plans = {row["output_file"]: row["plan"] for row in rows if Path(row["output_file"]).exists()}
    stale = [path for path, plan in plans.items() if plan != "no update"]
    # The summary passes over files that a killed job left: a dry run does not.
    planned = _snakemake("--dry-run", "--", *plans)
    if stale or "Nothing to be done" not in planned.stdout + planned.stderr:
        names = _listed(stale) or "a job was interrupted, or a file of it is missing"
        raise LedgerError(
            f"not up to date: {names}. See `snakemake -n`, run snakemake, then record again."
        )


def _changes(repo: Any, stages: list[Any]) -> list[tuple[str, str]]:
    """Return the output files that are not as dvc.lock has them, with what happened to each."""
    if not (outs := [out.def_path for stage in stages for out in stage.outs]):
        return []
    found = repo.data_status(outs, granular=True, with_renames=False)["uncommitted"]
    changes = [(path, change) for change, paths in found.items() for path in paths]
    # Of a folder that exists, its files are listed too.
    return [one for one in changes if one[1] != "modified" or not one[0].endswith("/")]


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


def _targets(stages: list[Any]) -> list[str]:
    """What the stages' commands ask Snakemake for."""
    commands = [s.cmd if isinstance(s.cmd, str) else s.cmd[-1] for s in stages]
    return [target for command in commands for target in command.rpartition(" -- ")[2].split()]


def _snakemake(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Snakemake.

    Raises:
        LedgerError: it fails; with the last line of its output.
    """
    command = [sys.executable, "-m", "snakemake", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise LedgerError(f"snakemake {arguments[0]} failed: {reason}")
    return done
