"""The source tree: imports flow one way, and each equation is found by its number."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.tiny import ROOT

SOURCES = sorted((ROOT / "mmnet").rglob("*.py"))
LAYERS = [
    *("runtime", "config", "data", "benchmark", "model", "evaluate"),
    *("train", "report", "tracking", "use", "pipeline", "cli"),
]
"""A package imports only from itself and those before it; train and report know not each other."""


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


@pytest.mark.parametrize("layer", LAYERS)
def test_a_package_imports_only_from_those_before_it(layer: str) -> None:
    allowed = {*LAYERS[: LAYERS.index(layer) + 1]}
    allowed -= {"train"} if layer == "report" else set()
    files = sorted((ROOT / "mmnet" / layer).rglob("*.py"))
    assert files
    for path in files:
        beyond = {name for name in imports(path) if name.split(".")[0] not in allowed}
        assert not beyond, f"{path} imports {beyond}"


def test_every_package_has_its_place() -> None:
    packages = {path.parent.name for path in (ROOT / "mmnet").glob("*/__init__.py")}
    assert packages == set(LAYERS)
    assert {path.name for path in (ROOT / "mmnet").glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize(
    ("tool", "layers"),
    [
        ("torch", ("config", "report")),
        ("mlflow", LAYERS[: LAYERS.index("tracking")]),
        ("snakemake", LAYERS[: LAYERS.index("pipeline")]),
        ("dvc", LAYERS[: LAYERS.index("pipeline")]),
    ],
)
def test_tools_are_known_only_where_they_belong(tool: str, layers: tuple[str, ...]) -> None:
    for layer in layers:
        for path in (ROOT / "mmnet" / layer).rglob("*.py"):
            found = re.search(rf"^\s*(from|import) {tool}\b", path.read_text(), flags=re.MULTILINE)
            assert not found, f"{path} imports {tool}"


@pytest.mark.parametrize(
    "module",
    [
        *("mmnet.cli.parser", "mmnet.report.tables.write", "mmnet.report.pages.data"),
        "mmnet.report.supplied",
        *("mmnet.evaluate.metrics", "mmnet.data.prepare", "mmnet.pipeline.workflow"),
    ],
)
def test_what_needs_no_torch_does_not_import_it(module: str) -> None:
    script = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


def test_no_file_is_longer_than_one_can_read() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in SOURCES}
    assert {path: lines for path, lines in lengths.items() if lines > 300} == {}


@pytest.mark.parametrize("number", range(1, 17))
def test_each_equation_is_cited_where_it_is_computed(number: int) -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "mmnet" / "model").glob("*.py"))
    # At the end of the line that computes it, or heading what does: `# Eq. 9`.
    assert re.search(rf"#.*\bEq\. {number}\b", code), f"no line is marked # Eq. {number}"


def test_no_equation_is_cited_that_the_paper_does_not_have() -> None:
    for path in SOURCES:
        for number in re.findall(r"\bEqs?\. ?(\d+)", path.read_text()):
            assert 1 <= int(number) <= 16, f"{path} cites Eq. {number}"


def test_no_test_imports_another_test() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) test_", path.read_text(), flags=re.MULTILINE), path
