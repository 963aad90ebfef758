"""What every head has in common with MMNet: shared features, padding, gradients, sizes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mmnet.train.recipe import CLIP_PARTS, mask_loss, parameter_groups
from support.heads import BUILDERS, build_head, own_parameters, paper_head
from support.model import sentences, shaken

HEADS = [*BUILDERS]
TOWERS = ["mini-rn", "mini-vit-b", "mini-vit-l"]
every_head = pytest.mark.parametrize("head", HEADS)
on_every_tower = pytest.mark.parametrize("tower", TOWERS)


def images(count: int, side: int = 64) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def masks(count: int) -> Tensor:
    truth = torch.zeros(count, 16, 16)
    for i in range(count):
        truth[i, i : i + 6, 3 : 9 + i] = 1
    return truth


@every_head
@on_every_tower
@torch.no_grad()
def test_sentences_that_share_an_image_get_the_masks_they_get_alone(head: str, tower: str) -> None:
    model = shaken(build_head(head, tower))
    image, tokens = images(2).double(), sentences(5)
    image_of_sentence = torch.tensor([0, 1, 1, 0, 1])
    features = model.encode_image(image)
    assert all(len(x) == 2 for x in features)
    shared = type(features)(*(x[image_of_sentence] for x in features))
    logits = model.segment(shared, tokens)
    assert logits.shape == (5, 16, 16)
    for i, row in enumerate(image_of_sentence):
        assert_close(logits[i], model(image[row, None], tokens[i, None])[0])
    # Neither image nor sentence is without effect.
    assert not torch.allclose(logits, model.segment(shared, tokens.roll(1, 0)))
    assert not torch.allclose(logits[1], model(image[:1], tokens[1, None])[0])


@every_head
@torch.no_grad()
def test_padding_does_not_change_the_mask(head: str) -> None:
    model = shaken(build_head(head))
    tokens, longer = sentences(6), torch.zeros(6, 14, dtype=torch.long)
    longer[:, :9] = tokens
    assert_close(model(images(6).double(), longer), model(images(6).double(), tokens))


@pytest.mark.parametrize("head", ["cris", "vlt"])
def test_padding_receives_no_attention(head: str) -> None:
    model = shaken(build_head(head))
    words: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: tuple[Tensor, ...]) -> None:
        output[0].retain_grad()
        words.append(output[0])

    model.text_encoder.register_forward_hook(keep)
    tokens = sentences(6)
    model(images(6).double(), tokens).sum().backward()
    assert words[0].grad is not None
    reached = words[0].grad.abs().sum(-1) > 0  # (B, L)
    assert (tokens == 0).any()
    assert torch.equal(reached, tokens != 0)


@every_head
@on_every_tower
def test_every_parameter_that_learns_gets_a_gradient(head: str, tower: str) -> None:
    model = build_head(head, tower, width=64)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    # A fresh ResNet's residual branches end in zeros, so the first step reaches not all.
    for _ in range(2):
        optimiser.zero_grad()
        mask_loss(model(images(4), sentences(4)), masks(4)).backward()
        optimiser.step()
    for name, parameter in model.named_parameters():
        is_frozen = head == "cosine" and name.startswith(CLIP_PARTS)
        assert parameter.requires_grad == (not is_frozen), name
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


@pytest.mark.parametrize("head", ["cris", "vlt"])
@pytest.mark.parametrize("tower", ["mini-rn", "mini-vit-b"])
def test_a_head_learns_a_few_masks_by_heart(head: str, tower: str) -> None:
    model = build_head(head, tower, width=32, dropout=0.0)
    optimiser = torch.optim.Adam(parameter_groups(model, 1.0), lr=3e-3)
    tokens, losses = sentences(4), []
    for _ in range(25):
        loss = mask_loss(model(images(4), tokens), masks(4))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]


@every_head
@on_every_tower
def test_bf16_gives_nearly_the_same_mask_and_gradients(head: str, tower: str) -> None:
    model = build_head(head, tower, dropout=0.0).eval()
    tokens = sentences(3)
    with torch.no_grad():
        exact = model(images(3), tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(images(3), tokens)
        loss = mask_loss(rounded, masks(3))
    loss.backward()
    error = (rounded.detach().float() - exact).square().mean().sqrt()
    assert error < 0.05 * exact.std()
    learning = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning)


# At the paper's sizes.


@every_head
@pytest.mark.parametrize("tower", ["RN50-quickgelu", "ViT-L-14-quickgelu"])
def test_paper_sizes_shapes_and_gradients(head: str, tower: str) -> None:
    model = paper_head(head, tower)
    image, tokens = images(2, 480).to("meta"), sentences(2, 17).to("meta")
    y = model(image, tokens)
    assert y.shape == (2, 120, 120)
    y.sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(("tower", "count"), [("RN50", 42_742_785), ("RN101", 40_514_049)])
def test_cris_has_as_many_parameters_as_published(tower: str, count: int) -> None:
    model = paper_head("cris", f"{tower}-quickgelu")
    assert sum(p.numel() for p in own_parameters(model).values()) == count
    # x2, x3 and z as they are.
    others = [name for name, _ in model.named_parameters() if not name.startswith(CLIP_PARTS)]
    assert {*others} == {*own_parameters(model)}


@pytest.mark.parametrize(("tower", "state"), [("RN50", 1024), ("RN101", 512), ("ViT-B-16", 512)])
@pytest.mark.parametrize("num_queries", [16, 24])
def test_vlt_has_as_many_parameters_as_its_description(
    tower: str, state: int, num_queries: int
) -> None:
    d, n, n_q, tokens = 256, 900, num_queries, 512

    def conv(i: int, o: int, size: int = 3) -> int:
        return size**2 * i * o + 2 * o

    def dense(i: int, o: int) -> int:
        return i * o + o

    laterals = sum(conv(c, d, 1) for c in (256, 512, 1024))
    pyramid = conv(d, d, 1) + conv(2 * d, d, 1) + conv(5 * d, d, 1) + conv(d + 2, d) + conv(d, d)
    neck_and_text_free_pyramid = 2 * (laterals + pyramid) + dense(state, d)
    query_net = conv(d + 6, d) + 2 * conv(d, d) + dense(d, n_q)
    attention = 4 * dense(d, d)
    query_attention = dense(n, d) + dense(tokens, d) + attention
    mlp, norm = 2 * dense(d, d), 2 * d
    transformer = 2 * (attention + mlp + 2 * norm) + 2 * (2 * attention + mlp + 3 * norm)
    balance = 2 * dense(d, d) + dense(2 * d, d) + dense(d, 1)
    maps = dense(d, n) + conv(n_q, d) + 4 * conv(d, d) + dense(d, 1)
    expected = neck_and_text_free_pyramid + query_net + query_attention + transformer
    expected += balance + maps
    model = paper_head("vlt", f"{tower}-quickgelu", num_queries=num_queries)
    assert sum(p.numel() for p in own_parameters(model).values()) == expected


def test_words_are_projected_only_where_the_text_tower_is_of_another_width() -> None:
    own = own_parameters(paper_head("cris", "RN50-quickgelu"))
    assert not any(name.startswith("words.") for name in own)
    own = own_parameters(paper_head("cris", "ViT-L-14-quickgelu"))
    assert own["words.weight"].shape == (512, 768)
