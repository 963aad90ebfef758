"""The paper's four towers at their true size: OpenAI's files, one step of training, evaluation.

A tower's file, of up to 0.9 GB, is written once, shared by its tests, and deleted after them.
What takes seconds is computed for one ResNet and one ViT; test_model.py has all four on the meta
device.
"""

import gc
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.openai import load_openai_model
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

from mmnet.cli.parser import main
from mmnet.config.load import load_params
from mmnet.config.schema import Config
from mmnet.data.dataset import evaluation_items, read_image, read_mask
from mmnet.data.loader import read
from mmnet.data.prepare import prepare_table, unpack_images
from mmnet.evaluate.pictures import BLUE, SIDE, comparison, sheet
from mmnet.evaluate.predict import predict, predict_masks
from mmnet.model.build import build_model
from mmnet.model.clip import load_clip
from mmnet.model.mmnet import MMNet
from mmnet.model.pyramid import up
from mmnet.runtime.errors import CheckpointError
from support.model import sentences
from support.openai_files import write_openai_file
from support.tiny import ROOT, SLICE

PARAMS = load_params(ROOT / "params.yaml", ["profile=paper"])
TOWERS = PARAMS.active.towers
CPU = torch.device("cpu")

PATCHES = {"rn50": 15, "rn101": 15, "vit_b": 30, "vit_l": 34}
"""The side of the grid that has positions; ViT-L's images shrink to 476 = 34 * 14."""
OPENAIS_BYTES = {
    "rn50": 255_827_503,
    "rn101": 291_791_292,
    "vit_b": 350_837_078,
    "vit_l": 932_768_134,
}
NEIGHBOUR = {"rn50": "rn101", "rn101": "rn50", "vit_b": "vit_l", "vit_l": "vit_b"}


def config_of(tower: str) -> Config:
    """A paper experiment on RefCOCO, on any tower, evaluated on val."""
    config = PARAMS.resolve("refcoco_vit_b", 0)
    dataset = config.dataset.model_copy(update={"splits": ["val"], "counts": None})
    return config.model_copy(update={"tower": TOWERS[tower], "dataset": dataset})


FIRST = ["rn50", "vit_b"]
NAMES = [*FIRST, "rn101", "vit_l"]


def of(names: list[str]) -> pytest.MarkDecorator:
    """Run a test for the first of NAMES: pytest sorts tests that share a tower by its index."""
    params = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]
    return pytest.mark.parametrize("tower", params, scope="module")


@pytest.fixture(scope="module")
def file(tower: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("openai") / f"{tower}.pt"
    write_openai_file(TOWERS[tower].architecture, path, seed=1)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def loaded(tower: str, file: Path) -> Iterator[list[MMNet]]:
    """The model, built as training builds it; in a list, to be let go of."""
    torch.manual_seed(0)
    holder = [build_model(config_of(tower).model, TOWERS[tower], weights=file)]
    yield holder
    holder.clear()
    gc.collect()


def state_of(file: Path) -> dict[str, Tensor]:
    """What PyTorch itself finds in a TorchScript archive."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        state: dict[str, Tensor] = torch.jit.load(str(file), map_location="cpu").state_dict()
    return state


# Weights.


@of(FIRST)
@torch.no_grad()
def test_open_clip_takes_the_file_for_openais_and_finds_the_same_features(
    tower: str, file: Path
) -> None:
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        theirs = load_openai_model(str(file), device="cpu", precision="fp32")
    ours = load_clip(TOWERS[tower].architecture, weights=file).eval()
    # Ours lacks the code of a traced model; a large tensor of another precision would show.
    assert file.stat().st_size == pytest.approx(OPENAIS_BYTES[tower], rel=0.005)
    torch.manual_seed(0)
    image, text = torch.randn(1, 3, 224, 224), sentences(2, 77)
    for expected, found in (
        (theirs.encode_image(image), ours.encode_image(image)),
        (theirs.encode_text(text), ours.encode_text(text)),
    ):
        assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert 0.1 < expected.std() < 10


@of(NAMES)
def test_every_tensor_of_the_file_is_used_and_none_is_left_over(
    tower: str, file: Path, loaded: list[MMNet]
) -> None:
    state = state_of(file)
    buffers = {name: int(state.pop(name)) for name in ("input_resolution", "context_length")}
    assert buffers == {"input_resolution": 224, "context_length": 77}
    del state["vocab_size"]
    del state["logit_scale"]  # CLIP's temperature: MMNet compares no sentence with an image.
    (mmnet,) = loaded
    visual = {f"visual.{k}": v for k, v in mmnet.backbone.visual.state_dict().items()}
    own = {**visual, **mmnet.text_encoder.state_dict()}
    assert own.keys() == state.keys()
    half = [name for name, tensor in state.items() if tensor.dtype == torch.half]
    assert len(half) > 100
    resized = [name for name in own if own[name].shape != state[name].shape]
    assert len(resized) == 1
    assert resized[0] in ("visual.positional_embedding", "visual.attnpool.positional_embedding")
    for name in own.keys() - {*resized}:
        assert own[name].dtype == (
            torch.long if name.endswith("num_batches_tracked") else torch.float
        )
        assert torch.equal(own[name], state[name].to(own[name].dtype)), name
    before, after = state[resized[0]], own[resized[0]]
    assert after.shape == (1 + PATCHES[tower] ** 2, before.shape[1])
    assert torch.equal(after[0], before[0])
    assert_close(after[1:], resized_by_pillow(before[1:], PATCHES[tower]), rtol=1e-3, atol=1e-5)


def resized_by_pillow(cells: Tensor, grid: int) -> Tensor:
    side = round(len(cells) ** 0.5)
    maps = cells.T.reshape(-1, side, side).contiguous().numpy()
    return (
        torch.from_numpy(
            np.stack(
                [
                    np.asarray(Image.fromarray(cell).resize((grid, grid), Image.Resampling.BICUBIC))
                    for cell in maps
                ]
            )
        )
        .flatten(1)
        .T
    )


@of(NAMES)
def test_a_file_of_another_tower_or_a_damaged_one_is_refused(
    tower: str, file: Path, tmp_path: Path
) -> None:
    other = TOWERS[NEIGHBOUR[tower]].architecture
    assert f"{file}: holds no {other} (" in refusal(other, file)
    with file.open("rb+") as damaged:
        begin = damaged.read(10_000_000)
        damaged.seek(-10_000_000, 2)
        place = damaged.tell()
        end = damaged.read(1000)
        damaged.seek(place)
        damaged.write(bytes(1000))
    own = TOWERS[tower].architecture
    assert "not readable as weights (Bad CRC-32" in refusal(own, file)
    with file.open("rb+") as mended:
        mended.seek(place)
        mended.write(end)
    (tmp_path / "short.pt").write_bytes(begin)
    assert "not readable as weights" in refusal(own, tmp_path / "short.pt")


def refusal(architecture: str, weights: Path) -> str:
    with (
        # Shapes tell, so no values are needed; PyTorch warns that it copies none.
        torch.device("meta"),
        warnings.catch_warnings(action="ignore", category=UserWarning),
        pytest.raises(CheckpointError) as error,
    ):
        load_clip(architecture, weights=weights)
    message = str(error.value)
    assert "\n" not in message
    return message


# One step of training.


@of(FIRST)
def test_one_step_has_every_symbol_of_the_paper_and_a_gradient_for_every_parameter(
    tower: str, loaded: list[MMNet]
) -> None:
    (mmnet,) = loaded
    mmnet.train()
    for part in mmnet.modules():
        if isinstance(part, torch.nn.BatchNorm1d):
            part.eval()  # one vector has no statistics
    found: dict[str, Tensor] = {}
    hooks = [
        mmnet.get_submodule(part).register_forward_hook(noting(found, inputs, outputs))
        for part, (inputs, outputs) in SYMBOLS.items()
    ]
    torch.manual_seed(0)
    image, tokens = torch.randn(1, 3, 480, 480), sentences(1, 17)
    found["y"] = mmnet(image, tokens)
    for hook in hooks:
        hook.remove()
    projector = mmnet.mask_decoder.projector
    with torch.no_grad():
        found["F_m2"], _ = found.pop("[F_m2, F_m3, F_m4]").split([1024, 1536], 1)
        # The model folds F_p and the masks away; here they are made, as Eq. 14 and Eq. 16 say.
        found["F_p"] = projector.linear(up(found.pop("Conv(Up(F_s))")))
        kernels = found["F_pn"][0, :, :-1].unflatten(1, (256, 3, 3))
        masks = F.conv2d(found["F_p"], kernels, found["F_pn"][0, :, -1], padding=1)
        made = mmnet.mask_decoder.make(found["F_s"], found["F_q"])
        found["masks"], scores = mmnet.masks(made), made.s_q
        assert_close(found["masks"], masks, rtol=1e-3, atol=1e-3)
        assert_close(found["y"], (scores[..., None, None] * masks).sum(1), rtol=1e-3, atol=1e-3)
    assert {name: tuple(tensor.shape[1:]) for name, tensor in found.items()} == shapes(tower)
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert_close(found["A"].sum(-1), torch.ones(1, 24))
    assert_close(found["S_q"].sum(-1), torch.ones(1))

    truth = torch.zeros(1, 120, 120)
    truth[:, 30:60, 40:90] = 1
    loss = F.binary_cross_entropy_with_logits(found["y"], truth)
    assert loss.isfinite()
    loss.backward()
    for name, parameter in mmnet.named_parameters():
        assert parameter.requires_grad, name
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    mmnet.zero_grad()


NONE: tuple[str, ...] = ()
SYMBOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "backbone": (NONE, ("F_v2", "F_v3", "F_v4", "F_vg")),
    "text_encoder": (NONE, ("F_t", "F_tg")),
    "neck.pyramid.w_m4": (("F_m4",), NONE),
    "neck.pyramid.w_m3": (("F_m3",), NONE),
    "neck.pyramid.aggregate": (("[F_m2, F_m3, F_m4]",), ("F_m",)),
    "neck": (NONE, ("F_vt",)),
    "query_generator.dense.pyramid": (NONE, ("F'_v",)),
    "query_generator.dense": (NONE, ("F_vd",)),
    "query_generator.words": (NONE, ("F_tv",)),
    "query_generator": (NONE, ("F_q", "A")),
    "decoder.layers.2.ln_2": (("F'_vt",), NONE),
    "decoder.layers.2.ln_3": (("F'_s",), NONE),
    "decoder": (NONE, ("F_s",)),
    "mask_decoder.projector.conv": (NONE, ("Conv(Up(F_s))",)),
    "mask_decoder.projector.w_p": (NONE, ("F_pn",)),
    "mask_decoder.estimator": (NONE, ("S_q",)),
}
"""Which part of the model takes in or gives out which symbols of the paper."""


def noting(found: dict[str, Tensor], inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Any:
    def hook(module: nn.Module, given: tuple[Tensor, ...], output: Any) -> None:
        results = output if isinstance(output, tuple) else (output,)
        found.update(zip(inputs, given, strict=False))
        found.update(zip(outputs, results, strict=False))

    return hook


def shapes(tower: str) -> dict[str, tuple[int, ...]]:
    """The paper's sizes of one image and sentence: H3 = W3 = 30, N = 900, C = 512, L = 17."""
    token_width, global_width = {"rn50": (512, 1024), "vit_b": (512, 512)}[tower]
    return {
        "F_t": (17, token_width),
        "F_tg": (global_width,),
        "F_v2": (256, 60, 60),
        "F_v3": (512, 30, 30),
        "F_v4": (1024, 15, 15),
        "F_vg": (1024,),
        "F_m4": (512, 30, 30),
        "F_m3": (1024, 30, 30),
        "F_m2": (1024, 30, 30),
        "F_m": (512, 30, 30),
        "F_vt": (900, 512),
        "F'_v": (512, 30, 30),
        "F_vd": (24, 900),
        "F_tv": (17, 512),
        "A": (24, 17),
        "F_q": (24, 512),
        "F'_vt": (900, 512),
        "F'_s": (900, 512),
        "F_s": (900, 512),
        "F_p": (256, 120, 120),
        "F_pn": (24, 9 * 256 + 1),
        "S_q": (24,),
        "masks": (24, 120, 120),
        "y": (120, 120),
    }


# Evaluation.


@of(FIRST[:1])
@pytest.mark.skipif(not SLICE.exists(), reason="no slice of the real data on this machine")
def test_a_few_sentences_of_the_data_are_evaluated_and_drawn(
    tower: str, loaded: list[MMNet], tmp_path: Path
) -> None:
    config, (mmnet,) = config_of(tower), loaded
    table, images = prepared(config, tmp_path, image_id=520199)
    items = evaluation_items(config, table, images, splits=["val"])
    batches = list(read(items, batch_size=None, workers=0))
    rows = predict(mmnet, batches, threshold=0.35, device=CPU).set_index("sent_id")
    assert len(rows) == len(items.rows) == 4
    chosen = sorted(rows.index)[:2]
    masks = predict_masks(mmnet, batches, sent_ids=chosen, threshold=0.35, device=CPU)
    assert sorted(masks) == chosen
    drawn = []
    for row in items.rows.itertuples():
        truth = read_mask(row.counts, row.height, row.width)
        area = int(truth.sum())
        counted = rows.loc[row.sent_id]
        assert (counted["split"], counted["ann_id"]) == ("val", row.ann_id)
        assert 0 <= counted["intersection"] <= area <= counted["union"] <= row.height * row.width
        if row.sent_id in masks:
            mask = masks[row.sent_id]
            image = read_image(images / row.file)
            assert mask.shape == truth.shape == image.shape[1:]
            assert counted["intersection"] == int((mask & truth).sum())
            assert counted["union"] == int((mask | truth).sum())
            drawn.append([comparison(row.sentence, image, truth, {"prediction": mask})])
    sheet(drawn).save(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width > 3 * 0.5 * SIDE
        assert (np.asarray(picture) == BLUE).all(-1).sum() > 50


def prepared(config: Config, folder: Path, *, image_id: int) -> tuple[Path, Path]:
    """Prepare the sentences of one image of the slice, with a train split, which it lacks."""
    copy = folder / "refcoco"
    copy.mkdir()
    (copy / "instances.json").write_bytes((SLICE / "refcoco" / "instances.json").read_bytes())
    refs = pickle.loads((SLICE / "refcoco" / "refs(unc).p").read_bytes())
    refs = [ref for ref in refs if ref["image_id"] == image_id]
    said = [{**s, "sent_id": 10**6 + i} for i, s in enumerate(refs[0]["sentences"])]
    own = {"ref_id": 10**6, "sentences": said, "sent_ids": [s["sent_id"] for s in said]}
    train = {**refs[0], **own, "split": "train"}
    (copy / "refs(unc).p").write_bytes(pickle.dumps([*refs, train]))
    table = folder / "refcoco.parquet"
    prepare_table("refcoco", config.dataset, archive=copy, output=table)
    unpack_images(
        SLICE / "images" / "mscoco" / "train2014",
        tables=[table],
        folder=folder / "images",
        manifest=folder / "images.tsv",
    )
    return table, folder / "images"


# Description.


@pytest.mark.parametrize("name", TOWERS)
def test_describe_knows_the_towers_of_the_paper(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    override = ["--set", "profile=paper", "--set", f"experiments.refcoco_vit_b.tower={name}"]
    assert main(["describe", "--experiment", "refcoco_vit_b", *override]) == 0
    text = capsys.readouterr().out
    for size in ("F_v2 256 x 60 x 60", "F_vd 24 x 900", "F_q 24 x 512", "y 120 x 120"):
        assert size in text
    with torch.device("meta"):
        mmnet = build_model(config_of(name).model, TOWERS[name], weights=None)
    assert f"{sum(p.numel() for p in mmnet.parameters()):,}" in text
