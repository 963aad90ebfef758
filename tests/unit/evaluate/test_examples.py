"""What `mmnet examples` and `mmnet queries` write: the model's own masks, attention and scores."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mmnet.cli.parser import main
from mmnet.config.paths import Paths, RunPaths
from mmnet.config.schema import Config
from mmnet.config.tables import SPLIT, without_mmp
from mmnet.data.dataset import evaluation_items, read_mask
from mmnet.data.loader import read
from mmnet.data.tokenizer import tokenize
from mmnet.data.transforms import logits_to_image, normalise
from mmnet.evaluate.metrics import MEASURES
from mmnet.evaluate.predict import load_model, predict_masks, predict_splits
from mmnet.evaluate.queries import merge_words
from mmnet.model import checkpoint
from mmnet.model.build import build_model
from mmnet.report.figures.mask_figures import read_shown
from support.tiny import ROOT, TINY, Tiny
from support.training import identity_like

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def torch_settings() -> Iterator[None]:
    """The commands change settings of this process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


class Place:
    """A folder as the commands find it: prepared data, and a run with MMP and one without."""

    def __init__(self, folder: Path, tiny: Tiny) -> None:
        self.folder, self.params = folder, tiny.params
        self.paths = Paths("mini", folder)
        (folder / "data" / "mini").mkdir(parents=True)
        self.paths.images.symlink_to(tiny.images)
        for name, table in tiny.tables.items():
            self.paths.table(name).symlink_to(table)
        shutil.copy(ROOT / "params.yaml", folder)
        self.config = tiny.params.resolve("nq_24", 0)
        self.twin = without_mmp(tiny.params, self.config)
        for number, config in enumerate((self.config, self.twin)):
            self.make(config, number)

    def make(self, config: Config, number: int) -> None:
        torch.manual_seed(number)
        model = build_model(config.model, config.tower, weights=None)
        # Random weights say the same everywhere: let masks and scores be lively.
        for part in (model.query_generator, model.mask_decoder):
            for weights in part.parameters():
                torch.nn.init.normal_(weights, 0, 0.5)
        run = self.run(config)
        content = {"model": model.state_dict(), "identity": identity_like(config)}
        checkpoint.save(run.checkpoint, content)
        predict_splits(
            config,
            self.paths.inputs(config),
            checkpoint=run.checkpoint,
            output=run.rows,
            device=CPU,
        )

    def run(self, config: Config) -> RunPaths:
        return self.paths.run(config.experiment, 0)

    @property
    def overrides(self) -> list[str]:
        return [part for override in TINY for part in ("--set", override)]

    def shown(self, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        return read_shown(self.folder / path, self.config, command="")

    def items(self) -> Any:
        table = self.paths.table("refcoco+")
        return evaluation_items(self.config, table, self.paths.images, splits=[SPLIT])


@pytest.fixture(scope="module")
def finished(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place where `examples` and `queries` have run."""
    place = Place(tmp_path_factory.mktemp("figures"), tiny)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.folder)
        for command in ("examples", "queries"):
            assert main([command, "--experiment", "nq_24", *place.overrides]) == 0
    return place


@pytest.fixture
def place(finished: Place, tmp_path: Path) -> Place:
    """A copy to break."""
    shutil.copytree(finished.folder, tmp_path / "place", symlinks=True)
    copy = object.__new__(Place)
    paths = Paths("mini", tmp_path / "place")
    copy.__dict__ = {**finished.__dict__, "folder": tmp_path / "place", "paths": paths}
    return copy


def test_examples_hold_the_masks_that_are_predicted(finished: Place) -> None:
    about, arrays = finished.shown(finished.paths.run("nq_24", 0).examples)
    chosen = [example["sent_id"] for example in about["examples"]]
    assert chosen
    rows = finished.items().rows.set_index("sent_id")
    mixed = 0
    for key, config in (("with", finished.config), ("without", finished.twin)):
        masks = predict_masks(
            load_model(config, finished.run(config).checkpoint),
            read(finished.items(), batch_size=None, workers=0),
            sent_ids=chosen,
            threshold=config.evaluate.threshold,
            device=CPU,
        )
        for k, example in enumerate(about["examples"]):
            row = rows.loc[example["sent_id"]]
            truth = read_mask(row["counts"], row["height"], row["width"]).numpy()
            assert np.array_equal(arrays[f"{k}/truth"], truth)
            mask = arrays[f"{k}/{key}"]
            assert np.array_equal(mask, masks[example["sent_id"]].numpy())
            union = (mask | truth).sum()
            iou = (mask & truth).sum() / union if union else 1
            assert example[f"iou_{key}"] == pytest.approx(iou)
            assert example["sentence"] == row["sentence"]
            mixed += mask.any() and not mask.all()
    assert mixed


def test_figure6_weighs_masks_by_scores_to_y_and_attention_sums_to_one(finished: Place) -> None:
    about, arrays = finished.shown(finished.paths.run("nq_24", 0).queries)
    attention, scores, masks = (arrays[key] for key in ("attention", "scores", "masks"))
    assert attention.shape == (24, len(about["words"]))
    np.testing.assert_allclose(attention.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(scores.sum(), 1, rtol=1e-5)
    y = np.tensordot(scores, masks, 1)  # Eq. 16
    np.testing.assert_allclose(arrays["y"], y, atol=1e-4)
    assert np.abs(y - masks.mean(0)).max() > 0.01
    # And y is what the model gives.
    items = finished.items()
    number = list(items.rows["sent_id"]).index(about["sent_id"])
    batch = next(items[i] for i, b in enumerate(items.batches) if number in b)
    place = list(batch.rows["sent_id"]).index(about["sent_id"])
    image = int(batch.image_of_sentence[place])
    model = load_model(finished.config, finished.run(finished.config).checkpoint).eval()
    with torch.inference_mode():
        logits = model(normalise(batch.images[image, None]), batch.tokens[place, None])
    direct = logits_to_image(logits, batch.placements[image])[0]
    np.testing.assert_allclose(arrays["y"], direct, atol=1e-4)
    assert about["words"] == ["[SOS]", *about["sentence"].split(), "[EOS]"]


def test_figure6_says_how_different_the_queries_are_as_the_rows_have_it(finished: Place) -> None:
    about, arrays = finished.shown(finished.paths.run("nq_24", 0).queries)
    rows = pd.read_parquet(finished.run(finished.config).rows)
    rows = rows[rows["split"] == SPLIT].set_index("sent_id")
    assert about["sentences"] == len(rows)
    assert about["mean_queries"] == pytest.approx(rows[[*MEASURES]].mean().to_dict())
    assert about["queries"] == pytest.approx(rows.loc[about["sent_id"], [*MEASURES]].to_dict())
    logs = np.log(arrays["scores"].astype(float))
    found = -(arrays["scores"] * logs).sum() / np.log(24)
    assert about["queries"]["score_entropy"] == pytest.approx(found, rel=1e-4)


def test_tokens_become_words_again() -> None:
    tokens, _ = tokenize(["the unquestionably naïve $20 guy's"], 20)
    attention = torch.rand(2, 20)
    attention[:, (tokens[0] == 0)] = 0
    words, merged = merge_words(tokens[0], attention)
    assert "".join(words) == "[SOS]theunquestionablynaïve$20guy's[EOS]"
    assert words[:4] == ["[SOS]", "the", "unquestionably", "naïve"]
    assert merged.shape == (2, len(words))
    torch.testing.assert_close(merged.sum(1), attention.sum(1))
    assert int((tokens[0] != 0).sum()) > len(words)  # some were of several tokens
    cut, _ = tokenize(["unquestionably"], 3)
    words, merged = merge_words(cut[0], torch.tensor([[0.1, 0.2, 0.7]]))
    assert len(words) == 3
    assert "unquestionably".startswith(words[1])
    assert merged.tolist()[0] == pytest.approx([0.1, 0.2, 0.7])


def test_what_figures_show_is_the_same_bytes_each_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)
    for command in ("examples", "queries"):
        path = getattr(place.run(place.config), command)
        before = path.read_bytes()
        path.unlink()
        assert main([command, "--experiment", "nq_24", *place.overrides]) == 0
        assert path.read_bytes() == before


def refusal(
    place: Place, capsys: Any, monkeypatch: pytest.MonkeyPatch, *command: str, code: int = 1
) -> str:
    monkeypatch.chdir(place.folder)
    capsys.readouterr()
    assert main([*command, *place.overrides]) == code
    message = capsys.readouterr().err
    assert message.count("\n") == 1, message
    return str(message)


def test_a_missing_run_is_named(place: Place, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = ("examples", "--experiment", "nq_24", "--set", "allow_missing=true")
    place.run(place.twin).rows.unlink()
    message = refusal(place, capsys, monkeypatch, *examples)
    assert "figure5 (mini): nq_24_no_mmp seed 0 is missing" in message
    assert "results/figure5.pdf" in message
    place.run(place.config).checkpoint.unlink()
    message = refusal(place, capsys, monkeypatch, "queries", "--experiment", "nq_24")
    assert "figure6 (mini): nq_24 seed 0 is missing" in message
    message = refusal(place, capsys, monkeypatch, "examples", "--experiment", "nq_4")
    assert "nq_4" in message


def test_rows_that_cannot_be_compared_are_refused(
    place: Place, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = place.run(place.twin)
    rows = pd.read_parquet(twin.rows)
    attrs = rows.attrs
    fewer = rows[rows["sent_id"] != rows.loc[rows["split"] == SPLIT, "sent_id"].iloc[0]]
    fewer.attrs = attrs
    fewer.to_parquet(twin.rows)
    message = refusal(place, capsys, monkeypatch, "examples", "--experiment", "nq_24")
    assert f"{SPLIT}: nq_24 seed 0 has" in message
    own = place.run(place.config)
    for run in (own, twin):
        few = pd.read_parquet(run.rows)
        few = few[few["sent_id"].isin(fewer["sent_id"])]
        few.attrs = pd.read_parquet(run.rows).attrs
        few.to_parquet(run.rows)
    for command in ("examples", "queries"):
        message = refusal(place, capsys, monkeypatch, command, "--experiment", "nq_24")
        assert "data/mini/refcoco+.parquet" in message
    for key, value in (("profile", "paper"), ("seed", 5)):
        rows.attrs = {"config": {**attrs["config"], key: value}}
        rows.to_parquet(twin.rows)
        message = refusal(place, capsys, monkeypatch, "examples", "--experiment", "nq_24")
        assert "different parameters" in message
