"""A project to train in, and a server to send to."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mmnet.config.paths import Paths
from support.mlflow_server import Server
from support.tiny import ROOT, Tiny


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.kill()


@pytest.fixture
def project(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose data are prepared, and a store of its own."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # A command sets these for its own process, which here is the tests'.
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    paths = Paths("mini")
    for name, path in tiny.tables.items():
        paths.table(name).parent.mkdir(parents=True, exist_ok=True)
        paths.table(name).symlink_to(path)
    paths.images.symlink_to(tiny.images)
    paths.manifest.symlink_to(tiny.images.with_suffix(".tsv"))
    return folder
