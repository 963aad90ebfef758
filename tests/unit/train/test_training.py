"""Training: it learns, it survives, and what it leaves is a function of config, data and seed."""

import json
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from mmnet.config.identity import differences, training_identity
from mmnet.data.transforms import normalise
from mmnet.model import checkpoint
from mmnet.model.build import build_model
from mmnet.model.clip import load_clip
from mmnet.runtime.errors import DataError, TrainingError
from mmnet.runtime.files import locked
from mmnet.train import loop, recipe, step
from mmnet.train.pretrain import pretrain
from mmnet.train.recipe import mask_loss, polynomial_decay
from mmnet.train.run_state import RunState
from support.training import (
    CPU,
    fit,
    identity_of,
    inputs_of,
    run_in,
    with_train,
    work_of,
)


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
        logits = model(image, tokens)
        predicted = logits > 0
        if (predicted & masks).sum() / (predicted | masks).sum() > 0.8:
            return
        optimizer.zero_grad()
        mask_loss(logits, masks).backward()
        optimizer.step()
    pytest.fail("not learnt")


def published(root: Path, tiny: Any) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run_in(root, tiny.config).folder.iterdir()}


@pytest.fixture
def trained(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the folder in which the tiny training has ended."""
    return shutil.copytree(undisturbed, tmp_path / "trained")


def test_a_training_is_a_function_of_config_and_seed(
    tiny: Any, undisturbed: Path, tmp_path: Path
) -> None:
    fit(tiny, tmp_path)
    assert published(tmp_path, tiny) == published(undisturbed, tiny)
    other = fit(tiny, tmp_path, tiny.config.model_copy(update={"seed": 1}))
    assert (other / "metrics.jsonl").read_bytes() != published(undisturbed, tiny)["metrics.jsonl"]


def test_metrics_have_a_line_per_epoch_and_the_best_checkpoint_is_kept(
    tiny: Any, undisturbed: Path
) -> None:
    folder = run_in(undisturbed, tiny.config).folder
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, tiny.config.train.epochs + 1))
    best = max(lines, key=lambda line: line["val"]["mIoU"])
    assert checkpoint.load(folder / "checkpoint.pt")["epoch"] == best["epoch"]
    assert not work_of(tiny, undisturbed).last.exists()


def interrupted(tiny: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train for one epoch, then break off."""
    train = loop.train_one_epoch

    def break_off(state: RunState, *arguments: Any) -> None:
        if state.epoch == 1:
            raise KeyboardInterrupt
        train(state, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_one_epoch", break_off)
        with pytest.raises(KeyboardInterrupt):
            fit(tiny, root)


def test_other_values_train_beside_unfinished_work_which_resumes_with_its_own(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(tiny, tmp_path, monkeypatch)
    first = work_of(tiny, tmp_path)
    before = first.last.read_bytes()
    changed = with_train(tiny.config, lr=1e-3)
    capsys.readouterr()
    other = (fit(tiny, tmp_path, changed) / "checkpoint.pt").read_bytes()
    told = capsys.readouterr().err
    assert str(first.folder) in told
    assert "train.lr 0.0005 -> 0.001" in told
    assert re.search(r"\d[.\d]* [kM]B", told)  # how large it is
    assert first.last.read_bytes() == before
    undisturbed = fit(tiny, tmp_path / "b", changed)
    assert (undisturbed / "checkpoint.pt").read_bytes() == other
    # Back to the old values: the old training resumes, and the new one is kept.
    fit(tiny, tmp_path)
    assert "resuming after epoch 1" in capsys.readouterr().err
    monkeypatch.setattr(loop, "train_one_epoch", lambda *arguments: pytest.fail("trained again"))
    assert (fit(tiny, tmp_path, changed) / "checkpoint.pt").read_bytes() == other


def test_other_code_does_not_resume_what_this_code_began(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(tiny, tmp_path, monkeypatch)
    kept = work_of(tiny, tmp_path).last.read_bytes()
    before = work_of(tiny, tmp_path)
    code = {**identity_of(tiny).code, "mmnet/model/decoder.py": "another"}
    monkeypatch.setattr("mmnet.config.identity.code", lambda rule, config: code)
    capsys.readouterr()
    fit(tiny, tmp_path)
    told = capsys.readouterr().err
    assert "resuming" not in told
    assert "mmnet/model/decoder.py changed" in told
    assert before.last.read_bytes() == kept


def test_what_is_finished_is_published_again_and_under_another_name_untrained(
    tiny: Any, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = published(trained, tiny)
    assert {"checkpoint.pt", "metrics.jsonl", "run.json"} == set(before)
    shutil.rmtree(run_in(trained, tiny.config).folder)
    monkeypatch.setattr(loop, "train_one_epoch", lambda *arguments: pytest.fail("trained again"))
    fit(tiny, trained)
    assert published(trained, tiny) == before
    tower = tiny.config.tower.model_copy(update={"label": "Another"})
    evaluate = tiny.config.evaluate.model_copy(update={"threshold": 0.5})
    dataset = tiny.config.dataset.model_copy(update={"splits": ["val"]})
    renamed = {"experiment": "renamed", "tower": tower, "evaluate": evaluate, "dataset": dataset}
    after = fit(tiny, trained, tiny.config.model_copy(update=renamed))
    assert after.parent.name == "renamed"
    for name in ("checkpoint.pt", "metrics.jsonl"):
        assert (after / name).read_bytes() == before[name]


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
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_a_second_training_of_one_identity_waits_for_the_first(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, told = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(work_of(tiny, tmp_path).folder):
            held.set()
            told.wait()

    monkeypatch.setattr("mmnet.runtime.files.say", lambda line: told.set())
    threading.Thread(target=hold, daemon=True).start()
    held.wait()
    assert (fit(tiny, tmp_path) / "checkpoint.pt").is_file()
    assert told.is_set()


@pytest.mark.parametrize("damaged", ["run.json", "metrics.jsonl", "best.pt", "finished.json"])
def test_a_finished_training_of_which_a_file_is_damaged_ends_with_the_same_bytes(
    damaged: str, tiny: Any, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = published(trained, tiny)
    path = work_of(tiny, trained).folder / damaged
    path.write_text("[1")
    if (same := run_in(trained, tiny.config).folder / damaged).exists():
        same.unlink()  # it was a hard link
    capsys.readouterr()
    fit(tiny, trained)
    assert published(trained, tiny) == before
    told = capsys.readouterr().err
    assert ("from scratch" in told) == (damaged != "run.json")
    assert damaged in told or damaged == "run.json"


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
    state = step.start(model, train, CPU)
    clip, head = state.optimizer.param_groups
    assert (clip["multiplier"], head["multiplier"]) == (1.0, 10.0)
    names = {id(parameter): name for name, parameter in state.model.named_parameters()}
    assert all(names[id(p)].startswith(recipe.CLIP_PARTS) for p in clip["params"])
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


def test_other_images_are_another_training(tiny: Any) -> None:
    inputs = inputs_of(tiny)
    before = training_identity(tiny.config, inputs)
    assert training_identity(tiny.config, inputs).id == before.id
    content = tiny.manifest.read_text()
    try:
        tiny.manifest.write_text(content.replace("\t", "\t1", 1))
        after = training_identity(tiny.config, inputs)
    finally:
        tiny.manifest.write_text(content)
    assert after.id != before.id
    assert differences(before, after) == ["data: images changed"]
