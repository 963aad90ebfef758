"""What runs cost, against numbers counted by hand; and that planning starts nothing."""

import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mmnet.cli.parser import main
from mmnet.config.load import load_params
from mmnet.config.paths import Paths
from mmnet.config.schema import Params
from mmnet.model.build import build_model
from mmnet.model.clip import recompute
from mmnet.pipeline.cost import Cost, cost, describe
from mmnet.pipeline.memory import Activations, activations
from mmnet.pipeline.plan import costed_runs, disk_of, flops_of, items_of, plan
from mmnet.runtime.progress import duration
from support.tiny import ROOT, Tiny

KEPT = Activations(fixed=100_000, per_item=10_000)
COST = Cost(parameters=1_000_000, flops=2_000_000_000)


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """An empty folder, and models of one known cost; returns those that were asked for."""
    asked: list[Any] = []

    def stand_in(model: Any, tower: Any, *, max_length: int) -> Cost:
        asked.append((model, tower.architecture, max_length))
        return COST

    monkeypatch.setattr("mmnet.pipeline.plan.cost", stand_in)
    monkeypatch.setattr("mmnet.pipeline.plan.activations", lambda config: KEPT)
    monkeypatch.chdir(tmp_path)
    return asked


def params_of(profile: str, *overrides: str) -> Params:
    return load_params(ROOT / "params.yaml", [f"profile={profile}", *overrides])


def cells_of(text: str) -> dict[str, list[str]]:
    """First cell -> the line's other cells."""
    lines = [re.split(" {2,}", line) for line in text.splitlines() if line]
    return {first: others for first, *others in lines}


def test_a_line_has_what_one_run_costs(cheap: list[Any]) -> None:
    lines = cells_of(plan(params_of("paper"), Paths("paper"), [], tflops=40))
    assert lines["nq_24"] == [
        *("2,3,4", "refcoco+", "RN50", "50", "42,278"),
        # 3 x 2 GFLOP x 42,278 refs x 50 epochs; at 40 TFLOP/s, 317 s.
        *("12.7 PFLOP", "5.3 min"),
        # 4 x 4 bytes x 10^6, and 64 items.
        *("64", "16.7 MB", "4.0 MB"),
    ]
    # 3 x 2 GFLOP x 42,404 refs x 100 epochs
    assert lines["refcoco_vit_b"][:6] == ["1", "refcoco", "ViT-B", "100", "42,404", "25.4 PFLOP"]


def test_memory_is_that_of_a_part_on_one_gpu(cheap: list[Any]) -> None:
    changes = [f"profiles.paper.train.{key}" for key in ("processes=4", "accumulate=2")]
    params = params_of("paper", *changes)
    line = cells_of(plan(params, Paths("paper"), ["table2"], tflops=40))["nq_24"]
    # A fifth copy, of gradients in transit; 64 / 4 / 2 items.
    assert line[-3:] == ["8", "20.2 MB", "4.0 MB"]


@pytest.mark.parametrize("changes", [{}, {"precision": "amp"}, {"checkpoint_activations": True}])
def test_activations_are_those_that_autograd_keeps(tiny: Tiny, changes: dict[str, Any]) -> None:
    train = tiny.config.train.model_copy(update=changes)
    config = tiny.config.model_copy(update={"train": train})
    model = build_model(config.model, config.tower, weights=None).train()
    recompute(model, config.train.checkpoint_activations)
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    counted = []
    for items in (1, 3):
        kept: dict[int, tuple[int, Any]] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, tuple[int, Any]] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = (storage.nbytes(), storage)
            return tensor

        image = torch.rand(items, 3, config.model.image_size, config.model.image_size)
        tokens = torch.full((items, config.dataset.max_length), 5)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled="precision" in changes),
        ):
            model(image, tokens)
        counted.append(sum(size for size, _ in kept.values()))
    kept_by_estimate = activations(config)
    per_item = (counted[1] - counted[0]) / 2
    assert kept_by_estimate.per_item == pytest.approx(per_item, rel=0.05)
    assert kept_by_estimate.fixed == pytest.approx(counted[0] - per_item, rel=0.1, abs=20_000)


def test_totals_add_up_over_experiments_and_seeds(cheap: list[Any]) -> None:
    text = plan(params_of("paper", "seeds=[0, 1]"), Paths("paper"), ["table3"], tflops=10)
    # Six experiments of 12.6834 PFLOP, two seeds: 15,220 s at 10 TFLOP/s.
    assert "12 runs, 152.2 PFLOP, 4.2 h" in text.splitlines()[-1]
    assert "10 TFLOP/s" in text
    assert "refcoco_vit_b" not in text


def test_shared_runs_are_counted_once(cheap: list[Any]) -> None:
    params, paths = params_of("paper"), Paths("paper")
    for tables, count in (([], 20), (["table2", "table3", "table4"], 14), (["table4"], 5)):
        assert len(costed_runs(params, paths, tables)) == count


def test_flops_are_those_of_the_epochs_given(cheap: list[Any]) -> None:
    params = params_of("paper")
    epochs = [(params.resolve("nq_24", 0), 1.5), (params.resolve("nq_8", 0), 1)]
    assert flops_of(epochs, params, Paths("paper")) == 2.5 * 3 * COST.flops * 42_278
    assert len(cheap) == 1  # one model for both


def test_disk_is_that_of_archives_images_towers_and_checkpoints(cheap: list[Any]) -> None:
    params = params_of("paper", "seeds=[0, 1]")
    runs = costed_runs(params, Paths("paper"), ["table1"])
    disk = disk_of(runs, params)
    assert disk["archives"] == 53993993 + 45613210 + 56712951 + 13510573713
    # G-Ref's 25,799 images, of 82,783.
    assert disk["images"] == pytest.approx(13510573713 * 25799 / 82783)
    assert disk["CLIP towers"] == 350837078 + 932768134
    # Six experiments, two seeds, four bytes.
    assert disk["finished runs"] == 6 * 2 * 4_000_000
    assert disk["more while one trains, at most"] == 9 * 4_000_000
    Path("mine.zip").touch()
    own = params_of("paper", "profiles.paper.data.train2014=mine.zip")
    assert disk_of(runs, own)["archives"] == 53993993 + 45613210 + 56712951


def test_items_are_counted_where_the_table_exists(cheap: list[Any], tiny: Tiny) -> None:
    paths = Paths("mini")
    # As drawn: 8 images of RefCOCO's train, three refs an image.
    assert items_of("refcoco", tiny.params, paths) == 3 * 8
    assert items_of("refcoco+", tiny.params, paths) == 3 * 8
    assert items_of("refcocog", tiny.params, paths) == 3 * 6
    paths.table("refcoco").parent.mkdir(parents=True)
    shutil.copy(tiny.table, paths.table("refcoco"))
    rows = pd.read_parquet(tiny.table)
    counted = len(set(rows.loc[rows["split"] == "train", "ref_id"]))
    assert items_of("refcoco", tiny.params, paths) == counted
    assert abs(counted - 24) <= 8  # the guess is one


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["table2", "--set", "profiles.paper.datasets.refcoco+.counts=null"], "refcoco+.counts"),
        (["table2", "table4", "--set", "experiments={}"], "table2 or table4"),
        (["table5"], "table5"),
        *((["--tflops", rate], f"--tflops {rate}") for rate in ("0", "nan", "inf")),
    ],
)
def test_what_cannot_be_planned_is_refused(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str], cheap: list[Any]
) -> None:
    shutil.copy(ROOT / "params.yaml", ".")
    assert main(["plan", "--set", "profile=paper", *arguments]) == 1
    assert reason in capsys.readouterr().err


def test_cost_is_what_describe_says(tiny: Tiny) -> None:
    config = tiny.config
    found = cost(config.model, config.tower, max_length=17)
    last = describe(config.model, config.tower, max_length=17).splitlines()[-2].split()
    assert last == ["MMNet", f"{found.parameters:,}", f"{found.flops / 1e9:.3f}"]
    mmnet = build_model(config.model, config.tower, weights=None)
    assert found.parameters == sum(p.numel() for p in mmnet.parameters())


def test_planning_writes_nothing_and_aligns_its_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "table4", "--set", "profile=mini"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("experiment ") or "mini RN50" in line]
    assert len(rows) == 6
    assert len({len(line) for line in rows}) == 1
    assert not any(line.startswith("disk, archives") for line in lines)  # procedural: small
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_durations_are_in_the_unit_that_fits() -> None:
    assert [duration(seconds) for seconds in (0.04, 59, 60, 3600, 3.6e6)] == [
        *("0 s", "59 s", "1.0 min", "1.0 h", "1,000.0 h"),
    ]
