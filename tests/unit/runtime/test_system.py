"""Operating systems: what is missing has a fallback, what is not supported is one line."""

import ast
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from mmnet.cli.parser import main
from mmnet.data import loader
from mmnet.data.dataset import evaluation_items, training_items
from mmnet.runtime import system
from mmnet.runtime.errors import MMNetError
from support.tiny import ROOT


def test_calls_that_a_system_lacks_have_a_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((os, "sched_getaffinity"), (os, "getuid"), (signal, "SIGUSR1")):
        monkeypatch.delattr(module, name, raising=False)
    monkeypatch.setenv("LOGNAME", "someone")
    assert system.cpu_count() == os.cpu_count()
    assert system.user_id() == "someone"
    assert system.stop_signals() == (signal.SIGTERM,)


def test_only_the_cpus_that_a_process_may_use_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 8}, raising=False)
    assert system.cpu_count() == 3


def test_no_other_module_makes_such_calls() -> None:
    calls = {"sched_getaffinity", "getuid", "SIGUSR1", "prctl", "fcntl"}
    callers = set()
    for path in (ROOT / "mmnet").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = {alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")}
            if calls & {*names, getattr(node, "attr", ""), getattr(node, "module", "")}:
                callers.add(path.name)
    assert callers == {"system.py"}


def test_windows_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["plan"]) == 1
    error = capsys.readouterr().err
    assert "WSL" in error
    assert error.count("\n") == 1


def test_images_are_read_where_processes_are_spawned(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "start_method", lambda: "spawn")  # as macOS does
    training = training_items(tiny.config, tiny.table, tiny.images)
    # A spawned process gets its items pickled.
    evaluation = evaluation_items(tiny.config, tiny.table, tiny.images, splits=["val"])
    assert len(pickle.loads(pickle.dumps(evaluation))) == len(evaluation)
    alone, ahead = (list(loader.read(training, batch_size=2, workers=n)) for n in (0, 1))
    assert len(ahead) == len(alone) > 0
    assert all((one[0] == other[0]).all() for one, other in zip(ahead, alone, strict=True))


def test_settings_that_the_shell_hands_down_do_not_reach_libraries(tmp_path: Path) -> None:
    """In a process of its own, as they are read when libraries are imported."""
    home = tmp_path / "home"
    home.write_text("no folder, so nothing can be written below it")
    config = tmp_path / "matplotlibrc"
    config.write_bytes(b"figure.dpi: \xff")
    code = (
        "from mmnet.runtime.system import use_own_settings; use_own_settings();"
        "import warnings; warnings.warn('one', UserWarning);"
        "import matplotlib.pyplot as plt; print(plt.get_backend());"
        "import os, sys, tempfile; temporary = tempfile.gettempdir();"
        "print(temporary, os.environ['XDG_CACHE_HOME'], os.environ['TMP'], sys.path[-1]);"
        "print(chr(0x2192))"
    )
    handed = {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "MATPLOTLIBRC": str(config),
        "HOME": str(home),
        "PYTHONWARNINGS": "error",
        "PYTHONIOENCODING": "latin-1",
        "TMPDIR": str(tmp_path / "nowhere"),
        "TMP": str(tmp_path / "nowhere"),
        "PYTHONPATH": str(tmp_path),
    }
    environment = {k: v for k, v in os.environ.items() if k not in ("XDG_CACHE_HOME",)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**environment, **handed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    backend, folders, arrow = done.stdout.splitlines()
    temporary, cache, windows, last = folders.split()
    assert windows == temporary
    assert last == str(tmp_path)
    assert backend.lower() == "agg"
    assert Path(temporary) != tmp_path / "nowhere"
    assert Path(cache).is_relative_to(temporary)
    assert arrow == "\\u2192"


def test_a_variable_that_a_library_refuses_is_a_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCH_LOGS", "x")
    error = ValueError('Invalid settings: "x".\nTry TORCH_LOGS="help".')
    line = str(system.fault_of_shell(error))
    assert line.startswith("TORCH_LOGS=x, ")
    assert "\n" not in line
    assert system.fault_of_shell(ValueError("of TORCH_LOGS2 and TORCH")) is None


def test_no_temporary_folder_is_a_line_with_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setenv("TMPDIR", "/full")
    with pytest.raises(MMNetError, match=r"^/full: .*TMPDIR"):
        system.use_own_settings()
