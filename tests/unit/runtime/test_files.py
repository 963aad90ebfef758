"""Files: written whole or not at all, unpacked inside their folder."""

import json
import os
import random
import re
import resource
import shutil
import stat
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmnet.data.unpack import unpack
from mmnet.runtime import progress
from mmnet.runtime.errors import DataError, MMNetError
from mmnet.runtime.files import atomic_folder, atomic_path, atomic_write, is_locked, locked

CONTENT = random.Random(0).randbytes(5000)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Writing.


def test_a_block_that_raises_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_write(path) as file:
        json.dump(["new", object()], file)  # writes what comes before it fails
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_the_longest_name_is_written_and_a_longer_one_is_one_line(tmp_path: Path) -> None:
    for longest in ("x" * 255, "é" * 127):
        with atomic_write(tmp_path / longest) as file:
            file.write("new")
        (tmp_path / longest).unlink()
        with atomic_folder(tmp_path / longest):
            pass
        for writer in (atomic_path, atomic_folder):
            with (
                pytest.raises(MMNetError, match="shorter name"),
                writer(tmp_path / (longest + "é")),
            ):
                pass
        (tmp_path / longest).rmdir()
    assert names(tmp_path) == []


def test_a_file_too_large_for_the_system_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(MMNetError) as caught, atomic_write(path) as file:
            file.write("new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value).startswith(f"{path}: cannot be written: File too large. Free some")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_folder_whose_place_cannot_be_taken_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(MMNetError, match="cannot be written"), atomic_folder(tmp_path / "a"):
        pass
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "old").exists()


WRITERS = """
import json, shutil, subprocess, sys, zipfile
from pathlib import Path
import pandas, torch
from mmnet.config.profile import SourceConfig
from mmnet.data.download import fetch
from mmnet.data.unpack import unpack
from mmnet.runtime.errors import MMNetError
from mmnet.runtime.files import atomic_path, atomic_write, locked
from mmnet.model import checkpoint

disk, archive, old = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[1]) / "old"

def text():
    with atomic_write(old) as file:
        file.write("x" * 10**6)

def table():
    with atomic_path(old) as path:
        frame = pandas.DataFrame({"x": torch.rand(10**5).numpy()})
        frame.to_parquet(path)

def lock():
    with locked(disk / "folder"):
        pass

def blindly(write):
    # Not knowing beforehand that the disk is too small.
    real, shutil.disk_usage = shutil.disk_usage, lambda path: shutil._ntuple_diskusage(0, 0, 10**12)
    try:
        write()
    finally:
        shutil.disk_usage = real

def fetch_archive():
    fetch(SourceConfig(urls=[f"file:{archive}"], md5="0" * 32), old)

def unpack_archive():
    unpack(archive, disk / "folder", members=bool, max_bytes=10**9)

writers = {
    "text": text,
    "table": table,
    "lock": lock,
    "checkpoint": lambda: checkpoint.save(old, {"model": torch.rand(10**5)}),
    "fetch": fetch_archive,
    "unpack": unpack_archive,
    "unpack blindly": lambda: blindly(unpack_archive),
    "fetch blindly": lambda: blindly(fetch_archive),
}
results = {}

def note(place, names):
    for name in names:
        try:
            writers[name]()
            error = ""
        except MMNetError as raised:
            error = str(raised)
        results[f"{name}, {place}"] = [error, sorted(path.name for path in disk.iterdir())]

note("full", [name for name in writers if name != "lock"])
(disk / ".old.part").unlink()
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
note("read-only", ["text", "lock", "fetch", "unpack"])
print(json.dumps(results))
"""


def test_a_full_disk_or_a_read_only_place_is_one_line(tmp_path: Path) -> None:
    disk, archive = tmp_path / "disk", tmp_path / "large.zip"
    disk.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("large", random.Random(1).randbytes(10**6))
    inside = ["unshare", "--map-root-user", "--mount"]
    probe = [*inside, "mount", "-t", "tmpfs", "tmpfs", disk]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("this machine lets us mount no file system")
    script = 'mount -t tmpfs -o size=64k tmpfs "$1"; echo old >"$1/old"; shift; exec "$@"'
    command = [*inside, "sh", "-ec", script, "sh", disk, sys.executable, "-c", WRITERS, disk]
    done = subprocess.run([*command, archive], check=True, stdout=subprocess.PIPE, text=True)
    results: dict[str, Any] = json.loads(done.stdout)
    assert len(results) == 7 + 4
    for case, (error, left) in results.items():
        name, place = case.split(", ")
        if place == "read-only":
            assert "cannot be written: Read-only file system." in error, case
        else:
            # What is too large is seen beforehand, where the size is known.
            known = name in ("fetch", "unpack")
            reason = "needs 1.0 MB, and " if known else "No space left on device."
            assert f"cannot be written: {reason}" in error, case
            assert "Free some space" in error, case
        assert "\n" not in error, case
        # What was fetched stays, to go on from.
        assert left == ([".old.part", "old"] if case == "fetch blindly, full" else ["old"]), case


@pytest.mark.parametrize("place", ["file/below", "file/far/below", "folder"])
def test_a_place_that_cannot_hold_the_file_is_one_line(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(MMNetError) as caught, atomic_write(tmp_path / place):
        pass
    in_the_way = tmp_path / place.partition("/")[0]
    assert re.search(rf"cannot be written: .*Move {in_the_way} away", str(caught.value))
    assert names(tmp_path) == ["file", "folder"]


def test_errors_that_are_not_about_writing_keep_their_own_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file"):
        (tmp_path / "input").read_text()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_file_appears_whole_with_the_permissions_of_the_umask(
    umask: int, mode: int, tmp_path: Path
) -> None:
    path = tmp_path / "folder" / "file"
    before = os.umask(umask)
    try:
        with atomic_write(path, "wb") as file:
            file.write(b"new")
            file.flush()
            assert not path.exists()
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_second_process_is_refused_a_locked_folder(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from mmnet.runtime.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        refused = pytest.raises(MMNetError, match="another process is at work here")
        with refused, locked(tmp_path / "run"):
            pass
        other.communicate()
    with locked(tmp_path / "run"), locked(tmp_path / "neighbour"):
        assert is_locked(tmp_path / "run")
    (tmp_path / ".run.lock").touch()  # which a killed process leaves
    assert not is_locked(tmp_path / "run")
    with locked(tmp_path / "run"):
        pass
    assert names(tmp_path) == []


# Unpacking.


def make_zip(path: Path, members: dict[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for member, content in members.items():
            file.writestr(member, content)
    return path


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def test_wanted_members_lie_flat_in_a_fresh_folder(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"x/": b"", "x/a": b"A", "x/y/b": b"B", "c": b"C"})
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "stale").touch()
    count = unpack(archive, folder, members=lambda name: name != "c", max_bytes=2)
    assert count == 2
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {"a": b"A", "b": b"B"}
    assert names(tmp_path) == ["a.zip", "folder"]


def cut_short(content: bytes) -> bytes:
    return content[: len(content) // 2]


def changed_inside(content: bytes) -> bytes:
    return content[:100] + bytes(50) + content[150:]


def encrypted(content: bytes) -> bytes:
    # Bit 0 of the flags, at byte 6 of the file's header and byte 8 of the directory's.
    at = content.index(b"PK\1\2") + 8
    return content[:6] + b"\1" + content[7:at] + b"\1" + content[at + 1 :]


def lying_about_its_size(content: bytes) -> bytes:
    at = content.index(b"PK\1\2") + 24
    return content[:at] + (10).to_bytes(4, "little") + content[at + 4 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"<html>moved</html>",
        lambda content: b"",
        cut_short,
        changed_inside,
        encrypted,
        lying_about_its_size,
    ],
)
def test_a_damaged_zip_is_one_line_and_leaves_the_old_folder(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    archive = make_zip(tmp_path / "a.zip", {"x": CONTENT})
    archive.write_bytes(damage(archive.read_bytes()))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(DataError) as caught:
        unpack(archive, tmp_path / "folder", members=bool, max_bytes=10**6)
    assert str(caught.value).startswith(f"{archive}: damaged or not a zip (")
    assert str(caught.value).endswith("). Fetch it again.")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["a.zip", "folder"]
    assert names(tmp_path / "folder") == ["old"]


@pytest.mark.parametrize(
    "member",
    ["../x", "a/../../x", "/x", "..\\x", "a\\..\\..\\x", "\\x", "..", link("x"), link("a/x")],
    ids=str,
)
def test_a_member_that_leads_out_of_the_folder_is_refused(
    member: str | zipfile.ZipInfo, tmp_path: Path
) -> None:
    place = tmp_path / "inner"
    place.mkdir()
    archive = make_zip(place / "a.zip", {"good": b"good", member: b"/etc/passwd"})
    # Even where nobody asks for it: such an archive is not what it says it is.
    for wanted in (lambda name: True, lambda name: name == "good"):
        with pytest.raises(DataError, match="leads out of its folder; refused"):
            unpack(archive, place / "folder", members=wanted, max_bytes=10**6)
        assert names(place) == ["a.zip"]
    assert names(tmp_path) == ["inner"]


@pytest.mark.parametrize("other", ["y/a", "a", "y\\a"])
def test_two_wanted_members_of_one_name_are_refused(other: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("x/a", "A")
        with warnings.catch_warnings(action="ignore"):
            file.writestr(other, "B")
    with pytest.raises(DataError, match=r"'x/a' and .*a' would both be a; refused. Fetch the"):
        unpack(tmp_path / "a.zip", tmp_path / "folder", members=bool, max_bytes=10**6)
    assert names(tmp_path) == ["a.zip"]
    wanted = unpack(tmp_path / "a.zip", tmp_path / "folder", members="x/a".__eq__, max_bytes=10)
    assert wanted == 1


def test_the_room_that_the_wanted_members_need_is_checked_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_zip(tmp_path / "a.zip", {"x": bytes(600), "y": bytes(401), "z": bytes(10**5)})
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(MMNetError, match=r"folder: cannot be written: needs 1.0 kB, and .* 1.0 kB"):
        unpack(archive, tmp_path / "folder", members="xy".__contains__, max_bytes=10**6)
    assert names(tmp_path) == ["a.zip"]
    assert unpack(archive, tmp_path / "folder", members="x".__eq__, max_bytes=10**6) == 1


@pytest.mark.parametrize("count", [3, 30])
def test_unpacking_many_files_shows_how_far_it_is(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0)
    archive = make_zip(tmp_path / "a.zip", {str(number): b"x" for number in range(count)})
    unpack(archive, tmp_path / "folder", members=bool, max_bytes=100)
    assert ("unpacking: 30/30, " in capsys.readouterr().err) == (count == 30)


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"x": bytes(500_000), "y": bytes(500_001)})
    assert archive.stat().st_size < 2000
    with pytest.raises(DataError, match="unpacks to more than 1000000 bytes; refused"):
        unpack(archive, tmp_path / "folder", members=bool, max_bytes=10**6)
    assert names(tmp_path) == ["a.zip"]


def test_an_archive_that_is_not_there_names_the_command_that_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not found. Fetch it first: mmnet download refcoco\+"):
        unpack(tmp_path / "refcoco+.zip", tmp_path / "folder", members=bool, max_bytes=1)
    assert names(tmp_path) == []
