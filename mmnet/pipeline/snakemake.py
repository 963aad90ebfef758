"""What Snakemake has no switch for: where jobs run, locks of the dead, the nearest target.

These functions change internals of the one Snakemake that reads our Snakefile.
"""

import atexit
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmnet.config.messages import did_you_mean
from mmnet.runtime.errors import MMNetError


def run_in_conda_or_here(workflow: Any, say: Callable[[str], Any]) -> None:
    """Let this Python run the jobs where `--use-conda` has no conda that works, and say why.

    Raises:
        MMNetError: conda does not work, or was not asked for, and this Python lacks packages.
    """
    # For jobs in this Python; in conda's environment its own folder precedes this one.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    deployment, root = workflow.deployment_settings, Path(workflow.basedir)
    methods = set(deployment.deployment_method) if deployment else set()
    conda = {method for method in methods if method.name == "CONDA"}

    def here(reason: str) -> None:
        check_packages(root, reason)
        say(f"{reason}: the jobs run in this Python's environment.")
        deployment.deployment_method = methods - conda

    if not conda:
        if not methods:
            check_packages(root, "--use-conda was not given")
        return
    # A job that Snakemake starts relies on what the first process has tried.
    tried = conda_fault(deployment.conda_prefix or Path.cwd()) if workflow.is_main_process else None
    if not shutil.which("conda") or tried:
        here(tried or "No conda on the PATH")
        return

    from snakemake.dag import DAG
    from snakemake.exceptions import WorkflowError

    create = DAG.create_conda_envs

    def create_or_run_here(dag: Any, *arguments: Any, **keywords: Any) -> None:
        try:
            create(dag, *arguments, **keywords)
        except WorkflowError as error:
            if dag.workflow._executor_plugin is None:  # nothing but the environment is asked for
                raise
            try:
                here(f"conda could not make the environment ({_telling_line(str(error))})")
            except MMNetError as lacking:
                raise WorkflowError(str(lacking)) from None

    DAG.create_conda_envs = create_or_run_here


def conda_fault(folder: Path) -> str | None:
    """Return why Snakemake cannot use the conda of the PATH below a folder; None if it can."""
    from packaging.version import Version
    from snakemake.deployment.conda import MIN_CONDA_VER

    conda = shutil.which("conda")
    if not conda:
        return "No conda on the PATH"
    if odd := set(str(folder)) & set("'\"$`\\"):
        return f"Snakemake cannot activate conda's environment below a path with {min(odd)}"
    try:
        said = {
            words: subprocess.run(
                [conda, *words.split()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
            ).stdout
            for words in ("--version", "info --json", "config --get channel_priority --json")
        }
        found = re.findall(r"\d+\.\d+\.\d+", said["--version"])[0]
        info = json.loads(said["info --json"])
        json.loads(said["config --get channel_priority --json"])["get"]
        activate = Path(info["conda_prefix"], "bin", "activate")
    except subprocess.CalledProcessError as error:
        return f"{conda} does not work ({_telling_line(error.stderr) or error})"
    except (OSError, ValueError, LookupError, TypeError, subprocess.TimeoutExpired) as error:
        return f"{conda} does not work ({_telling_line(str(error))})"
    if Version(found) < Version(MIN_CONDA_VER):
        return f"{conda} is {found}, and Snakemake needs {MIN_CONDA_VER} or later"
    return None if activate.is_file() else f"{conda} does not work (it has no {activate})"


def check_packages(root: Path, reason: str) -> None:
    """Refuse to run jobs in a Python that lacks what pyproject.toml requires.

    Raises:
        MMNetError: a package is missing; names it, and the two ways to get it.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.split(r"[^\w.-]", line)[0] for line in project["dependencies"]]
    if missing := [name for name in names if not _is_installed(name)]:
        raise MMNetError(
            f"{reason}, and {sys.executable} lacks {', '.join(missing)}. Use `make`, which installs"
            " all packages into .venv, or give --use-conda with a conda that works on the PATH."
        )


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _telling_line(output: str) -> str:
    """Return the line of an error's text that names the error, or else its last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if re.match(r"\w*(Error|Exception)\b", line)), "") or (
        lines[-1] if lines else ""
    )


_HELD: list[FileLock] = []  # locked as long as this process lives


def remove_dead_locks(folder: Path = Path(".snakemake")) -> bool:
    """Remove Snakemake's locks if all processes that may hold them are dead; return whether.

    Its locks outlive a killed process and do not name it. So each process of ours keeps a file
    locked, named after machine and process: the system unlocks it when the process ends, however.
    Another machine's cannot be judged from here, nor can locks older than this file.
    """
    marks = folder / "running"
    marks.mkdir(parents=True, exist_ok=True)
    before, here = [*marks.iterdir()], f"{platform.node()}."
    dead = [mark for mark in before if mark.name.startswith(here) and _lock(mark)]
    locks = [*(folder / "locks").glob("*")] if len(dead) == len(before) > 0 else []
    for path in [*locks, *dead]:
        path.unlink(missing_ok=True)
    own = marks / f"{here}{os.getpid()}"
    if _lock(own):
        atexit.register(own.unlink, missing_ok=True)
    return bool(locks)


def _lock(path: Path) -> bool:
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except (Timeout, NotImplementedError, OSError):  # held by another, or locks are not supported
        return False
    _HELD.append(lock)
    return True


def name_nearest_target(rules: Iterable[Any], wildcards: dict[str, list[str]]) -> None:
    """Let Snakemake's error on a mistyped target name the nearest one."""
    import snakemake.dag
    from snakemake.exceptions import MissingRuleException as Missing
    from snakemake.io import expand

    def targets() -> Iterable[str]:
        for rule in rules:
            if not rule.wildcard_names:
                yield rule.name
            values = {name: wildcards.get(name, []) for name in rule.wildcard_names}
            for output in rule.output:
                # Without their constraints, which `expand` would take for names.
                yield from expand(re.sub(r"{(\w+),[^{}]*}", r"{\1}", str(output)), **values)

    class MissingRuleException(Missing):  # type: ignore[misc]
        def __init__(self, file: Any, **place: Any) -> None:
            super().__init__(file, **place)
            self.file = str(file)

        def __str__(self) -> str:
            # Snakemake raises and forgets one for each input that no rule makes.
            near = did_you_mean(self.file, dict.fromkeys(targets()))
            others = " `snakemake --list-target-rules` shows what can be made."
            return f"No rule makes {self.file}.{near if 'mean' in near else others}"

    snakemake.dag.MissingRuleException = MissingRuleException
