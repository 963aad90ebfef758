"""The source tree: imports flow one way, each equation is found by its number, code has a hash."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmnet.runtime import fingerprint as code_version
from support.tiny import ROOT

SOURCES = sorted((ROOT / "mmnet").rglob("*.py"))

ORDER = ["data", "model", "evaluate", "train", "report"]
"""A package may import from those before it, and from the modules beside it that all share."""
SHARED = {"code_version", "config", "errors", "files", "layout", "processes", "progress"}


def imports(path: Path) -> set[str]:
    """The modules of mmnet that a file names in imports, dotted, without `mmnet.`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.removeprefix("mmnet.") for name in names if name.startswith("mmnet.")}
    return found


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_only_from_its_left(package: str) -> None:
    allowed = {*ORDER[: ORDER.index(package) + 1], *SHARED}
    files = sorted((ROOT / "mmnet" / package).glob("*.py"))
    assert files
    for path in files:
        beyond = {name for name in imports(path) if name.split(".")[0] not in allowed}
        assert not beyond, f"{path} imports {beyond}"


def test_what_all_share_imports_no_package() -> None:
    for name in SHARED:
        beyond = {n for n in imports(ROOT / "mmnet" / f"{name}.py") if n.split(".")[0] in ORDER}
        assert not beyond, f"{name} imports {beyond}"


def test_every_package_has_its_place() -> None:
    packages = {path.parent.name for path in (ROOT / "mmnet").glob("*/__init__.py")}
    assert packages == set(ORDER)


@pytest.mark.parametrize(
    "module",
    ["mmnet.__main__", "mmnet.report.pages.data", "mmnet.evaluate.metrics", "mmnet.data.prepare"],
)
def test_what_needs_no_torch_does_not_import_it(module: str) -> None:
    script = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("number", range(1, 17))
def test_each_equation_is_cited_where_it_is_computed(number: int) -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "mmnet" / "model").glob("*.py"))
    # At the end of the line that computes it, or heading what does: `# Eq. 9`.
    assert re.search(rf"#.*\bEq\. {number}\b", code), f"no line is marked # Eq. {number}"


def test_no_equation_is_cited_that_the_paper_does_not_have() -> None:
    for path in SOURCES:
        for number in re.findall(r"\bEqs?\. ?(\d+)", path.read_text()):
            assert 1 <= int(number) <= 16, f"{path} cites Eq. {number}"


# The hash of what a rule's code can reach.


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package, hashed in place of ours."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "mmnet", tmp_path / "mmnet", ignore=ignore)
    monkeypatch.setattr(code_version, "ROOT", tmp_path)
    return tmp_path / "mmnet"


def version(module: str) -> str:
    code_version._imports.cache_clear()
    code_version._essence.cache_clear()
    return code_version.code_version(module)


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_copy_has_the_hash_of_the_original(package: Path) -> None:
    copied = version("mmnet.train.loop")
    code_version.ROOT = ROOT
    assert version("mmnet.train.loop") == copied


def test_comments_docstrings_and_layout_do_not_count(package: Path) -> None:
    before = version("mmnet.train.loop")
    path = package / "data" / "transforms.py"
    change(path, '"""Resize', '"""Bring')
    change(path, "def place(", "# A comment.\n\n\ndef place(")
    change(path, '    """Where an image', '    """The place where an image')
    change(path, "    if resize ==", "    # Why.\n    if resize ==")
    change(path, "(1 - (positions", "(\n        1 - (positions")
    assert version("mmnet.train.loop") == before
    # A docstring is one wherever it stands: here, under the field that it explains.
    change(package / "config.py", '"""N_q; Table 2 peaks at 24."""', '"""N_q."""')
    assert version("mmnet.train.loop") == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("train/step.py", "fused=True", "fused=False"),
        # Two imports away, and through `from mmnet.model import checkpoint`.
        ("data/transforms.py", "0.48145466", "0.48145467"),
        ("model/checkpoint.py", "weights_only=True", "weights_only=False"),
        ("model/query_generator.py", "softmax(-1)", "softmax(1)"),
    ],
)
def test_code_that_a_module_reaches_counts(package: Path, file: str, old: str, new: str) -> None:
    before = version("mmnet.train.loop")
    change(package / file, old, new)
    assert version("mmnet.train.loop") != before


def test_code_that_a_module_does_not_reach_does_not_count(package: Path) -> None:
    before = version("mmnet.train.loop"), version("mmnet.data.prepare")
    for file in ("report/tables.py", "data/shapes.py", "model/describe.py", "commands.py"):
        with (package / file).open("a") as source:
            source.write("\nNEW = 1\n")
    assert (version("mmnet.train.loop"), version("mmnet.data.prepare")) == before
    with (package / "model" / "mmnet.py").open("a") as source:
        source.write("\nNEW = 1\n")
    assert version("mmnet.train.loop") != before[0]
    assert version("mmnet.data.prepare") == before[1]


def test_a_module_imported_by_its_dotted_name_counts(package: Path) -> None:
    (package / "data" / "prepare.py").write_text("import mmnet.data.shapes\n")
    before = version("mmnet.data.prepare")
    change(package / "data" / "shapes.py", "0.6", "0.7")
    assert version("mmnet.data.prepare") != before


def test_every_rule_hashes_a_module_that_exists() -> None:
    rules = "\n".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    modules = re.findall(r'code_version\("([\w.]+)"\)', rules)
    assert len(modules) >= 5
    for module in modules:
        assert len(code_version.code_version(module)) == 16
