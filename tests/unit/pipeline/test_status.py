"""What `mmnet status` says of runs, and accepting a finished one as it is."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mmnet.cli.parser import main
from mmnet.config.identity import Identity, training_identity
from mmnet.config.load import load_params
from mmnet.config.paths import Paths, RunPaths, WorkPaths
from mmnet.model import checkpoint
from mmnet.runtime.files import checksum
from mmnet.runtime.fingerprint import PACKAGE
from mmnet.train import loop
from support.tiny import Tiny

RUN, OTHER = "refcoco_vit_b", "refcoco_vit_l"
LR = "profiles.mini.train.lr=0.003"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
CHANGED = "train.lr 0.0005 -> 0.003"
THREE = "profiles.mini.train.epochs=3"


def identity_of(*overrides: str) -> Identity:
    params = load_params(Path("params.yaml"), [*overrides])
    config = params.resolve(RUN, 0)
    return training_identity(config, Paths("mini").inputs(config))


def work_of(*overrides: str) -> WorkPaths:
    return published().work(identity_of(*overrides))


def published() -> RunPaths:
    return Paths("mini").run(RUN, 0)


def fit(*overrides: str) -> None:
    """Train as `mmnet train` does in this folder."""
    config = load_params(Path("params.yaml"), [*overrides]).resolve(RUN, 0)
    inputs, identity = Paths("mini").inputs(config), identity_of(*overrides)
    loop.fit(config, identity, inputs=inputs, run=published(), device=torch.device("cpu"))


def interrupted_in_epoch(number: int) -> Callable[..., None]:
    train_one_epoch = loop.train_one_epoch

    def interrupted(state: Any, *arguments: Any) -> None:
        if state.epoch + 1 == number:
            raise KeyboardInterrupt
        train_one_epoch(state, *arguments)

    return interrupted


def sets(overrides: tuple[str, ...]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one of two runs finished."""
    folder = tmp_path_factory.mktemp("trained")
    values = tiny.params.model_dump(mode="json")
    values["experiments"] = {name: values["experiments"][name] for name in (RUN, OTHER)}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    data = folder / "data" / "mini"
    data.mkdir(parents=True)
    for name, table in tiny.tables.items():
        shutil.copy(table, data / f"{name}.parquet")
    shutil.copytree(tiny.images, data / "images")
    shutil.copy(tiny.images.with_suffix(".tsv"), data / "images.tsv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit()
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and the working directory."""
    shutil.copytree(trained, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def line(project: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return what status says of the run, or the line that begins with another word."""

    def line(*overrides: str, start: str = RUN) -> str:
        assert main(["status", *sets(overrides)]) == 0
        lines = capsys.readouterr().out.splitlines()
        found = next(text for text in lines if text.startswith(start))
        return re.sub(" +", " ", found)

    return line


def test_finished_published_or_not_and_missing_with_what_it_needs(line: Callable[..., str]) -> None:
    assert line() == f"{RUN} 0 finished"
    assert line(start=OTHER) == f"{OTHER} 0 missing needs clip/mini/vit_l.pt"
    shutil.rmtree(published().folder)
    assert line().startswith(f"{RUN} 0 finished not published")
    work_of().best.unlink()
    assert line() == f"{RUN} 0 missing"


def test_changed_values_and_data_are_named_the_first_few_of_them(line: Callable[..., str]) -> None:
    assert line(LR) == f"{RUN} 0 stale {CHANGED}"
    many = [f"profiles.mini.model.{key}=32" for key in ("width", "ffn", "num_queries")]
    assert re.search(r"model.width 16 -> 32; .*and 2 more", line(LR, THREE, *many))
    assert line("profiles.mini.evaluate.threshold=0.4") == f"{RUN} 0 finished"
    shutil.copy("data/mini/refcocog.parquet", "data/mini/refcoco.parquet")
    assert line() == f"{RUN} 0 stale data: table changed"


def test_changed_code_is_named_and_a_reworded_message_is_none(
    line: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "mmnet"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    for module in ("runtime.fingerprint", "config.code"):
        monkeypatch.setattr(f"mmnet.{module}.PACKAGE", package)
    reworded, layer = package / "train" / "loop.py", package / "model" / "decoder.py"
    text = reworded.read_text()
    reworded.write_text(text.replace("this training is finished", "finished already"))
    assert reworded.read_text() != text
    assert line() == f"{RUN} 0 finished"
    layer.write_text(f"{layer.read_text()}\nWIDER = 2\n")
    assert line() == f"{RUN} 0 stale mmnet/model/decoder.py changed"


def test_without_inputs_files_say_what_they_can(line: Callable[..., str]) -> None:
    Path("data/mini/refcoco.parquet").unlink()
    assert line() == f"{RUN} 0 finished not compared, since not found: data/mini/refcoco.parquet"
    assert line(LR) == f"{RUN} 0 stale {CHANGED}"
    shutil.rmtree("runs")
    assert line() == f"{RUN} 0 missing needs data/mini/refcoco.parquet"


def test_an_interrupted_training_and_one_under_way(
    line: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_one_epoch", interrupted_in_epoch(2))
        with pytest.raises(KeyboardInterrupt):
            fit(THREE)
    work = work_of(THREE)
    size = sum(path.stat().st_size for path in work.folder.glob("*.pt"))
    words = f"{RUN} 0 interrupted epoch 2/3, {size / 1e6:.1f} MB"
    assert line(THREE) == words
    # Its own values are others' now: it is neither forgotten nor counted as this run's.
    assert line() == f"{RUN} 0 finished"
    other = f"interrupted, epoch 2/3 {size / 1e6:.1f} MB train.epochs 3 -> 2"
    assert line(start=str(work.folder)).endswith(other)
    assert main(["status", "--accept", RUN, *sets((THREE,))]) == 1
    assert str(work.folder) in capsys.readouterr().err
    assert (work.last.exists(), work.finished.exists()) == (True, False)
    # A third of the time is behind it.
    work.progress.write_text(json.dumps({"epochs": 3, "epoch": 1, "steps": 0, "seconds": 3600}))
    holding = (
        "import sys; from pathlib import Path; from mmnet.runtime.files import locked\n"
        "with locked(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holding, str(work.folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=pipe, stdout=pipe) as child:
        child.stdout.readline()  # type: ignore[union-attr]
        assert line(THREE) == f"{RUN} 0 training epoch 2/3, 2.0 h left"
        child.send_signal(signal.SIGKILL)
    assert line(THREE) == words  # the lock's file is still there


def test_time_left_is_measured_where_it_can_be_and_else_from_flops(
    line: Callable[..., str],
) -> None:
    def left(*overrides: str) -> str:
        return line(*overrides, start="Left to train")

    assert re.search(r"\(1 at 40 TFLOP/s", left())  # the other run's tower has not been measured
    progress = {"epochs": 2, "epoch": 2, "steps": 0, "seconds": 1800}
    work_of().progress.write_text(json.dumps(progress))
    only = f"experiments={{{RUN}: {{tables: [table1], dataset: refcoco, tower: vit_b}}}}"
    # Three epochs of 900 s.
    assert left(only, LR, THREE).startswith("Left to train: 45.0 min, ")
    assert re.search("1 by measured.*1 at 40 TFLOP/s", left(LR))
    assert line(only, start="Nothing is left")


def test_nothing_left_needs_no_torch_and_tables_choose_runs(project: Path) -> None:
    script = (
        "import sys; from mmnet.cli.parser import main; code = main(sys.argv[1:])\n"
        "print({'torch', 'pandas'} & {*sys.modules}); sys.exit(code)"
    )
    tables = (f"experiments.{RUN}.tables=[table2]", f"experiments.{OTHER}.tables=[table1]")
    result = subprocess.run(
        [sys.executable, "-c", script, "status", "table2", *sets(tables)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert RUN in result.stdout
    assert OTHER not in result.stdout
    assert result.stdout.splitlines()[-1] == "set()"


def test_inputs_that_runs_share_are_hashed_once(
    line: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(
        "mmnet.pipeline.status.checksum", lambda path: hashed.append(path) or checksum(path)
    )
    line("seeds=[0, 1]")
    assert sorted(hashed) == [Path("data/mini/images.tsv"), Path("data/mini/refcoco.parquet")]


def test_an_accepted_run_is_finished_on_record_and_not_trained_again(
    line: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, before = identity_of(), published().metrics.read_bytes()
    weights = checkpoint.load(published().checkpoint)["model"]
    monkeypatch.setattr(loop, "train_one_epoch", interrupted_in_epoch(1))
    with pytest.raises(KeyboardInterrupt):
        fit(LR)  # it would be trained again
    capsys.readouterr()
    # That one run is refused does not keep another from being accepted.
    assert main(["status", "--accept", OTHER, f"{RUN}/seed0", *sets((LR,))]) == 1
    accepted, refused = capsys.readouterr().err.splitlines()
    assert CHANGED in accepted
    assert OTHER in refused
    why = f"accepted: {CHANGED}"
    assert why in line(LR)
    assert main(["status", "--accept", RUN, *sets((LR,))]) == 1  # it is waiting to be published
    assert str(work_of(LR).folder) in capsys.readouterr().err
    fit(LR)
    assert line(LR) == f"{RUN} 0 finished {why}"
    record = {"from": old.digest, "differences": [CHANGED]}
    assert json.loads(published().identity.read_text())["accepted"] == [record]
    config = load_params(Path("params.yaml"), [LR]).resolve(RUN, 0)
    content = checkpoint.load_trained(published().checkpoint, config)
    assert all(torch.equal(content["model"][name], weights[name]) for name in weights)
    assert published().metrics.read_bytes() == before
    # Once more: the record grows. And the run that was trained is still there for its own values.
    assert main(["status", "--accept", RUN, *sets((LR, THREE))]) == 0
    fit(LR, THREE)
    assert len(json.loads(published().identity.read_text())["accepted"]) == 2
    fit()
    assert line() == f"{RUN} 0 finished"
    assert "accepted" not in json.loads(published().identity.read_text())


@pytest.mark.parametrize(
    ("run", "overrides", "reason"),
    [
        ("refcoco_vitb", (LR,), f"Did you mean {RUN}"),
        (f"{RUN}/seed1", (LR,), f"Did you mean {RUN}/seed0"),
        (OTHER, (LR,), f"runs/mini/{OTHER}/seed0"),
        (RUN, (), "nothing has changed"),
        (RUN, ("profiles.mini.model.width=32",), "model.width 16 -> 32"),
        (RUN, ("profiles.mini.model.mmp=false",), "model.mmp True -> False"),
        (RUN, (f"experiments.{RUN}.dataset=refcoco+",), "dataset_name refcoco -> refcoco+"),
        (RUN, ("profiles.mini.towers.vit_b.architecture=mini-vit-l",), "tower.architecture"),
    ],
)
@pytest.mark.usefixtures("project")
def test_what_cannot_be_accepted_is_refused_in_one_line(
    run: str, overrides: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    works = sorted(Path("runs/mini/work").iterdir())
    assert main(["status", "--accept", run, *sets(overrides)]) == 1
    (message,) = capsys.readouterr().err.splitlines()
    assert reason in message
    assert sorted(Path("runs/mini/work").iterdir()) == works


def test_a_model_whose_sizes_the_code_has_changed_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = published().checkpoint
    content = checkpoint.load(path)
    name = next(iter(content["model"]))
    content["model"][name] = content["model"][name][:1]
    checkpoint.save(path, content)
    assert main(["status", "--accept", RUN, *sets((LR,))]) == 1
    assert name in capsys.readouterr().err
    assert not work_of(LR).folder.exists()
