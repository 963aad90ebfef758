"""What the Snakefile asks of params.yaml, without Snakemake."""

import re
from pathlib import Path

import pytest

from mmnet.config.load import load_params, write_resolved
from mmnet.config.paths import Paths
from mmnet.pipeline.workflow import Workflow, cores, gpus
from mmnet.runtime.errors import ConfigError
from support.tiny import ROOT


def workflow(*overrides: str, gpu_limit: int | None = None) -> Workflow:
    return Workflow(load_params(ROOT / "params.yaml", list(overrides)), gpu_limit)


# Checks before any job.


@pytest.mark.parametrize(
    ("device", "limit", "is_refused"),
    [("auto", 2, True), ("auto", 4, False), ("auto", None, False), ("cpu", 2, False)],
)
def test_more_processes_than_gpus_are_refused(
    device: str, limit: int | None, is_refused: bool
) -> None:
    asked = [f"profiles.mini.train.device={device}", "experiments.nq_1.train={processes: 4}"]
    if not is_refused:
        workflow(*asked, gpu_limit=limit)
        return
    with pytest.raises(ConfigError, match=r"nq_1: train.processes is 4.* 2 GPUs.*gpu=4"):
        workflow(*asked, gpu_limit=limit)


def test_copies_of_ones_own_must_exist_and_hold_the_annotations(tmp_path: Path) -> None:
    key = "profiles.mini.data.refcoco"
    with pytest.raises(ConfigError, match=re.escape(f"{key}: {tmp_path}/absent")):
        workflow(f"{key}={tmp_path}/absent")
    (tmp_path / "instances.json").touch()
    with pytest.raises(ConfigError, match=re.escape(f"{key}: {tmp_path} lacks refs(unc).p")):
        workflow(f"{key}={tmp_path}")
    (tmp_path / "refs(unc).p").touch()
    own = workflow(f"{key}={tmp_path}")
    assert own.archive_input("refcoco") == [
        tmp_path / "instances.json",
        tmp_path / "refs(unc).p",
    ]
    assert own.archive_input("refcocog") == Path("data/mini/archives/refcocog.zip.sha256")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("experiments.nq_2.model.num_queries=1", "nq_2 and nq_1"),
        ("experiments.nq_1.dataset=refcoco", "nq_1"),
        ("profiles.mini.towers.rn50.pretrained=/nowhere/rn50.pt", "/nowhere/rn50.pt"),
        ("profiles.mini.towers.rn50.pretrained=/", "rn50.pretrained: /: Is a directory"),
        ("profiles.mini.towers.rn50.pretrained=/dev/zero", "rn50.pretrained: /dev/zero"),
        ("profiles.mini.data.train2014=/dev/zero", "data.train2014: /dev/zero"),
        ("profiles.mini.archives.refcoco.checksums=/", "refcoco.checksums: /: Is a directory"),
        ("profiles.mini.archives.refcoco.urls=['file:/%64ev']", "refcoco.urls: /dev: Is a "),
        (
            "profiles.mini.weights={vit_b: {urls: ['file:/dev/zero'], md5: '" + "0" * 32 + "'}}",
            "weights.vit_b.urls: /dev/zero: Not a",
        ),
    ],
)
def test_tables_and_weights_are_checked(override: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        workflow(override)


# Inputs.


def test_only_drawn_archives_are_drawn_before_they_are_fetched() -> None:
    archive = Path("data/mini/mirror/refcoco+.zip")
    drawn = workflow().drawn_archives("refcoco+")
    assert [Path(path) for path in drawn] == [archive, archive.with_name("SHA256SUMS")]
    assert workflow("profile=paper").drawn_archives("refcoco+") == []


def test_a_tower_comes_from_one_source_and_unused_ones_are_not_made(tmp_path: Path) -> None:
    mine = tmp_path / "own.pt"
    mine.touch()
    mini = workflow(
        f"profiles.mini.towers.vit_b.pretrained={mine}",
        "profiles.mini.towers.vit_l.pretrained=none",
    )
    assert mini.towers_from("captions") == "rn50"
    assert not re.fullmatch(mini.towers_from("openai"), "rn50")
    assert mini.towers_in_use == [Path("clip/mini/rn50.pt")]
    assert [mini.weights_input(t) for t in ("vit_b", "vit_l")] == [mine, None]
    paper = workflow("profile=paper")
    assert paper.towers_from("openai") == "vit_b|vit_l|rn50|rn101"
    # Not the files themselves: Snakemake deletes a rule's outputs before it runs.
    names = [f"clip/paper/{tower}.pt.sha256" for tower in ("rn50", "vit_b", "vit_l")]
    assert [str(path) for path in paper.towers_in_use] == names


def test_a_run_reads_its_table_the_images_and_its_tower() -> None:
    mini = workflow("profiles.mini.towers.rn50.pretrained=none")
    table = {"images": Path("data/mini/images.tsv"), "table": Path("data/mini/refcoco+.parquet")}
    assert mini.run_inputs(mini.params.resolve("nq_1", 0)) == table
    vit = mini.run_inputs(mini.params.resolve("refcoco_plus_vit_b", 0))
    assert vit == {**table, "weights": Path("clip/mini/vit_b.pt")}


def test_allow_missing_waits_for_no_run_and_counts_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scores = Paths("mini").run("nq_1", 0).scores
    scores.parent.mkdir(parents=True)
    scores.write_text("{}")
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    whole, partial = (
        Workflow(load_params(path, [f"allow_missing={value}"])) for value in ("false", "true")
    )
    paths = whole.scores_of("table2")
    assert whole.needed(paths) == paths
    assert len(paths) == 7
    assert partial.needed(paths) == []
    assert whole.table_params("table2")["scores"] == {}
    before = partial.table_params("table2")
    assert list(before["scores"]) == [str(scores)]
    scores.write_text("[]")
    after = partial.table_params("table2")
    assert {key for key in before if before[key] != after[key]} == {"scores"}


# Values.


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("profiles.mini.towers.rn50.label=Another", {"labels"}),
        ("profiles.mini.label=another", {"label"}),
        ("profiles.mini.evaluate.threshold=0.4", {"runs"}),
        ("profiles.mini.train.save_minutes=2", set()),
        ("profiles.mini.cluster.train.minutes=1", set()),
        ("seeds=[0, 1]", {"seeds", "runs", "labels"}),
    ],
)
def test_a_table_depends_on_what_it_shows(override: str, changed: set[str]) -> None:
    before, after = workflow().table_params("table2"), workflow(override).table_params("table2")
    assert {key for key in before if before[key] != after[key]} == changed


def test_the_resolved_parameters_are_those_that_were_checked(tmp_path: Path) -> None:
    overrides = ["profiles.mini.label='on'", "profiles.mini.train.lr=1e-05", "seeds=[3]"]
    params = load_params(ROOT / "params.yaml", overrides)
    path = write_resolved(params, tmp_path)
    assert load_params(path) == params
    assert write_resolved(params, tmp_path) == path
    assert write_resolved(load_params(ROOT / "params.yaml"), tmp_path) != path


# What jobs ask for.


def test_jobs_ask_for_their_cores_gpus_and_queue() -> None:
    mini = workflow(
        "experiments.nq_1.train={processes: 2, threads: 3, workers: 4}",
        "profiles.mini.cluster.train={partition: long, memory_mb: 7, minutes: 9}",
    )
    assert cores(mini.params.resolve("nq_1", 0)) == 14
    assert [gpus("cpu", 2), gpus("auto", 2), gpus("cuda")] == [0, 2, 1]
    asked = {"mem_mb": 7, "runtime": 9}
    assert mini.resources("train") == {**asked, "slurm_partition": "long"}
    assert mini.resources("predict").keys() == asked.keys()
