"""Several processes: one reports for all, the true cause of their end, in one line."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from mmnet.runtime import distributed, launcher
from mmnet.runtime.distributed import World
from mmnet.runtime.errors import DataError, LostPeersError, MMNetError
from mmnet.runtime.progress import say
from support.tiny import ROOT

MISTAKE, LOST, STOPPED = "DataError: a table: missing", "LostPeersError: lost", "Stopped: saved"


def write_error(path: Path, message: str) -> Path:
    """Write an error file as torch's own handler does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"message": message, "extraInfo": {"py_callstack": "", "timestamp": "1"}}
    path.write_text(json.dumps({"message": content}))
    return path


@pytest.mark.parametrize(
    ("environment", "is_first"),
    [
        ({}, True),
        ({"RANK": "1"}, True),  # left by MPI
        ({"TORCHELASTIC_RUN_ID": "1", "RANK": "0"}, True),
        ({"TORCHELASTIC_RUN_ID": "1", "RANK": "1"}, False),
    ],
)
def test_only_torchrun_says_which_process_is_first(
    environment: dict[str, str],
    is_first: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launcher.is_first() == is_first
    say("a line")
    assert ("a line" in capsys.readouterr().err) == is_first


def test_no_other_module_asks_for_the_rank() -> None:
    sources = (ROOT / "mmnet").rglob("*.py")
    askers = {path.name for path in sources if re.search(r"[\"']RANK[\"']", path.read_text())}
    assert askers == {"launcher.py"}


def test_a_lost_peer_is_one_line_and_a_bug_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234\nC++ stack")

    monkeypatch.setattr(distributed.dist, "all_reduce", broken)
    with pytest.raises(LostPeersError, match=r"^process 2 of 2 .*Connection closed.*$"):
        World(1, 2).mean([1.0], torch.device("cpu"))
    with pytest.raises(RuntimeError, match="a bug"), World(0, 2).communicating():
        raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("codes", "messages", "code", "line"),
    [
        ({0: 1, 1: 1}, {0: LOST, 1: MISTAKE}, 1, "a table: missing"),
        ({0: 1, 1: -9}, {0: LOST}, 137, "process 1 was ended by SIGKILL"),
        ({0: -9, 1: 1}, {1: MISTAKE}, 1, "a table: missing"),
        ({0: -15, 1: 1}, {1: MISTAKE}, 1, "a table: missing"),
        # torchrun may end a process that is about to end with an error of its own.
        ({0: -15, 1: 1}, {0: MISTAKE, 1: MISTAKE}, 1, "a table: missing"),
        ({0: -15, 1: 143}, {0: STOPPED, 1: STOPPED}, 143, "saved"),
        ({1: -15}, {1: MISTAKE}, 1, "a table: missing"),
        ({0: 143, 1: 143}, {0: STOPPED, 1: STOPPED}, 143, "saved"),
        ({0: 1, 1: 1}, {0: LOST, 1: LOST}, 1, "lost"),
        ({0: 1, 1: 1}, {0: LOST}, 1, None),  # the other one's traceback
        ({0: -15, 1: 1}, {}, 1, None),
        ({1: -15}, {}, 143, "process 1 was ended by SIGTERM"),
    ],
)
def test_the_cause_is_reported_and_not_what_followed(
    codes: dict[int, int],
    messages: dict[int, str],
    code: int,
    line: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for rank, message in messages.items():
        write_error(tmp_path / f"{rank}.json", message)

    def failing(*arguments: Any) -> None:
        failures = {
            rank: ProcessFailure(rank, 7, code, str(tmp_path / f"{rank}.json"))
            for rank, code in codes.items()
        }
        raise ChildFailedError("mmnet", failures)

    assert launched(failing, monkeypatch) == (code, line)


@pytest.mark.parametrize(
    ("messages", "line"),
    [([], None), ([STOPPED, STOPPED], "saved"), ([LOST, MISTAKE], "a table: missing")],
)
def test_a_signal_to_torchrun_keeps_its_exit_code_and_what_the_processes_said(
    messages: list[str], line: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(arguments: Any) -> None:
        for rank, message in enumerate(messages):
            write_error(
                Path(arguments.log_dir, "id", "attempt_0", str(rank), "error.json"), message
            )
        raise SignalException("signal", sigval=signal.SIGTERM)

    assert launched(signalled, monkeypatch) == (128 + signal.SIGTERM, line)


def launched(run: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str | None]:
    """Launch two processes with a stand-in for torchrun; return the exit code and the line."""
    monkeypatch.setattr(torch.distributed.run, "run", run)
    for variable in ("OMP_NUM_THREADS", "TORCH_CPP_LOG_LEVEL", launcher.LAUNCHER):
        monkeypatch.setenv(variable, "")  # as they were, after the test
    try:
        return launcher.launch(["train"], 2, threads=1), None
    except MMNetError as error:
        return error.exit_code, str(error).split(". ")[0]
    finally:
        logging.disable(logging.NOTSET)


def test_an_error_is_left_to_the_launcher_only_while_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setenv(launcher.LAUNCHER, "4000000")
    assert not launcher.is_recorded(DataError("a table: missing"))
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv(launcher.LAUNCHER, str(os.getppid()))
    assert launcher.is_recorded(DataError("a table: missing"))
    failure = ProcessFailure(0, 7, 1, str(tmp_path / "error.json"))
    assert launcher._recorded(failure) == ("DataError", "a table: missing")


CHILD = """
import sys, time
from mmnet.runtime import launcher
launcher.end_with_launcher()
print("started", flush=True)
time.sleep(600)
"""
PARENT = """
import os, subprocess, sys, time
from mmnet.runtime import launcher
if sys.argv[1] == "launch":
    os.environ[launcher.LAUNCHER] = str(os.getpid())
subprocess.Popen([sys.executable, "-c", sys.argv[2]])
time.sleep(600)
"""


@pytest.mark.parametrize("by", ["launch", "torchrun"])
def test_a_process_ends_when_its_launcher_is_killed(by: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, by, CHILD],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TORCHELASTIC_RUN_ID": "1", "RANK": "0"},
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "started\n"
        parent.kill()
        assert parent.stdout.read() == ""  # returns once the child has ended too


def test_a_process_ends_whose_launcher_was_killed_before_it_looked() -> None:
    environment = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", launcher.LAUNCHER: "4000000"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGTERM


def test_a_mistake_that_all_processes_of_a_torchrun_make_is_said_once(tmp_path: Path) -> None:
    """Of a torchrun that the user started: nothing collects what its processes report."""
    code = (
        "import os; from mmnet.runtime.launcher import is_said;"
        "print(is_said(f'--device cuda:{os.environ[\"RANK\"]}: no driver'), is_said('other'))"
    )
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "1", "TMPDIR": str(tmp_path)}
    said = [
        subprocess.check_output(
            [sys.executable, "-c", code], cwd=ROOT, env={**environment, "RANK": rank}, text=True
        ).split()
        for rank in "01"
    ]
    assert said == [["False", "False"], ["True", "True"]]
    assert not launcher.is_said("other")  # without torchrun, everything is
    assert not launcher.is_said("other")
