"""Where jobs run, and whose locks are removed, without Snakemake."""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import snakemake.api  # noqa: F401 (others cannot be imported first)
from snakemake_interface_executor_plugins.settings import DeploymentMethod

from mmnet.pipeline.snakemake import (
    check_packages,
    conda_fault,
    remove_dead_locks,
    run_in_conda_or_here,
)
from mmnet.runtime.errors import MMNetError
from support.forks import ended, forked
from support.tiny import ROOT

WORKING = """#!/bin/sh
case "$1" in
    --version) echo conda 25.1.0 ;;
    info) echo '{"conda_prefix": "PREFIX", "platform": "linux-64"}' ;;
    config) echo '{"get": {}}' ;;
esac
"""


def conda(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bin").mkdir()
    (folder / "bin" / "activate").touch()
    (folder / "bin" / "conda").write_text(script.replace("PREFIX", str(folder)))
    (folder / "bin" / "conda").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")


@pytest.mark.parametrize(
    ("script", "named"),
    [
        (WORKING, None),
        (WORKING.replace("25.1.0", "23.1.0"), "23.1.0"),
        (WORKING.replace("PREFIX", "/gone"), "/gone/bin/activate"),
        (WORKING.replace("'{\"conda", "'#{\"conda"), "does not work"),
        ("#!/gone/python\n", "does not work"),
        (
            "#!/bin/sh\necho 'ImportError: no x\nHelp.' >&2; exit 1\n",
            "ImportError: no x",
        ),
    ],
)
def test_a_conda_that_does_not_work_is_noticed(
    script: str, named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conda(tmp_path, script, monkeypatch)
    fault = conda_fault(tmp_path)
    assert (named in fault and "\n" not in fault) if named and fault else fault is named
    # Snakemake quotes the environment's folder so.
    assert "'" in (conda_fault(tmp_path / "it's") or "")


@pytest.mark.parametrize("script", [WORKING, "#!/bin/sh\nexit 1\n", None])
def test_jobs_run_in_this_python_without_a_conda_that_works(
    script: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    if script:
        conda(tmp_path, script, monkeypatch)
    monkeypatch.setattr("snakemake.dag.DAG.create_conda_envs", None)  # and back
    settings = SimpleNamespace(deployment_method={DeploymentMethod.CONDA}, conda_prefix=None)
    workflow = SimpleNamespace(deployment_settings=settings, basedir=ROOT, is_main_process=True)
    said: list[str] = []
    run_in_conda_or_here(workflow, said.append)
    assert bool(settings.deployment_method) == (script is WORKING)
    assert len(said) == (script is not WORKING)
    assert os.environ["PATH"].startswith(f"{Path(sys.executable).parent}{os.pathsep}")


def test_a_python_without_the_packages_is_refused_with_both_remedies(tmp_path: Path) -> None:
    check_packages(ROOT, "No conda")
    packages = '[project]\ndependencies = ["torch==2", "no-such_package>=1"]\n'
    (tmp_path / "pyproject.toml").write_text(packages)
    with pytest.raises(MMNetError, match=r"lacks no-such_package\. .*make.*conda"):
        check_packages(tmp_path, "No conda")


def test_locks_are_removed_once_every_process_that_may_hold_them_is_dead(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "0.output.lock"
    lock.parent.mkdir()
    lock.touch()
    marks = tmp_path / "running"

    def hold() -> None:
        remove_dead_locks(tmp_path)
        time.sleep(1000)

    def removed() -> bool:
        code = ended(forked(lambda: sys.exit(3 if remove_dead_locks(tmp_path) else 0)))
        return {0: False, 3: True}[code]

    holder = forked(hold)
    while not [*marks.glob("*")]:
        time.sleep(0.01)
    time.sleep(0.2)  # until it holds its mark
    assert not removed()
    os.kill(holder, signal.SIGKILL)
    ended(holder)
    (marks / "another-machine.1").touch()
    assert not removed()
    (marks / "another-machine.1").unlink()
    assert removed()
    assert not lock.exists()
    lock.touch()
    for mark in marks.glob("*"):
        mark.unlink()
    assert not removed()  # of a Snakemake without our rules
