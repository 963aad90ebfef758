"""What runs cost, against numbers counted by hand; and that planning starts nothing."""

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
from mmnet.config.tables import TABLES
from mmnet.model.build import build_model
from mmnet.model.clip import recompute
from mmnet.pipeline.cost import Cost, cost, describe
from mmnet.pipeline.memory import Activations, activations
from mmnet.pipeline.plan import costed_runs, disk_of, duration, images_bytes, items_of, plan, si
from mmnet.runtime.errors import ConfigError
from support.tiny import ROOT, Tiny

KEPT = Activations(fixed=100_000, per_item=10_000)
COST = Cost(parameters=1_000_000, clip_parameters=600_000, flops=2_000_000_000)


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


def lines_of(text: str) -> dict[str, list[str]]:
    """First word -> the line's other words."""
    return {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}


def test_a_line_has_what_one_run_costs(cheap: list[Any]) -> None:
    text = plan(params_of("paper"), Paths("paper"), [], tflops=40)
    lines = lines_of(text)
    # 3 x 2 GFLOP x 42,278 refs x 50 epochs = 12.6834 PFLOP; at 40 TFLOP/s, 317 s = 5.3 min.
    assert lines["nq_24"] == [
        *("2,3,4", "refcoco+", "RN50", "24", "50", "42,278"),
        *("2", "GFLOP", "12.7", "PFLOP", "5.3", "min"),
        # 4 x 4 bytes x 10^6, and 64 items.
        *("64", "16.7", "MB", "4", "MB"),
    ]
    assert lines["no_mqe_no_f_vg"][:5] == ["4", "refcoco+", "RN50", "f_vg,MQE", "24"]
    assert lines["nq_8_no_mmp"][:5] == ["3", "refcoco+", "RN50", "MMP", "8"]
    # 3 x 2 GFLOP x 42,404 refs x 100 epochs
    assert lines["refcoco_vit_b"][:8] == [
        *("1", "refcoco", "ViT-B", "24", "100", "42,404", "2", "GFLOP"),
    ]
    assert lines["refcoco_vit_b"][8:10] == ["25.4", "PFLOP"]


def test_memory_is_that_of_a_part_on_one_gpu(cheap: list[Any]) -> None:
    how = ("processes=4", "accumulate=2")
    params = params_of("paper", *(f"profiles.paper.train.{key}" for key in how))
    line = lines_of(plan(params, Paths("paper"), ["table2"], tflops=40))["nq_24"]
    # A fifth copy, of gradients on their way; 64 / 4 / 2 items.
    assert line[-5:] == ["8", "20.2", "MB", "4", "MB"]


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


def test_totals_come_last_and_add_up(cheap: list[Any]) -> None:
    text = plan(params_of("paper", "seeds=[0, 1]"), Paths("paper"), ["table3"], tflops=10)
    last = text.splitlines()[-1]
    # Six experiments of 12.6834 PFLOP, two seeds: 152.2 PFLOP, 15,220 s at 10 TFLOP/s.
    assert last.startswith("In all: 12 runs, 152 PFLOP, 4.2 h on one GPU, ")
    assert "12 runs, 6 experiments x 2 seeds 0, 1." in text.splitlines()[0]
    assert "at 10 TFLOP/s, which is assumed, not measured (--tflops)." in text
    assert "refcoco_vit_b" not in text


def test_shared_runs_are_counted_once(cheap: list[Any]) -> None:
    params = params_of("paper")
    for tables, count in ((TABLES, 19), (("table2", "table3", "table4"), 13), (("table4",), 4)):
        assert len(costed_runs(params, Paths("paper"), list(tables))) == count


def test_one_model_is_built_once(cheap: list[Any]) -> None:
    costed_runs(params_of("paper"), Paths("paper"), list(TABLES))
    # 13 ablations; two towers, each at L of 17 and of 22.
    assert len(cheap) == 13 + 2 * 2


def test_disk_is_that_of_archives_images_towers_and_checkpoints(cheap: list[Any]) -> None:
    params, paths = params_of("paper", "seeds=[0, 1]"), Paths("paper")
    runs = costed_runs(params, paths, ["table1"])
    disk = disk_of(runs, params, paths)
    assert disk["archives"] == 53993993 + 45613210 + 56712951 + 13510573713
    # G-Ref's 25,799 images, of 82,783.
    assert disk["images"] == pytest.approx(13510573713 * 25799 / 82783)
    assert disk["CLIP towers"] == 350837078 + 932768134
    # Six experiments, two seeds, four bytes.
    assert disk["finished runs"] == 6 * 2 * 4_000_000
    assert disk["more while one trains, at most"] == 9 * 4_000_000
    Path("mine.zip").touch()
    own = params_of("paper", "profiles.paper.data.train2014=mine.zip")
    assert disk_of(runs, own, paths)["archives"] == 53993993 + 45613210 + 56712951
    paths.archive("refcoco").parent.mkdir(parents=True)
    paths.archive("refcoco").write_bytes(bytes(10))
    assert disk_of(runs, own, paths)["archives"] == 10 + 45613210 + 56712951


def test_items_are_counted_where_the_table_is_there(cheap: list[Any], tiny: Tiny) -> None:
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


def test_a_data_set_of_unknown_size_is_refused(cheap: list[Any]) -> None:
    params = params_of("paper", "profiles.paper.datasets.refcoco+.counts=null")
    with pytest.raises(ConfigError) as caught:
        plan(params, Paths("paper"), ["table2"], tflops=40)
    assert str(caught.value) == (
        "params.yaml: profiles.paper.datasets.refcoco+.counts gives no refs of train, and "
        "data/paper/refcoco+.parquet is not there to count. Give them, or make it: mmnet prepare "
        "refcoco+."
    )


def test_no_run_is_refused(cheap: list[Any]) -> None:
    params = params_of("mini", "experiments={}")
    with pytest.raises(ConfigError, match="no experiment has table2 or table4 in its `tables`"):
        plan(params, Paths("mini"), ["table4", "table2"], tflops=40)


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf"])
def test_a_rate_that_is_none_is_refused(
    rate: str, capsys: pytest.CaptureFixture[str], cheap: list[Any]
) -> None:
    shutil.copy(ROOT / "params.yaml", ".")
    assert main(["plan", f"--tflops={rate}"]) == 1
    assert f"--tflops {rate}: give the TFLOP/s" in capsys.readouterr().err


def test_the_guess_of_minis_images_is_near_the_truth(tiny: Tiny) -> None:
    drawn = sum(path.stat().st_size for path in tiny.images.iterdir())
    assert 0.5 < images_bytes(tiny.params, Paths("mini")) / drawn < 2


def test_cost_is_what_describe_says(tiny: Tiny) -> None:
    config = tiny.config
    found = cost(config.model, config.tower, max_length=17)
    last = describe(config.model, config.tower, max_length=17).splitlines()[-2].split()
    assert last[:3] == ["MMNet", f"{found.parameters:,}", f"{found.flops / 1e9:.3f}"]
    mmnet = build_model(config.model, config.tower, weights=None)
    assert found.parameters == sum(p.numel() for p in mmnet.parameters())
    assert 0 < found.clip_parameters < found.parameters


def test_planning_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "table4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = next(line for line in lines if line.startswith("experiment"))
    rows = [line for line in lines if "mini RN50" in line]
    assert len(rows) == 4
    # Aligned: each line ends where the heads do.
    assert {len(line) for line in [heads, *rows]} == {len(heads)}
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1 kB"),
        (1000, "1 kB"),
        (12_345_678, "12.3 MB"),
        (999_960_000, "1 GB"),
        (3.3e18, "3.3 EB"),
    ],
)
def test_numbers_have_three_digits_and_a_prefix(value: float, text: str) -> None:
    assert si(value, "B") == text


def test_durations_are_in_the_unit_that_fits() -> None:
    assert [duration(s) for s in (0.04, 59, 60, 3600, 3.6e6)] == [
        *("0.0 s", "59.0 s", "1.0 min", "1.0 h", "1,000.0 h"),
    ]
