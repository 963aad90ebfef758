"""Which GPU a job takes: never one that another holds. nvidia-smi is a stand-in here."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmnet.cli import common as commands
from mmnet.config.load import load_params
from mmnet.runtime import gpus as cards
from mmnet.runtime.errors import MMNetError
from support.tiny import ROOT

A, B, C = CARDS = [f"GPU-{letter * 8}-stand-in" for letter in "abc"]

STAND_IN = """#!/bin/sh
# A stand-in for nvidia-smi on a machine without GPUs: it lists those that a test wants.
cat <<EOF
{listed}
EOF
"""

JOB = """
import os, sys, time
from pathlib import Path
from mmnet.runtime import gpus as cards
cards.LOCKS, cards.ASK_EVERY = Path(sys.argv[1]), 0.02
marks, count, times = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
for _ in range(times):
    with cards.take(count) as held:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(held)
        assert len(set(held)) == count
        for card in held:
            (marks / card).touch(exist_ok=False)  # fails if another job is on the card
        print("has", *held, flush=True)
        time.sleep(0.05 if times > 1 else 60)
        for card in held:
            (marks / card).unlink()
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with three GPUs, one of them split, and locks of its own."""
    lines = [f"GPU {number}: NVIDIA H200 (UUID: {card})" for number, card in enumerate(CARDS)]
    lines.append("  MIG 1g.18gb     Device  0: (UUID: MIG-stand-in)")
    stand_in = tmp_path / "bin" / "nvidia-smi"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN.format(listed="\n".join(lines)))
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(stand_in.parent), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv(cards.HELD, raising=False)
    monkeypatch.setattr(cards, "LOCKS", tmp_path / "locks")
    (tmp_path / "marks").mkdir()
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


def test_many_jobs_never_share_a_card_and_all_get_theirs(machine: Path) -> None:
    jobs = [start(machine, count=count, times=6) for count in (1, 2, 1, 3, 1, 2)]
    printed = [job.communicate(timeout=60) for job in jobs]
    assert [job.returncode for job in jobs] == [0] * len(jobs), printed
    used = [line.split()[1:] for out, _ in printed for line in out.splitlines()]
    assert len(used) == 6 * len(jobs)
    assert {card for held in used for card in held} == set(CARDS)


def test_a_job_waits_says_so_and_gets_the_card_of_one_that_was_killed(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    holder = start(machine, count=1)
    assert holder.stdout.readline() == f"has {B}\n"
    waiting = start(machine, count=1)
    assert "waiting for 1 of 1 GPUs: other processes hold them" in waiting.stderr.readline()
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=10)
    (machine / "marks" / B).unlink()  # the killed job could not
    assert waiting.stdout.readline() == f"has {B}\n"
    waiting.kill()
    waiting.communicate(timeout=10)


def test_a_card_that_is_free_is_taken_at_once_beside_one_that_is_held(machine: Path) -> None:
    with cards.take(1) as first, subprocess.Popen(["sleep", "60"]) as unrelated:
        # As another process: it is no child of the holder's that shares its cards.
        held = os.environ.pop(cards.HELD)
        del os.environ[cards.VISIBLE]
        with cards.take(2) as others:
            assert sorted(first + others) == CARDS
        os.environ[cards.HELD] = os.environ[cards.VISIBLE] = held
        unrelated.kill()


def test_children_of_a_holder_work_on_its_cards(machine: Path) -> None:
    with cards.take(2) as held:
        program = "from mmnet import cards\nwith cards.take(1) as held: print(*held)"
        child = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30
        )
    assert child.stdout.split() == held, child.stderr


def test_a_part_of_a_card_is_taken_by_its_name(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-stand-in/1/0")
    with cards.take(1) as held:
        assert held == ["MIG-GPU-stand-in/1/0"]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-GPU-stand-in/1/0"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-GPU-stand-in/1/0"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, CARDS),
        ("1", [B]),
        ("2, 0", [C, A]),
        ("0,0", [A]),
        ("", []),
        ("-1", []),
        ("7", []),
        ("0,7,1", [A]),
        (C, [C]),
        (B[:6], [B]),
        ("GPU-", []),  # which?
        ("MIG-stand-in", ["MIG-stand-in"]),
    ],
)
def test_only_the_cards_that_were_given_are_taken(
    machine: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, expected: list[str]
) -> None:
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert cards.visible() == expected


def test_without_gpus_nothing_is_taken_or_set(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    (machine / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexit 9  # no driver\n")
    monkeypatch.setenv("PATH", str(machine / "bin"), prepend=os.pathsep)
    with cards.take(1) as held:
        assert held == []
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert not cards.LOCKS.exists()


def test_more_cards_than_there_are_is_an_error_not_a_long_wait(machine: Path) -> None:
    with pytest.raises(MMNetError, match=r"4 GPUs are asked for, and 3 are here") as caught:
        cards.take(4).__enter__()
    assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_named(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "file").write_text("")
    monkeypatch.setattr(cards, "LOCKS", machine / "file" / "locks")
    with pytest.raises(MMNetError, match="locks: cannot be written"):
        cards.take(1).__enter__()


@pytest.mark.parametrize(
    ("device", "seen"), [("auto", A), ("cuda", A), ("cuda:1", None), ("cpu", None)]
)
def test_commands_compute_on_a_card_of_their_own_unless_one_is_named(
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    device: str,
    seen: str | None,
) -> None:
    visible = cards.VISIBLE
    monkeypatch.setattr(commands, "_prepared", lambda name, config: os.environ.get(visible))
    train = load_params(ROOT / "params.yaml").active.train
    with commands.computing(device, train) as found:
        assert found == seen
    assert visible not in os.environ
    with cards.take(3):  # it was let go
        assert "waiting" not in capsys.readouterr().err
