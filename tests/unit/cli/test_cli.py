"""The command line: help at once, and one line of advice for every mistake of a user."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mmnet.cli.parser import main
from mmnet.config.identity import Identity
from mmnet.config.paths import Paths
from mmnet.config.schema import Config
from mmnet.model import checkpoint
from mmnet.model.build import build_model
from support.tiny import ROOT, TINY, Tiny

COMMANDS = [
    *("shapes", "download", "prepare", "unpack-images", "download-clip", "pretrain"),
    *("train", "predict", "evaluate", "report", "mlflow-sync", "plan", "describe", "segment"),
]
RUN = ["--experiment", "refcoco_vit_b"]
SET = [argument for override in TINY for argument in ("--set", override)]


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of someone who has params.yaml and has run nothing yet."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    # A command sets these for its own process, which here is the tests'.
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return tmp_path


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail; return its one line, less the `mmnet: ` before it."""
    capsys.readouterr()
    assert main(list(arguments)) == 1
    output, error = capsys.readouterr()
    assert output == ""
    if error.startswith("No git revision"):  # of a training in a folder that is no clone
        error = error.partition("\n")[2]
    assert error.startswith("mmnet: ")
    assert error.count("\n") == 1
    return error.removeprefix("mmnet: ").rstrip()


def test_help_comes_at_once_and_needs_no_torch() -> None:
    script = f"""
import sys
from mmnet.cli.parser import main
for command in [[], *([name] for name in {COMMANDS})]:
    try:
        main([*command, "--help"])
    except SystemExit as stop:
        assert not stop.code
slow = {{"torch", "open_clip", "pandas", "numpy", "mlflow"}} & set(sys.modules)
assert not slow, slow
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("usage: mmnet") == 1 + len(COMMANDS)
    for command in COMMANDS:
        assert f"usage: mmnet {command} " in done.stdout


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"^    {command}\s", shown, flags=re.MULTILINE)


def test_a_mistake_ends_the_process_with_code_1_and_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmnet", "evaluate", *RUN],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "mmnet: params.yaml: not found. Run from the repository's root.\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "--experiment", "refcoco_vitb"], "Did you mean refcoco_vit_b?"),
        (["predict", "--experiment", "zzz"], "params.yaml: experiments has no 'zzz'. Known: "),
        (["evaluate", "--experiment", "zzz"], "params.yaml: experiments has no 'zzz'. Known: "),
        (["describe", "--experiment", "zzz"], "params.yaml: experiments has no 'zzz'. Known: "),
        (["train", *RUN, "--seed", "-1"], "seed is -1: should be greater than or equal to 0."),
        (["train", *RUN, "--seed", str(2**31)], f"seed is {2**31}: should be less than"),
        (["train", *RUN, "--params", "no.yaml"], "no.yaml: not found."),
        (["train", *RUN, "--params", "."], ".: cannot be read: Is a directory."),
        (["train", *RUN, "--set", "profile"], "--set profile: write KEY=VALUE, such as"),
        (["train", *RUN, "--set", "profile=papr"], "profiles has no 'papr'. Did you mean paper?"),
        (["train", *RUN, "--set", "seeds=[0"], "--set seeds=[0: not YAML: "),
        (["train", *RUN, "--set", "profiles.mini.train.epoch=3"], "Did you mean epochs?"),
        (["download", "coco"], "no archive 'coco'. Known: refcoco, refcoco+, refcocog, train20"),
        (["prepare", "coco"], "no dataset 'coco'. Known: refcoco, refcoco+, refcocog."),
        (["pretrain", "vit_h"], "no tower 'vit_h'. Known: vit_b, vit_l, rn50."),
        (
            ["pretrain", "vit_b", "--set", "profile=paper"],
            "profiles.paper.towers.vit_b.pretrained is 'openai', not 'captions'",
        ),
        (["shapes", "--set", "profile=paper"], "profile paper has no procedural benchmark"),
        (
            ["describe", *RUN, "--set", "profiles.mini.towers.vit_b.architecture=ViT-B-99"],
            "towers.vit_b.architecture is 'ViT-B-99': neither open_clip's nor one of ours. Did",
        ),
        # Each step before the one that it needs.
        (["download", "refcoco"], "refcoco.zip: no mirror has it: file:data/mini/mirror/refcoco"),
        (
            ["prepare", "refcoco+"],
            "data/mini/archives/refcoco+.zip: not found. Fetch it first: mmnet download refcoco+.",
        ),
        (
            ["unpack-images"],
            "data/mini/archives/train2014.zip: not found. Fetch it first: mmnet download",
        ),
        (
            ["pretrain", "vit_l"],
            "data/mini/refcoco+.parquet: not found. Make it first: mmnet prepare refcoco+.",
        ),
        (
            ["train", "--experiment", "refcocog_vit_b"],
            "data/mini/refcocog.parquet: not found. Make it first: mmnet prepare refcocog.",
        ),
        (
            ["predict", *RUN],
            "runs/mini/refcoco_vit_b/seed0/checkpoint.pt: not found. Train the experiment first.",
        ),
        (["predict", *RUN, "--checkpoint", "my.pt"], "my.pt: not found."),
        (
            ["evaluate", *RUN],
            "rows/mini/refcoco_vit_b/seed0.parquet: not found. Make it first: mmnet predict.",
        ),
        (["report", "table1"], "table1 (mini): no scores of refcoco_vit_b seed 0, refcoco_vit_l"),
        (["report", "table3"], "table3 (mini): no scores of nq_24 seed 0, nq_16 seed 0, nq_8 seed"),
        (["plan", "table9"], "no table 'table9'. Known: table1, table2, table3, table4."),
        (["plan", "--tflops", "0"], "--tflops 0: give the TFLOP/s that your GPU sustains, above"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_with_its_remedy(
    arguments: list[str], line: str, newcomer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line in mistake(capsys, *arguments)
    assert not [path for path in newcomer.rglob("*") if path.is_file() and is_result(path)]


def is_result(path: Path) -> bool:
    return path.name not in ("params.yaml", ".lock")


@pytest.fixture
def project(tiny: Tiny, newcomer: Path) -> Path:
    """A working folder whose data are prepared."""
    paths = Paths("mini")
    for name, path in tiny.tables.items():
        paths.table(name).parent.mkdir(parents=True, exist_ok=True)
        paths.table(name).symlink_to(path)
    paths.images.symlink_to(tiny.images)
    paths.manifest.symlink_to(tiny.manifest)
    return newcomer


@pytest.mark.parametrize("command", ["shapes", "download", "train"])
def test_a_file_where_a_folder_must_be_is_one_line(
    command: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (Paths("mini").mirror, Paths("mini").data / "archives", project / "runs"):
        path.touch()
    more = {"train": [*RUN, "--device", "cpu"], "download": ["refcoco"]}.get(command, [])
    line = mistake(capsys, command, *more, *SET)
    assert re.search(r"cannot be written: (Not a directory|File exists)\.", line)


def save_untrained(path: Path, config: Config) -> None:
    torch.manual_seed(0)
    model = build_model(config.model, config.tower, weights=None).state_dict()
    identity = Identity(values=config.training_values(), data={}, code={})
    checkpoint.save(path, {"model": model, "identity": identity.as_dict()})


def test_a_checkpoint_becomes_rows_and_scores(tiny: Tiny, project: Path) -> None:
    paths = Paths("mini")
    save_untrained(paths.run("refcoco_vit_b", 0).checkpoint, tiny.config)
    assert main(["predict", *RUN, *SET, "--device", "cpu"]) == 0
    assert main(["evaluate", *RUN, *SET]) == 0
    scores = json.loads(paths.run("refcoco_vit_b", 0).scores.read_text())
    assert list(scores["splits"]) == ["val", "testA", "testB"]


def test_an_interrupted_command_says_how_to_go_on(
    newcomer: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmnet.benchmark.scenes.write_mirror", interrupt)
    assert main(["shapes"]) == 130
    assert "interrupted" in capsys.readouterr().err
