"""The cosine floor: its cells, its map, and what of it is fitted."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mmnet.model.clip import load_clip
from mmnet.model.heads.cosine import build_cosine, fit, histograms, least_bce
from mmnet.model.layers import resize
from support.heads import build_head
from support.literal import linear
from support.model import sentences, shaken


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 64, 64, dtype=torch.float64)


# Cells.


@torch.no_grad()
def test_a_resnets_cells_are_projected_values_one_by_one() -> None:
    model = shaken(build_head("cosine", "mini-rn", image_size=96))
    image = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    visual = model.backbone.visual
    x4 = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(image)))))
    cells = model.encode_image(image).cells
    assert cells.shape == (2, 64, 3, 3)
    for row in range(3):
        for column in range(3):
            value = linear(visual.attnpool.v_proj, x4[:, :, row, column])
            assert_close(cells[:, :, row, column], linear(visual.attnpool.c_proj, value))


@pytest.mark.parametrize("tower", ["mini-vit-b", "mini-vit-l"])
@torch.no_grad()
def test_a_vits_values_are_its_tokens_had_each_seen_itself_alone(tower: str) -> None:
    model = shaken(build_head("cosine", tower, cells="values"))
    image, visual = images(2), model.backbone.visual
    for part in visual.transformer.resblocks:  # a new one's biases are zero
        nn.init.normal_(part.attn.in_proj_bias)
        nn.init.normal_(part.attn.out_proj.bias)
    x = visual._embeds(image)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
    itself = torch.full((17, 17), -torch.inf, dtype=torch.float64).fill_diagonal_(0)
    x = visual.ln_post(last(x, attn_mask=itself)) @ visual.proj
    cells = model.encode_image(image).cells
    for row in range(4):
        for column in range(4):
            assert_close(cells[:, :, row, column], x[:, 1 + 4 * row + column])


@torch.no_grad()
def test_a_vits_z_are_mmnets_patch_tokens() -> None:
    model = shaken(build_head("cosine", "mini-vit-l", cells="z"))
    image = images(2)
    z, _ = model.backbone.encode(image)
    assert torch.equal(model.encode_image(image).cells, z)
    model.cells = "values"
    assert not torch.allclose(model.encode_image(image).cells, z)


# The map.


@pytest.mark.parametrize(("tower", "grid"), [("mini-rn", 2), ("mini-vit-b", 4)])
@torch.no_grad()
def test_a_logit_is_a_times_the_cosine_plus_b(tower: str, grid: int) -> None:
    model = shaken(build_head("cosine", tower))
    model.a.fill_(7.0)
    model.b.fill_(-0.5)
    image, tokens = images(3), sentences(3)
    features = model.encode_image(image)
    said = model.text_encoder(tokens)[1]
    cosines = torch.zeros(3, 1, grid, grid, dtype=torch.float64)
    for i in range(3):
        for row in range(grid):
            for column in range(grid):
                cell = features.cells[i, :, row, column]
                cosines[i, 0, row, column] = cell @ said[i] / (cell.norm() * said[i].norm())
    cosines = resize(cosines, 16)[:, 0]
    assert_close(model.cosines(features, tokens), cosines)
    assert_close(model(image, tokens), 7 * cosines - 0.5)


@pytest.mark.parametrize("variant", ["zero-shot", "fitted"])
def test_a_starts_as_clips_own_temperature(variant: Any) -> None:
    clip = load_clip("mini-vit-b", weights=None)
    with torch.no_grad():
        clip.logit_scale.fill_(math.log(100))
    model = build_cosine(clip, image_size=64, variant=variant, cells="z")
    assert math.isclose(model.a.item(), 100, rel_tol=1e-5)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == (
        ["a", "b"] if variant == "fitted" else ["b"]
    )


# What is fitted.


def batches() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Images, sentences and masks, in parts of unequal size."""
    masks = torch.zeros(7, 16, 16)
    for i in range(7):
        masks[i, i : i + 5, 2 : 5 + i] = 1
    return [
        (images(len(part)).float(), sentences(len(part)), part) for part in (masks[:4], masks[4:])
    ]


@pytest.mark.parametrize("variant", ["zero-shot", "fitted"])
@pytest.mark.parametrize("tower", ["mini-rn", "mini-vit-b"])
def test_a_fit_changes_the_numbers_of_the_variant_and_nothing_else(
    tower: str, variant: str
) -> None:
    model = build_head("cosine", tower, variant=variant).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(model, batches(), threshold=0.35)
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == ({"a", "b"} if variant == "fitted" else {"b"})
    assert model.training
    assert not any(part.training for part in model.backbone.modules())


@torch.no_grad()
@pytest.mark.parametrize("threshold", [0.2, 0.35, 0.8])
def test_zero_shots_threshold_weighs_small_objects_as_large_ones(threshold: float) -> None:
    cosines, masks = torch.full((2, 16, 16), 0.3), torch.zeros(2, 16, 16)
    masks[0].view(-1)[:10] = 1
    cosines[0].view(-1)[:10] = 0.5
    masks[1].view(-1)[:128] = 1
    cosines[1].view(-1)[:20] = 0.5
    cosines[1].view(-1)[128:] = 0.1
    # Between 0.3 and 0.5: IoUs of 1 and 20 / 128. Below: 10 / 256 and 1, and more pixels are right.
    model = build_head("cosine", variant="zero-shot")
    model.encode_image = lambda image: image
    model.cosines = lambda features, tokens: features
    fit(model, [(cosines, sentences(2), masks)], threshold=threshold)
    made = model.segment(cosines, sentences(2)).sigmoid() > threshold
    assert torch.equal(made, cosines == 0.5)


@torch.no_grad()
def test_zero_shot_has_the_threshold_of_the_largest_mean_iou() -> None:
    model = build_head("cosine", variant="zero-shot", cells="z")
    train, threshold = batches(), 0.35
    fit(model, train, threshold=threshold)
    cosines = torch.cat([model.cosines(model.encode_image(i), t) for i, t, _ in train])
    truth = torch.cat([masks for _, _, masks in train]) > 0

    def mean_iou(predicted: Tensor) -> float:
        pairs = zip(predicted, truth, strict=True)
        ious = [int((p & q).sum()) / int((p | q).sum()) for p, q in pairs]
        return sum(ious) / len(ious)

    best = max(mean_iou(cosines > t) for t in cosines.unique())
    made = torch.cat([model(image, tokens).sigmoid() for image, tokens, _ in train]) > threshold
    assert math.isclose(mean_iou(made), best, abs_tol=0.01)
    assert best > mean_iou(cosines > cosines.median())


@torch.no_grad()
def test_fitted_has_the_least_loss_of_all_a_and_b() -> None:
    model = build_head("cosine", variant="fitted", cells="z")
    train = batches()
    fit(model, train, threshold=0.35)
    cosines = torch.cat([model.cosines(model.encode_image(i), t) for i, t, _ in train]).flatten()
    truth = torch.cat([masks for _, _, masks in train]).flatten()
    a, b = newton(cosines, truth)
    assert math.isclose(model.a.item(), a, rel_tol=0.01)
    assert math.isclose(model.b.item(), b, rel_tol=0.01)
    # Cosines as CLIP's: all alike, and only their differences tell, here the other way round.
    cosines = 0.25 + 0.03 * torch.randn(1, 100, 200)
    truth = (torch.sigmoid(-40 * (cosines - 0.23)) > torch.rand(cosines.shape)).float()
    found = least_bce(histograms(cosines, truth).sum(0).double())
    assert_close(found, newton(cosines.flatten(), truth.flatten()), rtol=0.01, atol=0)


def newton(cosines: Tensor, truth: Tensor) -> tuple[float, float]:
    """Logistic regression on one variable, pixel by pixel."""
    x = torch.stack([cosines, torch.ones_like(cosines)], 1).double()
    w = torch.zeros(2, dtype=torch.float64)
    for _ in range(30):
        p = torch.sigmoid(x @ w)
        hessian = x.T @ (x * (p * (1 - p))[:, None])
        w = w - torch.linalg.solve(hessian, x.T @ (p - truth))
    return w[0].item(), w[1].item()
