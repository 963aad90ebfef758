"""Which GPUs a job takes: none that another job holds. nvidia-smi is a stand-in here."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmnet.runtime import gpus
from mmnet.runtime.errors import MMNetError
from support.tiny import ROOT

A, B, C = GPUS = [f"GPU-{letter * 8}-stand-in" for letter in "abc"]

# A stand-in for nvidia-smi on a machine without GPUs; the first of its GPUs is split (MIG).
STAND_IN = f"""#!/bin/sh
cat <<EOF
GPU 0: NVIDIA H200 (UUID: {A})
  MIG 1g.18gb     Device  0: (UUID: MIG-stand-in)
GPU 1: NVIDIA T4 (UUID: {B})
GPU 2: NVIDIA H200 (UUID: {C})
EOF
"""

JOB = """
import os, sys, time
from pathlib import Path
from mmnet.runtime import gpus
gpus.LOCKS, gpus.RETRY_EVERY = Path(sys.argv[1]), 0.02
marks, count, times = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
for _ in range(times):
    with gpus.take(count) as held:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(held)
        assert len(set(held)) == count
        for uuid in held:
            (marks / uuid).touch(exist_ok=False)  # fails if another job uses the GPU
        print("has", *held, flush=True)
        time.sleep(0.05 if times > 1 else 600)
        for uuid in held:
            (marks / uuid).unlink()
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with three GPUs, and locks of its own."""
    for folder in ("bin", "marks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text(STAND_IN)
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    for variable in (gpus.VISIBLE, gpus.ORDER, gpus.HELD):
        monkeypatch.setenv(variable, "as before, after the test")
        monkeypatch.delenv(variable)
    monkeypatch.setattr(gpus, "LOCKS", tmp_path / "locks")
    return tmp_path


def start(machine: Path, *, count: int, times: int = 1) -> Any:
    arguments = [str(machine / "locks"), str(machine / "marks"), str(count), str(times)]
    return subprocess.Popen(
        [sys.executable, "-c", JOB, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_many_jobs_never_share_a_gpu_and_all_get_theirs(machine: Path) -> None:
    jobs = [start(machine, count=count, times=6) for count in (1, 2, 1, 3, 1, 2)]
    printed = [job.communicate() for job in jobs]
    assert [job.returncode for job in jobs] == [0] * len(jobs), printed
    used = [line.split()[1:] for out, _ in printed for line in out.splitlines()]
    assert len(used) == 6 * len(jobs)
    assert {uuid for held in used for uuid in held} == set(GPUS)


def test_a_job_waits_says_so_and_gets_the_gpu_of_one_that_was_killed(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    holder = start(machine, count=1)
    assert holder.stdout.readline() == f"has {B}\n"
    waiting = start(machine, count=1)
    assert "waiting for 1 of 1 GPUs" in waiting.stderr.readline()
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    (machine / "marks" / B).unlink()  # the killed job could not
    assert waiting.stdout.readline() == f"has {B}\n"
    waiting.kill()
    waiting.communicate()


def test_jobs_that_want_two_each_of_three_take_turns(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with gpus.take(2) as held:
        del os.environ[gpus.VISIBLE], os.environ[gpus.HELD]  # as another process

        def free(seconds: float) -> None:
            (left,) = {*GPUS} - {*held}
            with contextlib.ExitStack() as locks:  # the one that is left was not kept waiting
                assert gpus._lock(GPUS, 1, locks) == [left]
            raise KeyboardInterrupt

        monkeypatch.setattr(gpus.time, "sleep", free)
        with pytest.raises(KeyboardInterrupt), gpus.take(2):
            pass
        assert "waiting for 2 of 3 GPUs" in capsys.readouterr().err
        os.environ[gpus.HELD] = ",".join(held)


def test_children_of_a_holder_use_its_gpus(machine: Path) -> None:
    with gpus.take(2) as held:
        program = "from mmnet.runtime.gpus import take\nwith take(1) as held: print(*held)"
        child = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
        )
    assert child.stdout.split() == held, child.stderr
    assert gpus.HELD not in os.environ


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, GPUS),
        ("1", [B]),
        ("2, 0", [C, A]),
        ("0,0", [A]),
        ("", []),
        ("-1", []),
        ("0,7,1", [A]),
        (C, [C]),
        ("MIG-stand-in", []),  # the user's own choice, not held
    ],
)
def test_only_the_gpus_that_cuda_may_use_are_taken(
    machine: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, expected: list[str]
) -> None:
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert gpus.visible() == expected


def test_without_gpus_nothing_is_taken_or_set(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexit 9  # no driver\n")
    with gpus.take(1) as held:
        assert held == []
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert not gpus.LOCKS.exists()


def test_too_few_gpus_and_a_place_that_cannot_be_written_are_one_line(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MMNetError, match=r"^4 GPUs requested, 3 available.*$"):
        gpus.take(4).__enter__()
    monkeypatch.setattr(gpus, "LOCKS", machine / "bin" / "nvidia-smi" / "locks")
    with pytest.raises(MMNetError, match=r"^.*locks: cannot be written.*$"):
        gpus.take(1).__enter__()


@pytest.mark.parametrize(
    ("device", "is_launched", "held"),
    [
        ("auto", False, [A]),
        ("cuda", False, [A]),
        ("cuda", True, []),
        ("cuda:1", False, []),
        ("cpu", False, []),
    ],
)
def test_a_gpu_is_held_unless_one_is_named_or_torchrun_assigns_them(
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    device: str,
    is_launched: bool,
    held: list[str],
) -> None:
    monkeypatch.setattr(gpus, "is_launched", lambda: is_launched)
    with gpus.take_for(device, 1) as taken:
        assert taken == held
    assert os.environ.pop(gpus.VISIBLE, "") == ",".join(held)
    with gpus.take(3):  # it was released
        assert "waiting" not in capsys.readouterr().err
