"""A run to a folder and back: the same masks, a card that says what its files say, no pickle."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import mmnet
from mmnet.cli.parser import main
from mmnet.config.identity import Identity, flat
from mmnet.config.paths import Paths, RunPaths
from mmnet.data.refer import read_table
from mmnet.evaluate.metrics import METRICS
from mmnet.runtime.errors import CheckpointError, MMNetError
from mmnet.runtime.files import checksum, read_json, write_json
from mmnet.tracking.record import published, read
from mmnet.use import export as module
from mmnet.use.card import model_card
from mmnet.use.export import export
from mmnet.use.half import HalfCost
from support.tiny import ROOT, Tiny


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_exported_folder_gives_the_masks_of_the_run(
    shared: Path, scored: RunPaths, tiny: Tiny
) -> None:
    assert {path.name for path in shared.iterdir()} == {
        *("model.safetensors", "config.json", "README.md")
    }
    trained, loaded = mmnet.load(scored.folder), mmnet.load(shared)
    assert loaded.config == trained.config
    rows = read_table(tiny.table, ["val"])
    for file, of_image in rows.groupby("file"):
        sentences = list(of_image["sentence"])
        found = [model.look(tiny.images / str(file)).find(sentences) for model in (trained, loaded)]
        for one, other in zip(*found, strict=True):
            assert (one.probability == other.probability).all()
            assert (one.mask == other.mask).all()


def test_files_can_be_read_by_others(shared: Path) -> None:
    modes = {path.stat().st_mode & 0o777 for path in shared.iterdir()}
    assert modes == {(ROOT / "params.yaml").stat().st_mode & 0o666}
    assert shared.stat().st_mode & 0o777 == shared.parent.parent.stat().st_mode & 0o777 | 0o055


def test_half_rounds_the_weights_and_says_what_it_costs(scored: RunPaths, tmp_path: Path) -> None:
    cost = export(scored, tmp_path / "half", half=True)
    assert cost is not None
    val = read_json(scored.scores)["splits"]["val"]
    assert (cost.before, cost.sentences) == (val["mIoU"], val["sentences"])
    state = torch.load(scored.checkpoint, weights_only=True)["model"]
    stored = load_file(tmp_path / "half" / "model.safetensors")
    loaded = mmnet.load(tmp_path / "half").network.state_dict()
    for name, tensor in state.items():
        rounded = tensor.half() if tensor.is_floating_point() else tensor
        assert torch.equal(stored[name], rounded)
        assert torch.equal(loaded[name], rounded.to(tensor.dtype))
    assert str(cost) in (tmp_path / "half" / "README.md").read_text()
    weights = read_json(tmp_path / "half" / "config.json")["weights"]
    assert weights["dtype"] == "float16"


def test_the_cost_of_half_is_of_other_masks() -> None:
    assert "-1.2500 points" in str(HalfCost(before=0.5, after=0.4875, sentences=10, changed=3))


def test_half_without_the_runs_own_data_is_not_measured(run: RunPaths, scored: RunPaths) -> None:
    outputs = run.root / "a", run.root / "b"
    assert export(run, outputs[0], half=True) == HalfCost()
    paths, own = Paths(run.profile, run.root), Paths(scored.profile, scored.root)
    paths.data.mkdir(parents=True)
    paths.manifest.symlink_to(own.manifest)
    paths.table("refcoco").write_bytes(own.table("refcoco").read_bytes() + b" ")
    assert export(run, outputs[1], half=True) == HalfCost()
    assert "not measured" in (outputs[1] / "README.md").read_text()


def test_a_weight_that_fp16_cannot_hold_is_refused(run: RunPaths) -> None:
    content = torch.load(run.checkpoint, weights_only=True)
    name = next(name for name, tensor in content["model"].items() if tensor.is_floating_point())
    content["model"][name].view(-1)[0] = 1e6
    torch.save(content, run.checkpoint)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        export(run, run.root / "half", half=True)
    assert not (run.root / "half").exists()


def test_the_card_has_what_the_runs_files_have(shared: Path, scored: RunPaths) -> None:
    card = ModelCard.load(shared / "README.md")
    scores = read_json(scored.scores)["splits"]
    results = {(r.dataset_split, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert results == {
        (split, metric): round(100 * values[metric], 2)
        for split, values in scores.items()
        for metric in METRICS
    }
    title = next(line for line in card.text.splitlines() if line.startswith("# "))
    assert "procedural benchmark" in title
    identity = Identity.from_dict(read_json(scored.identity)["identity"])
    assert identity is not None
    for key, value in flat(identity.values).items():
        assert f"| `{key}` | `{value}` |" in card.text
    hashes = {identity.digest, identity.data["table"], identity.data["images"]}
    hashes |= {checksum(scored.checkpoint), checksum(shared / "model.safetensors")}
    assert {one for one in hashes if f"`{one}`" not in card.text} == set()
    for limit in ("English", "One object", "No negatives"):
        assert f"**{limit}.**" in card.text
    assert str(scored.root) not in card.content


def test_the_card_says_where_the_training_was_and_of_which_code(run: RunPaths) -> None:
    identity = published(run)
    assert identity is not None
    work = run.work(identity)
    record: dict[str, Any] = {"started": 0, "device": "H100", "packages": {"torch": "9.9"}}
    write_json(work.record, record | {"git": {"commit": "c0ffee", "changed": ["a.py"]}})
    write_json(work.progress, read_json(work.progress) | {"seconds": 7200.0})
    export(run, run.root / "model")
    rows = (run.root / "model" / "README.md").read_text().splitlines()
    for fact, named in (
        ("revision of", "c0ffee, with uncommitted changes in a.py"),
        ("on", "H100"),
    ):
        assert any(named in row for row in rows if fact in row), fact
    assert "| Training time | 2.0 h |" in rows
    assert "| Packages | torch 9.9 |" in rows


def test_a_card_of_a_run_without_scores_has_no_results(run: RunPaths) -> None:
    run.scores.unlink()
    export(run, run.root / "model")
    card = ModelCard.load(run.root / "model" / "README.md")
    assert card.data.eval_results is None
    assert "mmnet evaluate" in card.text


def test_scores_of_another_training_are_not_the_cards(run: RunPaths) -> None:
    scores = read_json(run.scores)
    scores["config"]["train"]["lr"] *= 2
    run.scores.write_text(json.dumps(scores))
    export(run, run.root / "model")
    assert ModelCard.load(run.root / "model" / "README.md").data.eval_results is None


def test_a_card_of_photographs_names_their_biases_and_licences(run: RunPaths) -> None:
    about = read_json(run.identity)
    values = about["identity"]["values"]
    values["tower"] = {"architecture": "ViT-B-16-quickgelu", "pretrained": "openai"}
    identity = Identity.from_dict(about["identity"])
    assert identity is not None
    run.identity.write_text(json.dumps(about))
    content = torch.load(run.checkpoint, weights_only=True)
    torch.save(content | {"identity": about["identity"]}, run.checkpoint)
    record = read(run, identity, None)
    text = model_card(run, identity, record, is_procedural=False, files={}, half=None)
    assert "procedural" not in text
    for word in ("COCO's biases", "CC BY 4.0", "MIT"):
        assert word in text


def test_nothing_is_overwritten_unasked(
    folder: Path, run: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "README.md").write_text("mine")
    before = content_of(folder)
    with pytest.raises(MMNetError, match="--force"):
        export(run, folder)
    assert content_of(folder) == before

    def fail(*arguments: Any, **named: Any) -> str:
        raise MMNetError("no card")

    with monkeypatch.context() as patch:
        patch.setattr(module, "model_card", fail)
        with pytest.raises(MMNetError, match="no card"):
            export(run, folder, force=True)
    assert content_of(folder) == before
    assert not list(folder.parent.glob(".folder*"))
    export(run, folder, force=True)
    assert content_of(folder)["README.md"] != b"mine"
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(MMNetError, match=r"thesis\.tex"):
        export(run, folder, force=True)
    assert (folder / "thesis.tex").exists()


def own_readme(folder: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()


def folder_of_that_name(folder: Path) -> None:
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()


@pytest.mark.parametrize("change", [own_readme, folder_of_that_name])
def test_what_is_not_an_export_is_never_replaced(change: Any, folder: Path, run: RunPaths) -> None:
    change(folder)
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(MMNetError, match=r"README\.md"):
        export(run, folder, force=True)
    assert sorted(folder.parent.rglob("*")) == before


def test_a_folder_that_cannot_be_replaced_is_refused_before_the_work(
    folder: Path, run: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run.checkpoint.unlink()  # the work would fail in another way
    for output, reason in ((Path(), "working"), (folder, "working"), (Path("x" * 300), "shorter")):
        with pytest.raises(MMNetError, match=reason):
            export(run, output, force=True)
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(Path, "is_mount", lambda path: path == folder)
    with pytest.raises(MMNetError, match="mount point"):
        export(run, folder, force=True)


def test_of_a_link_the_folder_behind_it_is_replaced(folder: Path, run: RunPaths) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    (folder / "README.md").write_text("old")
    export(run, link, force=True)
    assert link.is_symlink()
    assert (folder / "README.md").read_text() != "old"


def test_a_full_disk_is_one_line_and_leaves_nothing(scored: RunPaths, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(MMNetError, match="cannot be written") as caught:
            export(scored, tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_run_is_refused(run: RunPaths) -> None:
    about = read_json(run.identity)
    about["identity"]["values"]["seed"] = 5
    run.identity.write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=r"run\.json"):
        export(run, run.root / "model")


def test_the_command_exports_a_named_run(
    scored: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(scored.root)
    names = "refcoco_vit_b", "mini/refcoco_vit_b/seed0", str(scored.folder)
    for number, name in enumerate(names):
        assert main(["export", name, "-o", str(tmp_path / str(number))]) == 0
    contents = [content_of(tmp_path / str(number)) for number in range(len(names))]
    assert contents[0] == contents[1] == contents[2]
    assert main(["export", "refcoco_vit_b", "-o", str(tmp_path / "0")]) == 1
    capsys.readouterr()
    for name in ("refcoco_vit_x", "runs/mini/refcoco_vit_b"):
        assert main(["export", name, "-o", str(tmp_path / "new")]) == 1
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()
