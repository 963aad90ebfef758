"""A trained model in use: it finds what `predict` counted, from its checkpoint alone."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mmnet
from mmnet.data.dataset import evaluation_items
from mmnet.evaluate.predict import predict, predict_masks
from mmnet.model import checkpoint
from mmnet.runtime.errors import CheckpointError, ConfigError, DataError
from mmnet.runtime.portable import VARIABLES, is_supported
from mmnet.use.model import MOST, Model
from mmnet.use.pairs import Failure
from support.tiny import ROOT, Tiny
from support.training import CPU
from support.use import untrained


@pytest.fixture
def run(undisturbed: Path) -> Path:
    """The folder of a run that has been trained."""
    return undisturbed / "runs" / "mini" / "refcoco_vit_b" / "seed0"


@pytest.fixture(scope="module")
def model() -> Model:
    return untrained()


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "street.png"
    noise = np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_results_are_the_masks_that_predict_counted_bit_for_bit(tiny: Tiny, run: Path) -> None:
    """In the same batches, `find_many`; with each picture a batch of its own, `find`."""
    model = mmnet.load(run, device="cpu")
    for batch_size in (tiny.config.evaluate.batch_size, 1):
        items = evaluation_items(
            tiny.config, tiny.table, tiny.images, splits=["val"], batch_size=batch_size
        )
        assert len(items) > 1
        rows, limit = items.rows, tiny.config.evaluate.threshold
        batches = [items[number] for number in range(len(items))]
        counted = predict_masks(
            model.network, batches, sent_ids=set(rows["sent_id"]), threshold=limit, device=CPU
        )
        pairs = [(tiny.images / row.file, row.sentence) for row in rows.itertuples()]
        results = list(model.find_many(pairs, batch_size))
        assert [result.number for result in results] == list(range(len(rows)))
        for sent_id, result in zip(rows["sent_id"], results, strict=True):
            assert np.array_equal(result.mask, counted[sent_id].numpy())
        counts = predict(model.network, batches, threshold=limit, device=CPU)
        union = [result.area for result in results] + rows["area"] - counts["intersection"]
        assert np.array_equal(union, counts["union"])
    assert len({result.area for result in results}) > 1
    for file, of_picture in rows.groupby("file"):
        found = model.look(tiny.images / str(file)).find(list(of_picture["sentence"]))
        for sent_id, result in zip(of_picture["sent_id"], found, strict=True):
            assert np.array_equal(result.mask, counted[sent_id].numpy())


def test_a_checkpoint_alone_is_enough(
    tiny: Tiny, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(run / "checkpoint.pt", tmp_path / "my model.pt")
    picture = next(tiny.images.iterdir())
    of_run, alone = mmnet.load(run), mmnet.load("my model.pt", device="cpu")
    assert of_run.config.name == "refcoco_vit_b/seed0"
    assert alone.config.name == "my model"
    assert alone.config.threshold == tiny.config.train.val_threshold
    assert alone.config.max_length == tiny.config.dataset.max_length
    found = [loaded.look(picture).find("the circle").logits for loaded in (of_run, alone)]
    assert torch.equal(*found)


def test_what_is_no_checkpoint_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    old = checkpoint.load(run / "checkpoint.pt")
    del old["identity"]["values"]["model"]["mqe"]
    torch.save(old, tmp_path / "old.pt")
    other = checkpoint.load(run / "checkpoint.pt")
    other["identity"]["values"]["model"]["num_queries"] += 1
    torch.save(other, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("nothing")
    for name in ("none.pt", ".", "text.pt", "old.pt", "other.pt"):
        with pytest.raises(CheckpointError) as caught:
            mmnet.load(tmp_path / name)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "Delete" not in str(caught.value)
    with pytest.raises(ConfigError):
        mmnet.load(run, device="gpu")
    for path in (run.parent, tmp_path / ("x" * 300)):
        with pytest.raises(CheckpointError, match="seed0" if path == run.parent else "x"):
            mmnet.load(path)


def test_exact_arithmetic_is_chosen_before_torch_or_refused(run: Path, tmp_path: Path) -> None:
    script = f"""
import os, sys
import mmnet
assert not {{"torch", "numpy", "pydantic"}} & set(sys.modules)
if "late" in sys.argv:
    import torch
try:
    mmnet.load(sys.argv[1], exact=True)
except Exception as error:
    sys.exit(type(error).__name__)
import torch
assert torch.are_deterministic_algorithms_enabled()
assert torch.get_num_threads() == 1
assert {VARIABLES!r}.items() <= os.environ.items()
"""
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    shutil.copy(run / "checkpoint.pt", tmp_path)
    expected = {("", run): "", ("", tmp_path): "", ("late", run): "MMNetError"}
    if not is_supported():
        pytest.skip("not x86-64 with AVX2")
    for (when, folder), error in expected.items():
        command = [sys.executable, "-c", script, str(folder), when]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.stderr.strip() == error
        assert (done.returncode == 0) == (not error)


def test_one_sentence_gives_a_result_and_a_list_gives_a_list(model: Model, street: Path) -> None:
    picture = model.look(street)
    one, several = picture.find("the left dog"), picture.find(["the left dog", "a cat"])
    assert [result.sentence for result in several] == ["the left dog", "a cat"]
    assert [result.number for result in several] == [0, 1]
    assert one.image == str(street)
    assert one.size == picture.size == (30, 50)
    assert one.mask.shape == one.probability.shape == (30, 50)
    assert np.allclose(one.probability, several[0].probability, atol=1e-5)
    assert not np.allclose(one.probability, several[1].probability, atol=1e-5)
    assert picture.find([]) == []
    with Image.open(street) as opened:
        for source in (opened, np.array(opened)):
            other = model.look(source)
            assert other.image is None
            assert torch.equal(other.find("the left dog").logits, one.logits)


def test_many_sentences_of_one_picture_are_read_in_parts(model: Model, street: Path) -> None:
    picture = model.look(street)
    sentences = [f"dog {number}" for number in range(MOST + 2)]
    found = picture.find(sentences)
    assert len(found) == len(sentences)
    last = picture.find(sentences[-1])
    assert np.allclose(found[-1].probability, last.probability, atol=1e-5)


def test_sentences_are_checked_and_a_cut_is_said(model: Model, street: Path) -> None:
    picture = model.look(street)
    for empty in ("", " \t\n"):
        with pytest.raises(DataError):
            picture.find(["a dog", empty])
        with pytest.raises(DataError):
            picture.queries(empty)
    fits, long = "a " * (model.config.max_length - 2), "a " * (model.config.max_length - 1)
    assert [result.cut for result in picture.find([fits, long, long * 1000])] == [False, True, True]
    assert picture.queries(long).cut
    assert torch.equal(picture.find(fits).logits, picture.find(long).logits)


def test_what_is_no_sentence_or_picture_is_an_error_of_ours(model: Model, street: Path) -> None:
    picture: Any = model.look(street)
    for wrong in (None, 5, ["a dog", None], b"a dog", "caf\udce9"):
        with pytest.raises(DataError):
            picture.find(wrong)
        with pytest.raises(DataError):
            picture.queries(wrong)
        (failure,) = model.try_many([(street, wrong)])  # type: ignore[list-item]
        assert isinstance(failure, Failure)
    for source in (b"street.png", None, 5):
        with pytest.raises(DataError):
            model.look(source)  # type: ignore[arg-type]


def test_thresholds_are_of_the_probability(model: Model, street: Path) -> None:
    picture = model.look(street)
    middle = float(np.median(picture.find("a dog").probability))
    result = picture.find("a dog", threshold=middle)
    assert 0 < result.area < result.mask.size
    assert (result.mask == (result.probability > middle)).mean() > 0.999
    assert picture.find("a dog").threshold == model.config.threshold
    for wrong in (0, 1, -0.5, 35, float("nan"), "0.5"):
        with pytest.raises(ConfigError):
            picture.find("a dog", threshold=wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError):
            next(model.find_many([(street, "a dog")], threshold=wrong))


def test_pairs_are_grouped_and_each_picture_is_decoded_and_encoded_once(
    model: Model, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path in paths:
        shutil.copy(street, path)
    array = np.zeros((8, 9, 3), np.uint8)
    sources: list[Any] = [*paths, array]
    pairs = [(source, f"dog {n}") for n in range(3) for source in sources]
    encoded, decode, encode = [], model.read_pixels, model.encode
    decoded: list[object] = []
    monkeypatch.setattr(model, "read_pixels", lambda s: decoded.append(s) or decode(s))
    monkeypatch.setattr(model, "encode", lambda p: encoded.append(len(p)) or encode(p))
    results = list(model.find_many(iter(pairs), batch_size=4))
    assert [result.number for result in results] == [
        number for first in range(6) for number in (first, first + 6, first + 12)
    ]
    assert len(decoded) == 6
    assert encoded == [2, 2, 2]  # the second picture brings a batch to 4 sentences or more
    for result in results:
        assert result.sentence == pairs[result.number][1]
        source = pairs[result.number][0]
        assert result.image == (None if source is array else str(source))


def test_a_pair_that_fails_leaves_the_others(model: Model, street: Path) -> None:
    pairs = [(street, "a dog"), ("none.png", "a dog"), (street, ""), ("none.png", "a cat")]
    outcomes = {outcome.number: outcome for outcome in model.try_many(pairs)}
    assert [type(outcomes[n]) is Failure for n in range(4)] == [False, True, True, True]
    with pytest.raises(DataError):
        list(model.find_many(pairs))


def test_no_thread_is_left_behind_by_a_caller_who_stops_early(model: Model, street: Path) -> None:
    before = threading.active_count()
    results = model.find_many([(street, "a dog"), (np.zeros((9, 9, 3), np.uint8), "a cat")], 1)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_queries_make_the_mask_by_their_scores(model: Model, street: Path) -> None:
    picture = model.look(street)
    queries = picture.queries("the left dog")
    assert queries.words == ["[SOS]", "the", "left", "dog", "[EOS]"]
    assert queries.attention.shape == (3, 5)
    assert np.allclose(queries.attention.sum(1), 1, atol=1e-5)
    assert queries.masks.shape == (3, 30, 50)
    assert queries.masks_at(3, 5).shape == (3, 3, 5)
    y = torch.einsum("n,nhw->hw", torch.from_numpy(queries.scores), queries.logits)  # Eq. 16
    assert torch.allclose(y, picture.find("the left dog").logits, atol=1e-4)
    assert json.dumps(queries.measures)


def test_queries_without_masks_of_their_own_are_refused(street: Path) -> None:
    picture = untrained(mmp=False).look(street)
    assert picture.find("a dog").mask.shape == (30, 50)
    with pytest.raises(ConfigError):
        picture.queries("a dog")
    assert np.isnan(untrained(mqe=False).look(street).queries("a").measures["score_entropy"])
