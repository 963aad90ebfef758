"""Training: it learns, it survives, and what it leaves is a function of config, data and seed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmnet.data.transforms import normalise
from mmnet.model import checkpoint
from mmnet.model.build import build_model
from mmnet.model.clip import load_clip
from mmnet.runtime.errors import CheckpointError, DataError, MMNetError, TrainingError
from mmnet.runtime.files import locked
from mmnet.train import loop, step
from mmnet.train import run_state as state
from mmnet.train.pretrain import pretrain
from mmnet.train.recipe import mask_loss, polynomial_decay
from support.training import CPU, fit


def test_polynomial_decay_is_the_papers_formula() -> None:
    for number in range(10):
        assert polynomial_decay(number, 10, 0.9) == pytest.approx((1 - number / 10) ** 0.9)


def test_loss_is_the_mean_over_pixels_of_binary_cross_entropy() -> None:
    logits, masks = torch.randn(2, 3, 3), torch.rand(2, 3, 3) > 0.5
    probability = torch.where(masks, logits.sigmoid(), 1 - logits.sigmoid())
    torch.testing.assert_close(mask_loss(logits, masks), -probability.log().mean())


def test_one_pair_can_be_learnt_by_heart(tiny: Any) -> None:
    config = tiny.config
    items = loop.training_items(config, tiny.table, tiny.images)
    item = items[0]
    torch.manual_seed(0)
    model = build_model(config.model, config.tower, weights=None)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    image = normalise(torch.stack([item.image, items[1].image]))
    tokens = torch.stack([item.tokens, items[1].tokens])
    masks = torch.stack([item.mask, items[1].mask])
    for _ in range(150):
        loss = mask_loss(model(image, tokens), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    predicted = model(image, tokens) > 0
    assert (predicted & masks).sum() / (predicted | masks).sum() > 0.8


def test_two_runs_of_one_config_are_the_same_bytes(tiny: Any, tmp_path: Path) -> None:
    first, second = fit(tiny, tmp_path / "a"), fit(tiny, tmp_path / "b")
    for name in ("checkpoint.pt", "metrics.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_another_seed_is_another_run(tiny: Any, tmp_path: Path) -> None:
    other = tiny.config.model_copy(update={"seed": 1})
    first, second = fit(tiny, tmp_path / "a"), fit(tiny, tmp_path / "b", other)
    assert (first / "metrics.jsonl").read_bytes() != (second / "metrics.jsonl").read_bytes()


def test_metrics_have_a_line_per_epoch_and_the_best_checkpoint_is_kept(
    tiny: Any, tmp_path: Path
) -> None:
    folder = fit(tiny, tmp_path)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, tiny.config.train.epochs + 1))
    best = max(lines, key=lambda line: line["val"]["mIoU"])
    assert checkpoint.load(folder / "checkpoint.pt")["epoch"] == best["epoch"]
    assert not (folder / "work" / "last.pt").exists()


def interrupted(tiny: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train for one epoch, then break off."""
    train = loop.train_one_epoch

    def break_off(run: loop.Run, *arguments: Any) -> float:
        if run.epoch == 1:
            raise KeyboardInterrupt
        return train(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_one_epoch", break_off)
        with pytest.raises(KeyboardInterrupt):
            fit(tiny, folder)


def test_changed_config_starts_afresh_and_says_so(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(tiny, tmp_path / "a", monkeypatch)
    train = tiny.config.train.model_copy(update={"lr": 5e-4})
    changed = tiny.config.model_copy(update={"train": train})
    fit(tiny, tmp_path / "a", changed)
    assert "is of another config: starting afresh" in capsys.readouterr().err
    fit(tiny, tmp_path / "b", changed)
    assert (tmp_path / "a/checkpoint.pt").read_bytes() == (
        tmp_path / "b/checkpoint.pt"
    ).read_bytes()


def test_changed_code_starts_afresh(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(tiny, tmp_path, monkeypatch)
    monkeypatch.setattr(state, "code_version", lambda module: "another")
    fit(tiny, tmp_path)
    assert "is of another code: starting afresh" in capsys.readouterr().err


def test_finished_run_whose_outputs_were_removed_is_published_again_untrained(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("checkpoint.pt", "metrics.jsonl")
    fit(tiny, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in names}
    for name in names:
        (tmp_path / name).unlink()
    monkeypatch.setattr(loop, "train_one_epoch", lambda *arguments: pytest.fail("trained again"))
    fit(tiny, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in names} == before


def test_run_of_another_config_is_not_taken_for_the_finished_one(tiny: Any, tmp_path: Path) -> None:
    fit(tiny, tmp_path / "a")
    other = tiny.config.model_copy(update={"seed": 1})
    fit(tiny, tmp_path / "a", other)
    fit(tiny, tmp_path / "b", other)
    assert (tmp_path / "a/checkpoint.pt").read_bytes() == (
        tmp_path / "b/checkpoint.pt"
    ).read_bytes()


def test_damaged_last_checkpoint_is_said_and_not_trusted(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(tiny, tmp_path / "a", monkeypatch)
    last = tmp_path / "a" / "work" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    fit(tiny, tmp_path / "a")
    assert "Starting afresh" in capsys.readouterr().err
    fit(tiny, tmp_path / "b")
    assert (tmp_path / "a/checkpoint.pt").read_bytes() == (
        tmp_path / "b/checkpoint.pt"
    ).read_bytes()


def test_non_finite_loss_stops_the_run_and_names_step_and_sentences(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))
    original = step.mask_loss

    def broken(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        loss = original(logits, masks)
        return loss * torch.nan if next(calls) == 1 else loss

    monkeypatch.setattr(step, "mask_loss", broken)
    items = loop.training_items(tiny.config, tiny.table, tiny.images)
    size = tiny.config.train.batch_size
    expected = [str(items.records[i].sent_id) for i in items.order[size : 2 * size]]
    with pytest.raises(TrainingError, match=r"loss is nan at step 1 \(epoch 1, batch 2") as caught:
        fit(tiny, tmp_path)
    assert ", ".join(expected) in str(caught.value)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_second_process_on_a_run_folder_is_refused(tiny: Any, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(MMNetError, match="another process is at work here"):
        fit(tiny, tmp_path)


def test_sentences_longer_than_the_limit_are_counted_and_said(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tiny.config.dataset.model_copy(update={"max_length": 4})
    fit(tiny, tmp_path, tiny.config.model_copy(update={"dataset": dataset}))
    said = capsys.readouterr().err
    assert "sentences are longer than L=4 tokens; cut, [EOS] kept" in said


def test_too_few_refs_for_a_batch_are_refused(tiny: Any, tmp_path: Path) -> None:
    train = tiny.config.train.model_copy(update={"batch_size": 10_000})
    with pytest.raises(DataError, match=r"Lower train\.batch_size"):
        fit(tiny, tmp_path, tiny.config.model_copy(update={"train": train}))


def test_head_learns_faster_by_its_multiplier(tiny: Any) -> None:
    train = tiny.config.train.model_copy(update={"head_lr_multiplier": 10.0})
    model = build_model(tiny.config.model, tiny.config.tower, weights=None)
    run = step.start(model, train, CPU)
    clip, head = run.optimizer.param_groups
    assert (clip["multiplier"], head["multiplier"]) == (1.0, 10.0)
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    assert all(names[id(p)].startswith(step.CLIP_PARTS) for p in clip["params"])
    assert len(clip["params"]) + len(head["params"]) == len(names)


def test_pretrained_tower_is_reproducible_and_loads_as_any_other(tiny: Any, tmp_path: Path) -> None:
    def made(name: str) -> Path:
        output = tmp_path / name
        pretrain(
            tiny.config.tower,
            tiny.pretrain,
            tables=[tiny.table],
            images=tiny.images,
            output=output,
            device=CPU,
        )
        return output

    first = made("a.pt")
    assert first.read_bytes() == made("b.pt").read_bytes()
    clip = load_clip(tiny.config.tower.architecture, weights=first)
    state = torch.load(first, weights_only=True)["state_dict"]
    for name, tensor in clip.state_dict().items():
        torch.testing.assert_close(tensor, state[name])


def test_weights_of_another_tower_are_refused(tiny: Any, tmp_path: Path) -> None:
    torch.save(load_clip("mini-vit-l", weights=None).state_dict(), tmp_path / "l.pt")
    with pytest.raises(CheckpointError, match="holds no mini-vit-b"):
        load_clip("mini-vit-b", weights=tmp_path / "l.pt")


def test_other_images_are_another_run(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "images.tsv"
    manifest.write_bytes(tiny.images.with_suffix(".tsv").read_bytes())

    def train() -> str:
        loop.fit(
            tiny.config,
            table=tiny.table,
            images=tiny.images,
            manifest=manifest,
            weights=None,
            folder=tmp_path / "run",
            device=CPU,
        )
        return capsys.readouterr().err

    assert "epoch 1/2" in train()
    assert "this very run is finished" in train()
    manifest.write_text(manifest.read_text().replace("\t", "\t1", 1))
    assert "epoch 1/2" in train()
