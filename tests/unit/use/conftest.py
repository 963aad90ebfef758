"""The tiny training as a finished run in a project of its own: data, predictions and scores."""

import shutil
from pathlib import Path

import pytest
import torch

from mmnet.config.paths import Paths, RunPaths
from mmnet.evaluate.metrics import score_run
from mmnet.evaluate.predict import predict_splits
from mmnet.runtime.files import write_json
from mmnet.use.export import export
from support.tiny import Tiny
from support.training import CPU, inputs_of, run_in


@pytest.fixture(scope="session")
def scored(tiny: Tiny, undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """The run; nothing of it may be changed."""
    root = tmp_path_factory.mktemp("scored")
    shutil.copytree(undisturbed / "runs", root / "runs")
    paths = Paths(tiny.config.profile, root)
    paths.data.mkdir(parents=True)
    paths.table("refcoco").symlink_to(tiny.table)
    paths.manifest.symlink_to(tiny.manifest)
    paths.images.symlink_to(tiny.images)
    run = run_in(root, tiny.config)
    checkpoint, output = run.checkpoint, run.rows
    predict_splits(tiny.config, inputs_of(tiny), checkpoint=checkpoint, output=output, device=CPU)
    write_json(run.scores, score_run(tiny.config, rows=run.rows))
    return run


@pytest.fixture
def run(scored: RunPaths, tmp_path: Path) -> RunPaths:
    """A copy of the run, without its data, to be changed."""
    for name in ("runs", "scores"):
        shutil.copytree(scored.root / name, tmp_path / name)
    return RunPaths(scored.profile, scored.experiment, scored.seed, tmp_path)


@pytest.fixture(scope="session")
def shared(scored: RunPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "model"
    export(scored, folder)
    return folder


@pytest.fixture
def folder(shared: Path, tmp_path: Path) -> Path:
    """A copy of the exported folder, to be changed."""
    return Path(shutil.copytree(shared, tmp_path / "folder"))


@pytest.fixture
def desk(
    undisturbed: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """A folder with one finished run and `photos/`; return the pictures' names."""
    (tmp_path / "runs").symlink_to(undisturbed / "runs")
    (tmp_path / "photos").mkdir()
    for path in sorted(tiny.images.iterdir())[:3]:
        shutil.copy(path, tmp_path / "photos")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    # A command sets these for its own process, which here is the tests'.
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    return [str(path) for path in sorted(Path("photos").glob("*.jpg"))]
