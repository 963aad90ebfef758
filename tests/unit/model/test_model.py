"""MMNet whole: CLIP's towers kept intact, shapes, gradients, ablations, weights files."""

import json
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.testing import assert_close

from mmnet.model import clip
from mmnet.model.build import build_model
from mmnet.model.clip import load_clip, resize_positions
from mmnet.model.mmnet import ImageFeatures, MMNet
from mmnet.pipeline.cost import describe
from mmnet.runtime.errors import CheckpointError, ConfigError
from support.model import build, model_config, sentences, shaken, tower_config
from support.openai_files import write_openai_file

PAPER = {
    "image_size": 480,
    "width": 512,
    "channels": [256, 512, 1024],
    "num_queries": 24,
    "decoder_layers": 3,
    "heads": 8,
    "ffn": 2048,
}
PAPER_TOWERS = ["RN50-quickgelu", "RN101-quickgelu", "ViT-B-16-quickgelu", "ViT-L-14-quickgelu"]
MINI_TOWERS = ["mini-rn", "mini-vit-b", "mini-vit-l"]
ABLATIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "no mmp": {"mmp": False},
    "no mqe": {"mqe": False},
    "neither": {"mmp": False, "mqe": False},
    "no f_vg": {"f_vg": False},
    "no relu": {"relu_kernel": False},
    "normed": {"vector_norm": "all", "generator_init": "glorot"},
    "normed, no f_vg": {"vector_norm": "all", "f_vg": False},
    "residuals": {"estimator_residual": True, "visual_query": True, "attention_bias": True},
    "one query": {"num_queries": 1},
}


def images(count: int, side: int = 64) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def on_meta(architecture: str) -> MMNet:
    with torch.device("meta"):
        return build_model(model_config(**PAPER), tower_config(architecture), weights=None)


# CLIP's towers.


@pytest.mark.parametrize("architecture", ["RN50-quickgelu", "ViT-B-16-quickgelu", "mini-vit-l"])
@torch.no_grad()
def test_towers_give_the_features_of_open_clip(architecture: str) -> None:
    torch.manual_seed(0)
    clip = load_clip(architecture, weights=None).eval()
    # A fresh ResNet's residual branches end in zeros, which would hide mistakes.
    for part in clip.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1)
            nn.init.normal_(part.running_mean, 0, 0.1)
    side = 64 if architecture == "mini-vit-l" else 224
    mmnet = build(architecture, image_size=side).eval()
    if side == 224:
        image = images(2, side)
        mmnet.backbone.visual.load_state_dict(clip.visual.state_dict())
        z_bar = mmnet.backbone.encode(image)[-1]
        assert_close(z_bar, clip.encode_image(image), rtol=1e-4, atol=1e-4)
        assert z_bar.std() > 0.01
    mmnet.text_encoder.load_state_dict(
        {k: v for k, v in clip.state_dict().items() if k in mmnet.text_encoder.state_dict()}
    )
    tokens = sentences(3, 17)
    full = torch.zeros(3, clip.context_length, dtype=torch.long)
    full[:, :17] = tokens
    _, f_tg, _ = mmnet.text_encoder(tokens)
    assert_close(f_tg, clip.encode_text(full), rtol=1e-4, atol=1e-4)
    assert f_tg.std() > 0.01


def test_resized_positions_are_the_same_at_the_same_size() -> None:
    positions = torch.randn(1 + 16, 5)
    assert resize_positions(positions, 4) is positions


def test_resized_positions_keep_the_class_token_and_the_axes() -> None:
    rows = torch.arange(4.0)[:, None].expand(4, 4).flatten()
    columns = torch.arange(4.0)[None].expand(4, 4).flatten()
    positions = torch.stack([torch.cat([torch.tensor([9.0]), x]) for x in (rows, columns)], 1)
    resized = resize_positions(positions, 6)
    assert resized.shape == (1 + 36, 2)
    assert_close(resized[0], positions[0])
    row, column = resized[1:].T.unflatten(1, (6, 6))
    assert_close(row, row[:, :1].expand(6, 6))
    assert_close(column, row.T)
    assert (row[1:, 0] > row[:-1, 0]).all()


@pytest.mark.parametrize(("reading", "a"), [("antialiased", -0.5), ("plain", -0.75)])
def test_positions_are_resized_by_the_bicubic_kernel_of_the_reading(reading: str, a: float) -> None:
    # To twice the size, cells are sampled at quarters: 3/4 from one, 1/4 from the other.
    near, far = ((a + 2) * x**3 - (a + 3) * x**2 + 1 for x in (0.25, 0.75))
    impulse = torch.zeros(1 + 64, 1)
    impulse[1 + 8 * 4 + 4] = 1
    resized = resize_positions(impulse, 16, antialias=reading == "antialiased")
    row = resized[1:, 0].view(16, 16)[8]
    assert_close(row[7:11] / row[8], torch.tensor([far, near, near, far]) / near)
    torch.manual_seed(0)
    drawn: Any = load_clip("mini-rn", weights=None).visual
    built: Any = build("mini-rn", position_resize=reading, image_size=96).backbone.visual
    expected = resize_positions(
        drawn.attnpool.positional_embedding, 3, antialias=reading == "antialiased"
    )
    assert_close(built.attnpool.positional_embedding, expected)


def test_images_of_another_size_change_the_positions_alone(tmp_path: Path) -> None:
    for architecture in MINI_TOWERS:
        clip = load_clip(architecture, weights=None)
        torch.save(clip.state_dict(), tmp_path / "clip.pt")
        resized = load_clip(architecture, weights=tmp_path / "clip.pt", image_size=96).state_dict()
        for name, tensor in clip.state_dict().items():
            if name.startswith("visual.") and name.endswith("positional_embedding"):
                assert len(resized[name]) > len(tensor)
                assert_close(resized[name][0], tensor[0])
            else:
                assert torch.equal(resized[name], tensor)


# Shapes.


@pytest.mark.parametrize("architecture", PAPER_TOWERS)
def test_paper_sizes_gradients_and_activations(architecture: str) -> None:
    mmnet = on_meta(architecture)
    kinds = [type(m) for m in mmnet.modules()]
    assert QuickGELU in kinds  # OpenAI's, throughout
    assert nn.GELU not in kinds
    image, tokens = (x.to("meta") for x in (images(2, 480), sentences(2, 17)))
    f_v2, f_v3, f_v4, f_vg = mmnet.backbone(image)
    assert f_v2.shape == (2, 256, 60, 60)
    assert f_v3.shape == (2, 512, 30, 30)
    assert f_v4.shape == (2, 1024, 15, 15)
    assert f_vg.shape == (2, 1024)
    f_q, attention, made = mmnet.read(mmnet.encode_image(image), tokens)
    assert f_q.shape == (2, 24, 512)
    assert attention.shape == (2, 24, 17)
    assert made.s_q.shape == (2, 24)
    assert made.kernels is not None
    assert made.kernels.shape == (2, 24, 9 * 256 + 1)
    assert mmnet.masks(made).shape == (2, 24, 120, 120)
    y = mmnet(image, tokens)
    assert y.shape == (2, 120, 120)
    y.sum().backward()
    assert [name for name, p in mmnet.named_parameters() if p.grad is None] == []


def test_vit_whose_patch_does_not_divide_the_image_shrinks_it(tmp_path: Path) -> None:
    config = json.loads((Path(clip.__file__).parent / "towers" / "mini-vit-b.json").read_text())
    config["vision_cfg"] |= {"patch_size": 13, "image_size": 65}
    (tmp_path / "test-vit-13.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    assert on_meta("ViT-L-14-quickgelu").backbone.visual.image_size == (476, 476)
    assert on_meta("ViT-L-14-quickgelu").backbone.visual.grid_size == (34, 34)
    mini = build("test-vit-13", image_size=96)
    z, _ = mini.backbone.encode(images(2, 96))
    assert z.shape == (2, 64, 7, 7)
    assert mini.backbone(images(2, 96))[1].shape == (2, 16, 6, 6)
    assert mini(images(2, 96), sentences(2)).shape == (2, 24, 24)


# Sentences.


@torch.no_grad()
def test_padding_receives_no_attention() -> None:
    mmnet = build().eval()
    tokens = sentences(6)
    attention = mmnet.read(mmnet.encode_image(images(6)), tokens).attention
    is_pad = tokens == 0
    assert is_pad.any()
    assert (attention.transpose(1, 2)[is_pad] == 0).all()
    assert (attention.transpose(1, 2)[~is_pad] > 0).all()


@torch.no_grad()
def test_padding_does_not_change_the_mask() -> None:
    mmnet = build().eval()
    tokens, longer = sentences(6), torch.zeros(6, 14, dtype=torch.long)
    longer[:, :9] = tokens
    other = torch.where(tokens == 0, 77, tokens)
    expected = mmnet(images(6), tokens)
    assert_close(mmnet(images(6), longer), expected)
    assert_close(mmnet(images(6), other), expected)
    assert not torch.allclose(mmnet(images(6), tokens.flip(0)), expected)


@pytest.mark.parametrize("architecture", MINI_TOWERS)
@torch.no_grad()
def test_sentences_share_the_features_of_their_image(architecture: str) -> None:
    mmnet = shaken(build(architecture))
    image, tokens = images(2).double(), sentences(5)
    image_of_sentence = torch.tensor([0, 1, 1, 0, 1])
    features = mmnet.encode_image(image)
    logits = mmnet.segment(ImageFeatures(*(x[image_of_sentence] for x in features)), tokens)
    for i, row in enumerate(image_of_sentence):
        assert_close(logits[i], mmnet(image[row, None], tokens[i, None])[0])


# Gradients and ablations.


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("architecture", MINI_TOWERS)
def test_every_parameter_gets_a_gradient(architecture: str, ablation: str) -> None:
    mmnet = build(architecture, width=64, **ABLATIONS[ablation])
    optimiser = torch.optim.SGD(mmnet.parameters(), lr=0.1)
    # A fresh ResNet's residual branches end in zeros, so the first step reaches not all.
    for _ in range(2):
        optimiser.zero_grad()
        logits = mmnet(images(4), sentences(4))
        nn.functional.binary_cross_entropy_with_logits(logits, images(4)[:, 0, ::4, ::4]).backward()
        optimiser.step()
    for name, parameter in mmnet.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # The score of a single query is 1 whatever the estimator says.
        if not (ablation == "one query" and name.startswith("mask_decoder.estimator.")):
            assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("ablation", "absent"),
    [
        ("no mmp", r"$^"),
        ("no mqe", r"mask_decoder\.estimator\."),
        ("neither", r"mask_decoder\.estimator\."),
        ("no f_vg", r"backbone\.m_g\.|query_generator\.words\.w_vg\."),
        ("no relu", r"$^"),
    ],
)
def test_each_switch_removes_its_parameters_and_no_others(ablation: str, absent: str) -> None:
    full = {name: p.shape for name, p in build().named_parameters()}
    ablated = {name: p.shape for name, p in build(**ABLATIONS[ablation]).named_parameters()}
    assert ablated == {name: s for name, s in full.items() if not re.match(absent, name)}


def test_the_number_of_queries_changes_one_convolution() -> None:
    three = {name: p.shape for name, p in build().named_parameters()}
    one = {name: p.shape for name, p in build(num_queries=1).named_parameters()}
    changed = {name for name in three if three[name] != one[name]}
    assert three.keys() == one.keys()
    assert changed == {f"query_generator.dense.conv.2.{x}" for x in ("weight", "bias")}


@pytest.mark.parametrize(
    ("ablation", "changed"),
    [
        ("no mmp", {"masks", "y"}),
        ("no mqe", {"s_q", "y"}),
        ("neither", {"masks", "s_q", "y"}),
        ("no f_vg", {"f_vg", "f_q", "attention", "f_s", "masks", "s_q", "y"}),
        ("no relu", {"masks", "y"}),
    ],
)
@torch.no_grad()
def test_each_switch_changes_what_it_should_and_nothing_else(
    ablation: str, changed: set[str]
) -> None:
    full = shaken(build())
    for name in ("w_vd", "w_a", "w_tv"):  # Fresh queries are much alike: let them read differently.
        full.query_generator.get_submodule(name)[0].weight.mul_(8)
    ablated = build(**ABLATIONS[ablation]).double().eval()
    missing, _ = ablated.load_state_dict(full.state_dict(), strict=False)
    assert missing == []
    before, after = everything(full), everything(ablated)
    differing = {
        name
        for name, tensor in before.items()
        if name not in after
        or after[name].shape != tensor.shape
        or not torch.allclose(after[name], tensor)
    }
    assert differing == changed


def everything(mmnet: MMNet) -> dict[str, Tensor]:
    features = mmnet.encode_image(images(4).double())
    f_s, f_q, attention = mmnet.decode(features, sentences_of_four())
    made = mmnet.read(features, sentences_of_four()).made
    found = {**features._asdict(), "f_s": f_s, "f_q": f_q, "attention": attention}
    found |= {"y": made.y, "s_q": made.s_q}
    if made.kernels is not None:  # without MMP, queries have no own masks
        found["masks"] = mmnet.masks(made)
    return found


def sentences_of_four() -> Tensor:
    torch.manual_seed(2)
    return sentences(4)


@torch.no_grad()
def test_the_mask_is_the_weighed_sum_of_the_masks_of_the_queries() -> None:
    mmnet = shaken(build())
    features = mmnet.encode_image(images(4).double())
    made = mmnet.read(features, sentences_of_four()).made
    masks = mmnet.masks(made)
    y = (made.s_q[..., None, None] * masks).sum(1)
    assert_close(made.y, y)
    assert torch.equal(mmnet.segment(features, sentences_of_four()), made.y)
    assert_close(mmnet.masks(made, slice(1, 3)), masks[1:3])


# Weights files.


def state_of(architecture: str) -> dict[str, Tensor]:
    torch.manual_seed(3)
    state: dict[str, Tensor] = load_clip(architecture, weights=None).state_dict()
    return state


@pytest.mark.parametrize("wrapped", [False, True])
def test_our_weights_are_loaded_whole(tmp_path: Path, wrapped: bool) -> None:
    state = state_of("mini-rn")
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "clip.pt")
    loaded = load_clip("mini-rn", weights=tmp_path / "clip.pt").state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_openai_weights_are_refused_by_a_model_without_quickgelu(tmp_path: Path) -> None:
    write_openai_file("mini-vit-b", tmp_path / "openai.pt", seed=0)
    assert "Name mini-vit-b-quickgelu" in refusal("mini-vit-b", tmp_path / "openai.pt")


def refusal(architecture: str, weights: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_clip(architecture, weights=weights)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{weights}: ")
    return message


def test_what_is_no_weights_of_this_tower_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    assert "not found" in refusal("mini-vit-b", path)
    state = state_of("mini-vit-b")
    torch.save(state, path)
    assert "holds no mini-vit-l" in refusal("mini-vit-l", path)
    assert "holds no mini-rn" in refusal("mini-rn", path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"<html>not found</html>", b"", whole[100:]):
        path.write_bytes(damaged)
        assert "not readable as weights" in refusal("mini-vit-b", path)
    for content, named in (
        ({**state, "extra": torch.zeros(1)}, "extra"),
        ({"state_dict": Path("code")}, "not readable as weights"),
        *((other, "") for other in ([1, 2], {}, {"epoch": 3}, torch.zeros(3))),
    ):
        torch.save(content, path)
        assert named in refusal("mini-vit-b", path)


class CodeInIt(nn.Module):
    """A module of TorchScript that runs while torch.jit.load reads it."""

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return torch.zeros(1), self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        assert state[1], "the code has run"


def test_code_in_an_archive_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "openai.pt"
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        torch.jit.save(torch.jit.script(CodeInIt().eval()), path)
        with pytest.raises(torch.jit.Error, match="the code has run"):
            torch.jit.load(path)
    assert "not readable as weights" in refusal("ViT-B-16-quickgelu", path)


class Harmful:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_functions_that_an_archive_names_are_not_called(tmp_path: Path) -> None:
    for number, content in enumerate((Harmful(tmp_path / "made"), [Harmful(tmp_path / "made")])):
        path = tmp_path / f"{number}.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
            archive.writestr("archive/constants.pkl", b"")
        refusal("ViT-B-16-quickgelu", path)
    assert not (tmp_path / "made").exists()


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match="ViT-B-17"):
        load_clip("ViT-B-17", weights=None)


# Describe.


def test_describe_counts_every_parameter() -> None:
    text = describe(model_config(), tower_config("mini-vit-b"), max_length=9)
    rows = {line.split()[0]: line for line in text.splitlines()[2:-1]}
    counts = {name: int(line.split()[1].replace(",", "")) for name, line in rows.items()}
    boxes = ["backbone", "text_encoder", "neck", "query_generator", "decoder", "mask_decoder"]
    assert counts["MMNet"] == sum(p.numel() for p in build().parameters())
    assert counts["MMNet"] == sum(counts[box] for box in boxes)
    assert counts["mask_decoder"] == counts["projector"] + counts["estimator"]
    assert "F_vt 16 x 16" in rows["neck"]
    assert "F_vd 3 x 16" in rows["dense"]
    assert "y 16 x 16" in rows["mask_decoder"]


def test_describe_adds_up_the_flops_of_the_boxes() -> None:
    config = model_config(**PAPER)
    text = describe(config, tower_config("ViT-L-14-quickgelu"), max_length=17)
    rows = {line.split()[0]: line.split() for line in text.splitlines()[2:-1]}
    flops = {name: float(row[2]) for name, row in rows.items()}
    boxes = ["backbone", "text_encoder", "neck", "query_generator", "decoder", "mask_decoder"]
    assert flops["MMNet"] == pytest.approx(sum(flops[box] for box in boxes), abs=0.01)
    # W_v4 alone: 2 * 15 * 15 * 1024 * 512, and so on; by hand for the neck's 1x1s and 3x3s.
    grid, c = 30 * 30, 512
    laterals = grid * 256 * c + grid * 512 * c + 15 * 15 * 1024 * c
    pyramid = grid * (c * c + 2 * c * c + 5 * c * c + 9 * (c + 2) * c + 9 * c * c)
    assert flops["neck"] == pytest.approx(2 * (laterals + pyramid + 768 * c) / 1e9, abs=0.001)
