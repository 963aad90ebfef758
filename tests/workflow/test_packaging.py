"""What installs mmnet: pyproject.toml, both locks and environment.yml say the same."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mmnet
from support.tiny import ROOT

LOCKS = ("requirements.lock", "requirements-dev.lock")


def lock_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", ROOT / ".ci" / "lock.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOCK = lock_script()


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(lock: str) -> dict[str, str]:
    """Name → version; one version a name."""
    found: dict[str, str] = {}
    for pin, _ in LOCK.entries((ROOT / lock).read_text()):
        name = canonicalize_name(pin.name)
        assert name not in found, f"{lock}: {name} is locked twice"
        version = re.fullmatch(r"==([^,*]+)", str(pin.specifier))
        assert version is not None, f"{lock}: {pin} is no pin"
        found[name] = version[1]
    return found


def assert_locked(requirements: list[str], lock: str) -> None:
    locked = pins(lock)
    for requirement in map(Requirement, requirements):
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{lock} lacks {requirement}: run make lock"
        assert requirement.specifier.contains(version), f"{lock} has {version}, not {requirement}"


def test_locks_satisfy_pyproject() -> None:
    metadata = project()["project"]
    assert_locked(metadata["dependencies"], "requirements.lock")
    for extra in metadata["optional-dependencies"].values():
        # `dev` takes the other extras by our own name.
        assert_locked([r for r in extra if not r.startswith("mmnet[")], "requirements-dev.lock")
    assert_locked(metadata["dependencies"], "requirements-dev.lock")


def test_the_lock_holds_what_builds_us() -> None:
    # `pip install --no-build-isolation -e .` needs no network.
    assert_locked(project()["build-system"]["requires"], "requirements.lock")


def test_dev_lock_is_the_lock_and_more() -> None:
    locked, dev = pins("requirements.lock"), pins("requirements-dev.lock")
    assert locked.items() < dev.items()


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_a_hash_and_no_host_is_named(lock: str) -> None:
    text = (ROOT / lock).read_text()
    for pin, block in LOCK.entries(text):
        assert re.search(r"^    --hash=sha256:[0-9a-f]{64}", block, flags=re.MULTILINE), pin
    assert not re.search(r"https?:|file:|--(extra-)?index-url|--find-links|--trusted-host", text)


@pytest.mark.parametrize("lock", LOCKS)
def test_no_pin_is_for_an_unsupported_python(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert LOCK.prune(text) == text


def test_pruning_drops_unsupported_pythons_and_systems_and_nothing_else() -> None:
    def pin(marker: str) -> str:
        return f"a==1 ; {marker} \\\n    --hash=sha256:0\n    # via b\n"

    kept = [pin(f"python_full_version >= '3.{minor}'") for minor in range(11, 15)]
    kept += [pin("python_full_version < '3.12'"), pin("sys_platform == 'win32'"), "c==2 \\\n"]
    dropped = [
        pin(marker)
        for marker in (
            "python_full_version >= '3.15'",
            "python_full_version < '3.11'",
            "sys_platform == 'emscripten'",
        )
    ]
    assert LOCK.prune("".join([dropped[0], *kept, *dropped])) == "".join(kept)


def test_the_same_pythons_are_supported_everywhere() -> None:
    pythons = ["3.11", "3.12", "3.13", "3.14"]
    assert list(LOCK.PYTHONS) == pythons
    metadata = project()["project"]
    supported = Requirement(f"python{metadata['requires-python']}").specifier
    assert [f"3.{minor}" for minor in range(20) if f"3.{minor}" in supported] == pythons
    classified = re.findall(r"Python :: (3\.\d+)", "\n".join(metadata["classifiers"]))
    assert classified == pythons


def claiming(path: Path, version: str) -> None:
    """Make a stand-in for a Python, that claims its version to the Makefile's program."""
    claim = f"import sys; sys.version_info = ({version.replace('.', ', ')}, 0); exec(sys.argv[1])"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{claim}" "$2"\n')
    path.chmod(0o755)


def make(folder: Path, *arguments: str, **shell: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-f", str(ROOT / "Makefile"), *arguments]
    environment = os.environ | shell
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("version", ["3.10", "3.9", "3.15", None])
def test_make_refuses_an_unsupported_python_before_it_installs(
    version: str | None, tmp_path: Path
) -> None:
    for lock in ("requirements.lock", "pyproject.toml"):
        (tmp_path / lock).touch()
    python = tmp_path / "python"
    if version:
        claiming(python, version)
    refused = make(tmp_path, "table1", f"PYTHON={python}")
    assert refused.returncode
    assert f"PYTHON={python} is not Python" in refused.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A checkout with a .venv whose programs are stand-ins, in a folder with an odd name."""
    checkout = tmp_path / """it's {here} é $x "q" `y`"""
    (checkout / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "link.py", checkout / ".ci")
    (checkout / "mmnet").mkdir()
    venv = checkout / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    for file in ("requirements.lock", "pyproject.toml", ".venv/installed", "mmnet/__init__.py"):
        (checkout / file).touch()
    program = "import os, sys, mmnet; print([sys.prefix, mmnet.__path__[0], *os.environ])"
    (venv / "bin" / "snakemake").write_text(f"#!{venv}/bin/python\n{program}\n")
    (venv / "bin" / "snakemake").chmod(0o755)
    subprocess.run([venv / "bin" / "python", ".ci/link.py", "."], cwd=checkout, check=True)
    return checkout


def test_a_moved_checkout_works_without_the_network_whatever_the_shell_hands_down(
    installed: Path, tmp_path: Path
) -> None:
    handed = {"PYTHONHOME": "/x", "PYTHONPATH": "/x", "PYTHONINSPECT": "1", "PIP_TARGET": "/x"}
    handed |= {"SNAKEMAKE_PROFILE": "none", "PYTHONHASHSEED": "x"}
    made_here = make(installed, "table1", **handed)
    assert "adapting" not in made_here.stdout
    there = installed.rename(tmp_path / "there")
    for expected in (True, False):  # to be adapted
        done = make(there, "table1", **handed)
        assert done.returncode == 0, done.stderr
        assert ("adapting" in done.stdout) == expected
        (found,) = re.findall(r"^\[.*\]$", done.stdout, re.MULTILINE)
        prefix, mmnet, *environment = ast.literal_eval(found)
        assert [Path(prefix), Path(mmnet)] == [there / ".venv", there / "mmnet"]
        assert not handed.keys() & set(environment)
    refused = make(shutil.copytree(there, tmp_path / "a:b", symlinks=True), "table1")
    assert "a:b: PATH cannot" in refused.stderr
    copied = shutil.copytree(there, tmp_path / "copied", symlinks=True)
    assert "adapting" in make(copied, "table1").stdout
    assert made_here.returncode == 0, made_here.stderr


def test_a_venv_is_made_again_by_another_python_and_kept_where_that_fails(
    installed: Path, tmp_path: Path
) -> None:
    again = "installing again"
    assert again not in make(installed, "-n", "table1", f"PYTHON={sys.executable}").stdout
    claiming(tmp_path / "python", "3.12")
    assert again in make(installed, "-n", "table1", f"PYTHON={tmp_path}/python").stdout
    for python in (installed / ".venv" / "bin").glob("python*"):
        python.unlink()
        python.symlink_to("/gone/python3")
    lock = f"no-such-package==0 --hash=sha256:{'0' * 64}\n"
    (installed / "requirements.lock").write_text(lock)
    failed = make(installed, "table1", PIP_NO_INDEX="1")
    assert failed.returncode
    assert again in failed.stdout
    assert "old .venv is back" in failed.stderr
    assert (installed / ".venv" / "bin" / "snakemake").exists()
    assert not (installed / ".venv.old").exists()


def test_make_refuses_settings_of_snakemake_that_are_not_there(tmp_path: Path) -> None:
    assert "profiles/slrum" in make(tmp_path, "-n", "all", "WORKFLOW_PROFILE=profiles/slrum").stderr


def test_make_lists_the_targets_for_a_mistyped_one(tmp_path: Path) -> None:
    refused = make(tmp_path, "tabel1")
    assert refused.returncode == 2
    assert "no target tabel1" in refused.stderr
    assert "\ntable1 " in refused.stderr


def test_make_needs_no_conda() -> None:
    assert "conda" not in "".join(re.findall(r"\n\t.*", (ROOT / "Makefile").read_text()))


@pytest.mark.parametrize(
    ("versions", "chosen"),
    [
        ({"python3": "3.10"}, ""),
        ({"python3": "3.15"}, ""),
        ({"python3": "3.13"}, "python3"),
        ({"python3": "3.10", "python3.14": "3.14"}, "python3.14"),
        ({"python3.14": "3.14", "python3.11": "3.11"}, "python3.11"),
    ],
)
def test_make_takes_a_supported_python_of_the_path(
    versions: dict[str, str], chosen: str, tmp_path: Path
) -> None:
    for name, version in versions.items():
        claiming(tmp_path / name, version)
    done = subprocess.run(
        [shutil.which("make") or "make", "-sf", "-", "nothing"],
        input=f"include {ROOT / 'Makefile'}\n$(info $(PYTHON))\nnothing: ;\n",
        env={"PATH": f"{tmp_path}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == chosen, done.stderr


def test_environment_yml_holds_the_locks_versions() -> None:
    text = (ROOT / "environment.yml").read_text()
    assert text == LOCK.conda_environment((ROOT / "requirements.lock").read_text())
    environment = yaml.safe_load(text)
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    python, pip, packages = environment["dependencies"]
    assert pip == "pip"
    assert python == "python=3.11"
    installed = dict(package.split("==") for package in packages["pip"])
    locked = pins("requirements.lock")
    assert installed.items() <= locked.items()
    # What is left out is for other systems.
    assert set(locked) - set(installed) == {"pyreadline3", "pywin32", "tzdata", "waitress"}


def test_versions_and_licence_agree() -> None:
    metadata = project()["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == mmnet.__version__
    assert citation["license"] == metadata["license"] == "Apache-2.0"
    assert citation["authors"] == [{"name": "The mmnet maintainers"}]
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


def test_citation_names_the_paper() -> None:
    (paper,) = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    assert paper["title"] == "MMNet: Multi-Mask Network for Referring Image Segmentation"
    authors = [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]]
    assert authors == ["Yichen Yan", "Xingjian He", "Wenxuan Wang", "Jing Liu"]
    assert "2305.14969" in paper["url"]


def test_ci_entry_is_executable() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
