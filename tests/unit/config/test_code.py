"""Which code shapes which results: every file has its place, and a change reruns what it must."""

import ast
import shutil
from pathlib import Path

import pytest

from mmnet.config import code
from mmnet.config.load import load_params
from mmnet.config.schema import Config
from mmnet.runtime import fingerprint
from support.tiny import ROOT

LAYERS = ("runtime", "config", "data", "benchmark", "model", "evaluate", "train")
"""Packages of which each file shapes numbers, or is known not to."""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package, hashed in place of ours."""
    copy = tmp_path / "mmnet"
    shutil.copytree(ROOT / "mmnet", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "PACKAGE", copy)
    monkeypatch.setattr(fingerprint, "PACKAGE", copy)
    return copy


@pytest.fixture(scope="module")
def runs() -> dict[str, Config]:
    params = load_params(ROOT / "params.yaml")
    return {name: params.resolve(name, 0) for name in params.experiments}


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def retrained(runs: dict[str, Config], before: dict[str, str]) -> set[str]:
    return {
        name for name, config in runs.items() if code.code_hash("train", config) != before[name]
    }


def test_every_file_is_listed_once_as_shaping_numbers_or_not(runs: dict[str, Config]) -> None:
    shaping = {path for rule in code.RULES for path in code.code(rule)}
    for config in runs.values():
        shaping |= {f"mmnet/{path}" for path in code.model_files(config)}
    shaping |= {f"mmnet/{path}" for files in code.HEADS.values() for path in files}
    harmless = {f"mmnet/{path}" for path in code._expanded(code.SHAPES_NO_NUMBER)}
    files = {
        str(path.relative_to(ROOT))
        for layer in LAYERS
        for path in (ROOT / "mmnet" / layer).rglob("*")
        if path.suffix in (".py", ".json") and path.name != "__init__.py"
    }
    unused_towers = {path for path in files if path.endswith(".json")} - shaping
    assert files - shaping - harmless - unused_towers == set()
    assert {path for path in (shaping | harmless) if not (ROOT / path).is_file()} == set()
    # `config/*` is harmless but for what shapes tables.
    assert shaping & harmless <= {"mmnet/config/tables.py"}


def test_a_reworded_message_or_a_new_setting_of_mlflow_retrains_nothing(
    package: Path, runs: dict[str, Config]
) -> None:
    before = {name: code.code_hash("train", config) for name, config in runs.items()}
    change(package / "train/loop.py", "Lower train.lr", "Decrease train.lr")
    change(package / "train/run_state.py", 'f"resuming after', 'f"continuing after')
    change(package / "model/mmnet.py", '"""MMNet as', '"""MMNet, as')
    enabled = "    enabled: bool\n"
    change(package / "config/profile.py", enabled, f"{enabled}    team: str\n")
    change(package / "runtime/progress.py", "LINE_EVERY = 10.0", "LINE_EVERY = 30.0")
    with (package / "tracking" / "live.py").open("a") as file:
        file.write("\nNEW = 1\n")
    assert retrained(runs, before) == set()


@pytest.mark.parametrize(
    ("file", "users"),
    [
        ("model/decoder.py", lambda config: True),
        ("data/transforms.py", lambda config: True),
        ("train/recipe.py", lambda config: True),
        ("model/backbone_resnet.py", lambda config: config.tower_name == "rn50"),
        ("model/backbone_vit.py", lambda config: config.tower_name != "rn50"),
        ("model/mask_decoder.py", lambda config: config.model.mmp),
        ("model/estimator.py", lambda config: config.model.mqe or not config.model.f_vg),
        ("model/ablations.py", lambda config: "no_" in config.experiment),
        ("report/tables/table1.py", lambda config: False),
        ("benchmark/scenes.py", lambda config: False),
    ],
)
def test_a_changed_layer_retrains_exactly_the_runs_that_use_it(
    file: str, users: object, package: Path, runs: dict[str, Config]
) -> None:
    before = {name: code.code_hash("train", config) for name, config in runs.items()}
    with (package / file).open("a") as source:
        source.write("\nNEW = 1\n")
    assert callable(users)
    assert retrained(runs, before) == {name for name, config in runs.items() if users(config)}


def test_a_towers_definition_retrains_the_runs_on_it(
    package: Path, runs: dict[str, Config]
) -> None:
    before = {name: code.code_hash("train", config) for name, config in runs.items()}
    with (package / "model/towers/mini-vit-l.json").open("a") as file:
        file.write("\n")
    assert retrained(runs, before) == {name for name in runs if name.endswith("vit_l")}
    assert code.code_hash("pretrain", tower="mini-vit-l") != code.code_hash("pretrain")


def test_a_template_remakes_what_is_written_with_it(package: Path) -> None:
    before = {rule: code.code_hash(rule) for rule in code.RULES}
    with (package / "report/templates/table.tex.j2").open("a") as file:
        file.write("\n")
    changed = {rule for rule in code.RULES if code.code_hash(rule) != before[rule]}
    assert changed == {"tables", "claims", "figures", "pages"}


def test_the_papers_towers_use_the_backbone_of_their_kind() -> None:
    assert code.tower_files("RN101-quickgelu") == ["model/backbone_resnet.py"]
    assert code.tower_files("ViT-L-14-quickgelu") == ["model/backbone_vit.py"]


ENTRIES = {
    "draw_scenes": ["benchmark/scenes.py"],
    "prepare": ["data/prepare.py"],
    "pretrain": ["train/pretrain.py"],
    "train": ["train/loop.py"],
    "predict": ["evaluate/predict.py"],
    "preview": ["evaluate/preview.py"],
    "score": ["evaluate/metrics.py"],
    "examples": ["evaluate/examples.py"],
    "queries": ["evaluate/queries.py"],
    "tables": ["report/tables/write.py"],
    "claims": ["report/claims/write.py"],
    "figures": ["report/figures"],
    "pages": ["report/pages"],
}
"""Rule -> the files, or folder, whose functions its command calls."""


def imported(path: Path) -> set[Path]:
    """The files of mmnet that a file imports, outside `if TYPE_CHECKING:`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("mmnet"):
            continue
        base = ROOT / Path(*(node.module or "").split("."))
        options = [base.with_suffix(".py"), *(base / f"{alias.name}.py" for alias in node.names)]
        found |= {option for option in options if option.is_file()}
    return found


@pytest.mark.parametrize("rule", code.RULES)
def test_a_rule_lists_every_file_that_its_command_can_reach(
    rule: str, runs: dict[str, Config]
) -> None:
    listed = {ROOT / path for path in code.code(rule)}
    if rule in ("train", "predict", "preview", "examples", "queries"):  # a run's own parts besides
        listed |= {ROOT / path for config in runs.values() for path in code.code(rule, config)}
    harmless = {ROOT / "mmnet" / path for path in code._expanded(code.SHAPES_NO_NUMBER)}
    waiting = [
        path
        for entry in ENTRIES[rule]
        for place in [ROOT / "mmnet" / entry]
        for path in (place.rglob("*.py") if place.is_dir() else [place])
    ]
    reached: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in reached and (path in listed or path not in harmless):
            reached.add(path)
            waiting += imported(path)
    missing = {str(path.relative_to(ROOT)) for path in reached - listed}
    assert {path for path in missing if not path.endswith("__init__.py")} == set()


@pytest.mark.parametrize("head", code.HEADS)
def test_a_head_lists_every_file_that_it_is_made_of(head: str) -> None:
    """But for the backbones, of which a tower has one, and what shapes the items of any run."""
    reached: set[Path] = set()
    waiting = [ROOT / "mmnet" / "model" / "heads" / f"{head}.py"]
    while waiting:
        path = waiting.pop()
        ours = path.is_relative_to(ROOT / "mmnet" / "model") and "backbone_" not in path.name
        if ours and path not in reached:
            reached.add(path)
            waiting += imported(path)
    files = {str(path.relative_to(ROOT / "mmnet")) for path in reached}
    assert files | {"model/clip.py"} == {*code.HEADS[head]}  # CLIP is what it is given
