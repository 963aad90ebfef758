"""A tiny benchmark, drawn, fetched and prepared once by the commands' own functions."""

import os
from pathlib import Path

from support.project import copy_as_if_made, copy_project, snakemake
from support.tiny import ROOT, TINY, Tiny

# Threads would only wait for one another on tensors this small; children inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from mmnet.runtime import portable

# As the commands do for mini, before anything imports torch or NumPy.
if portable.is_supported():
    portable.use()

import pytest
from hypothesis import settings

from mmnet.benchmark.scenes import write_mirror
from mmnet.config.load import load_params
from mmnet.data.download import fetch
from mmnet.data.prepare import prepare_table, unpack_images

# The same examples each time, however slow the machine.
settings.register_profile("mmnet", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("mmnet")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    mirror = folder / "mirror"
    archives = {
        f"profiles.mini.archives.{name}": f"{{urls: ['file:{mirror}/{name}.zip'],"
        f" checksums: {mirror}/SHA256SUMS}}"
        for name in ("refcoco", "refcoco+", "refcocog", "train2014")
    }
    params = load_params(ROOT / "params.yaml", [*TINY, *map("=".join, archives.items())])
    shapes, pretrain = params.active.shapes, params.active.pretrain
    assert shapes is not None
    assert pretrain is not None
    write_mirror(mirror, seed=0, image_sizes=shapes.image_sizes, images=shapes.images.model_dump())
    paths = {name: folder / "archives" / f"{name}.zip" for name in params.active.archives}
    for name, archive in params.active.archives.items():
        fetch(archive, paths[name])
    tables = {name: folder / f"{name}.parquet" for name in params.active.datasets}
    for name, dataset in params.active.datasets.items():
        prepare_table(name, dataset, archive=paths[name], output=tables[name])
    unpack_images(
        paths["train2014"],
        tables=list(tables.values()),
        folder=folder / "images",
        manifest=folder / "images.tsv",
    )
    config = params.resolve("refcoco_vit_b", 0)
    return Tiny(params, config, pretrain, paths, tables, folder / "images")


@pytest.fixture(scope="session")
def undisturbed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the tiny training was run once, from its start to its end."""
    from support.training import fit  # PyTorch, for those tests alone that train

    folder = tmp_path_factory.mktemp("undisturbed")
    fit(tiny, folder)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the tiny Table 1 has been made, for tests of the group `workflow`."""
    folder = copy_project(tmp_path_factory.mktemp("clone"))
    result = snakemake(folder, "--cores", "2", "results/table1.tex", "results/curves.csv")
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole mini project as if all of it were made, for dry runs of the group `workflow`."""
    return copy_as_if_made(tmp_path_factory.mktemp("made") / "clone")
