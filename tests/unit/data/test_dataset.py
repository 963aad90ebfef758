"""Sentences to tokens, rows to items, items to batches: alone and with reader processes."""

import contextlib
import signal
from pathlib import Path
from types import FrameType

import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from mmnet.data.dataset import (
    EvaluationItems,
    TrainItems,
    evaluation_items,
    read_mask,
    read_square,
    training_items,
)
from mmnet.data.loader import read
from mmnet.data.refer import read_table
from mmnet.data.tokenizer import EOS, SOS, num_tokens, tokenize
from mmnet.data.transforms import mask_to_grid, place
from mmnet.runtime.errors import DataError
from support.model import build
from support.tiny import Tiny

# Tokens.


def test_tokens_are_those_of_open_clip(tiny: Tiny) -> None:
    sentences = [*read_table(tiny.tables["refcocog"])["sentence"], "it's the 2nd café, isn't it?!"]
    tokens, cut = tokenize(sentences, 77)
    assert_close(tokens, open_clip.get_tokenizer("ViT-B-16")(sentences))
    assert cut == 0


@pytest.mark.parametrize("max_length", [3, 17, 77])
def test_a_cut_sentence_keeps_its_end_and_is_counted(max_length: int) -> None:
    fits, exceeds = "cat " * (max_length - 2), "cat " * (max_length - 1)
    tokens, cut = tokenize([fits, exceeds, "cat", "cat " * 200], max_length)
    assert cut == 2
    assert tokens.shape == (4, max_length)
    assert_close(tokens[1], tokens[0])
    assert_close(tokens[3], tokens[0])
    for row in tokens:
        end = int(row.argmax())
        assert (row[0], row[end]) == (SOS, EOS)
        assert not row[end + 1 :].any()
    assert int(tokens[2].argmax()) == 2


def test_lengths_are_those_of_the_uncut_tokens(tiny: Tiny) -> None:
    assert [num_tokens(sentence) for sentence in ("", "cat", "cat " * 200)] == [2, 3, 202]
    for path in tiny.tables.values():
        table = read_table(path)
        tokens, cut = tokenize(list(table["sentence"]), 77)
        assert cut == 0
        assert list(table["tokens"]) == (tokens > 0).sum(1).tolist()


def test_an_empty_sentence_is_start_and_end_and_passes_the_model() -> None:
    tokens, cut = tokenize(["", "the red cat"], 9)
    assert tokens[0].tolist() == [SOS, EOS, *[0] * 7]
    assert cut == 0
    images = torch.rand(2, 3, 64, 64)
    for model in (build().eval(), build().train()):
        logits = model(images, tokens)
        assert logits.isfinite().all()
        logits.sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert grads
        assert all(grad.isfinite().all() for grad in grads)


# Items.


def drawn(items: TrainItems) -> list[int]:
    return [items.records[i].sent_id for i in items.order]


def test_an_epoch_has_every_object_once_with_a_sentence_of_its_own(tiny: Tiny) -> None:
    items = training_items(tiny.config, tiny.table, tiny.images)
    rows = read_table(tiny.table, ["train"])
    assert len(items) == rows["ref_id"].nunique() < len(rows)
    placement = None
    for epoch in range(2):
        items.set_epoch(epoch)
        chosen = rows.set_index("sent_id").loc[drawn(items)].reset_index()
        assert sorted(chosen["ref_id"]) == sorted(set(rows["ref_id"]))
        tokens, _ = tokenize(list(chosen["sentence"]), tiny.config.dataset.max_length)
        for i, row in enumerate(chosen.itertuples()):
            item = items[i]
            placement = place(row.height, row.width, 64, "letterbox")
            assert_close(item.tokens, tokens[i])
            assert_close(item.image, read_square(tiny.images / row.file, placement))
            mask = read_mask(row.counts, row.height, row.width)
            assert_close(item.mask, mask_to_grid(mask, placement, 4))
            assert item.mask.any()


def test_order_and_sentences_depend_on_seed_and_epoch_alone(tiny: Tiny) -> None:
    def items(seed: int) -> TrainItems:
        config = tiny.config.model_copy(update={"seed": seed})
        return training_items(config, tiny.table, tiny.images)

    first, second, other = items(0), items(0), items(1)
    for epoch in (5, 2, 3):
        torch.manual_seed(epoch)
        first.set_epoch(epoch)
    second.set_epoch(3)
    other.set_epoch(3)
    assert drawn(first) == drawn(second)
    assert drawn(first) != drawn(other)
    second.set_epoch(4)
    assert drawn(first) != drawn(second)
    assert set(drawn(first)) != set(drawn(second)), "the same sentences again"


def test_reader_processes_change_no_order_sentence_or_byte(tiny: Tiny) -> None:
    items = training_items(tiny.config, tiny.table, tiny.images)
    items.set_epoch(1)
    alone, together = (list(read(items, batch_size=4, workers=n)) for n in (0, 2))
    assert len(alone) == len(together) == len(items) // 4
    for batch, other in zip(alone, together, strict=True):
        for tensor, same in zip(batch, other, strict=True):
            assert_close(tensor, same, rtol=0, atol=0)


def own_handler(number: int, frame: FrameType | None) -> None:
    pass


@pytest.mark.parametrize("handler", [signal.SIG_DFL, own_handler])
@pytest.mark.parametrize("stop", [1, None])
def test_reading_leaves_the_handler_of_ended_children_as_it_was(
    handler: signal.Handlers, stop: int | None, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PyTorch sets its own with a process's first loader: each time as if it were the first.
    handling = torch.utils.data._utils.signal_handling
    monkeypatch.setattr(handling, "_SIGCHLD_handler_set", False)
    before = signal.signal(signal.SIGCHLD, handler)
    try:
        items = training_items(tiny.config, tiny.table, tiny.images)
        with contextlib.closing(read(items, batch_size=4, workers=2)) as batches:
            for _ in range(stop or len(items) // 4):
                next(batches)
            assert handling._SIGCHLD_handler_set
            while_reading = signal.getsignal(signal.SIGCHLD)
        assert while_reading == signal.getsignal(signal.SIGCHLD) == handler
    finally:
        signal.signal(signal.SIGCHLD, before)


def spoilt(tiny: Tiny, folder: Path, how: str) -> Path:
    """Copy the images, with one spoilt; return its path."""
    folder.mkdir()
    for path in tiny.images.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    path = folder / read_table(tiny.table, ["train"])["file"][0]
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "no image":
        path.write_text("<html>moved</html>")
    else:
        Image.new("RGB", (10, 20)).save(path)
    return path


@pytest.mark.parametrize(
    ("how", "workers", "reason"),
    [
        ("missing", 0, "image not found"),
        ("cut short", 0, "image damaged"),
        ("empty", 0, "image damaged"),
        ("no image", 0, "image damaged"),
        ("another size", 0, "is 10x20 pixels, its annotation says "),
        # A reader process hands its errors over with its whole traceback.
        ("missing", 1, "image not found"),
    ],
)
def test_a_bad_image_is_one_line_that_names_it(
    how: str, workers: int, reason: str, tiny: Tiny, tmp_path: Path
) -> None:
    path = spoilt(tiny, tmp_path / "images", how)
    items = training_items(tiny.config, tiny.table, path.parent)
    with pytest.raises(DataError) as caught:
        list(read(items, batch_size=4, workers=workers))
    assert str(caught.value).startswith(f"{path}: {reason}")
    assert "\n" not in str(caught.value)


def evaluated(tiny: Tiny, splits: list[str], batch_size: int = 8) -> EvaluationItems:
    evaluate = tiny.config.evaluate.model_copy(update={"batch_size": batch_size})
    config = tiny.config.model_copy(update={"evaluate": evaluate})
    return evaluation_items(config, tiny.table, tiny.images, splits=splits)


@pytest.mark.parametrize("batch_size", [1, 8, 10_000])
def test_evaluation_covers_each_sentence_and_each_image_once(tiny: Tiny, batch_size: int) -> None:
    splits = ["val", "testA", "testB"]
    items = evaluated(tiny, splits, batch_size)
    batches = list(read(items, batch_size=None, workers=0))
    expected = read_table(tiny.table, splits)
    rows = pd.concat([batch.rows for batch in batches])
    assert sorted(rows["sent_id"]) == sorted(expected["sent_id"])
    shown = [i for batch in batches for i in batch.rows["image_id"].unique()]
    assert sorted(shown) == sorted(set(expected["image_id"]))
    assert sum(len(batch.images) for batch in batches) == len(shown)
    for batch in batches:
        assert batch.rows["split"].nunique() == 1
        # It ends with the image that fills it.
        last = batch.rows["image_id"].iloc[-1]
        assert (batch.rows["image_id"] != last).sum() < batch_size
        tokens, _ = tokenize(list(batch.rows["sentence"]), 17)
        assert_close(batch.tokens, tokens)
        for number, row in zip(batch.image_of_sentence, batch.rows.itertuples(), strict=True):
            placement = batch.placements[number]
            assert (placement.height, placement.width) == (row.height, row.width)
            assert_close(batch.images[number], read_square(tiny.images / row.file, placement))
