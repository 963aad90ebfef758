"""Portable arithmetic: chosen before a library is loaded, a part of what a run is, or labelled."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mmnet.cli.parser import main
from mmnet.runtime import portable
from mmnet.runtime.errors import MMNetError
from support.results import make_scores, params_of
from support.tiny import ROOT

FLAGS = "avx2 bmi1 bmi2 f16c fma abm movbe sse4_2"
needs_avx2 = pytest.mark.skipif(not portable.is_supported(), reason="this CPU has no AVX2")


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "expected"),
    [
        ("x86_64", f"vendor_id : AuthenticAMD\nflags\t\t: fpu {FLAGS}\n", True),
        ("x86_64", f"flags\t\t: fpu {FLAGS.replace('avx2', 'avx')}\n", False),
        ("aarch64", f"flags\t\t: {FLAGS}\n", False),
        ("x86_64", "processor\t: 0\n", False),
        ("x86_64", None, False),  # as on macOS
    ],
)
def test_a_cpu_is_supported_by_its_flags(
    machine: str,
    cpuinfo: str | None,
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    assert portable.is_supported(path) is expected


ASKS = """
import os, subprocess, sys
from mmnet.cli.parser import main
assert main(["describe", "--experiment", "nq_1", *sys.argv[1:]]) == 0
import torch
from numpy._core._multiarray_umath import __cpu_features__
child = subprocess.run(["env"], capture_output=True, text=True).stdout.splitlines()
beyond = [name for name in ("X86_V4", "AVX512_SPR") if __cpu_features__[name]]
print(torch.backends.cpu.get_cpu_capability(), beyond, "MKL_CBWR=COMPATIBLE" in child)
"""


@needs_avx2
@pytest.mark.parametrize("wanted", [True, False])
def test_a_command_chooses_before_any_library_is_loaded(wanted: bool) -> None:
    environment = {name: v for name, v in os.environ.items() if name not in portable.VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", ASKS, "--set", f"profiles.mini.portable={str(wanted).lower()}"],
        **{"cwd": ROOT, "env": environment, "capture_output": True, "text": True},
    )
    assert done.returncode == 0, done.stderr
    answer = done.stdout.splitlines()[-1]
    assert answer.endswith(str(wanted))
    if wanted:
        assert answer == "AVX2 [] True"


@needs_avx2
def test_a_library_that_is_loaded_already_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    portable.use()  # as conftest.py did before
    monkeypatch.delenv("MKL_CBWR")
    with pytest.raises(MMNetError, match="torch was imported"):
        portable.use()


def test_a_cpu_without_avx2_says_so_once_and_is_another_run_with_a_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmnet.report.tables.write import write_table

    texts, values = [], []
    for supported in (True, False):
        monkeypatch.setattr(portable, "is_supported", lambda found=supported: found)
        monkeypatch.setattr(portable, "use", lambda: None)
        params = params_of("mini")
        values.append(params.resolve("nq_1", 0).prediction_values()["portable"])
        write_table("table1", make_scores(params, tmp_path), tmp_path, params=params)
        texts.append((tmp_path / "table1.md").read_text())
        monkeypatch.chdir(ROOT)
        assert main(["plan", "table2"]) == 0
        assert capsys.readouterr().err.count("AVX2") == (not supported)
    assert values == [True, False]
    assert ["Not portable" in text for text in texts] == [False, True]


def test_on_a_gpu_portable_means_nothing() -> None:
    on_gpu, other = (
        params_of("paper", f"profiles.paper.portable={value}").resolve("nq_1", 0).training_values()
        for value in ("true", "false")
    )
    assert on_gpu == other
