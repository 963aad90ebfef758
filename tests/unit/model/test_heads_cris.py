"""CRIS against literal references: loops and matrix products only."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mmnet.model.heads.cris import CRISFeatures, Decoder, DecoderLayer, Neck, Projector
from mmnet.model.layers import sine_positions, sine_positions_2d
from support.heads import build_head
from support.literal import (
    avg,
    convolve,
    layer_norm,
    linear,
    multi_head,
    rand,
    relu,
    relu_conv,
    relu_linear,
    up,
)
from support.model import sentences, shaken

B, L, C, STATE, H3, HEADS = 3, 6, 8, 7, 4, 2
N = H3 * H3


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


# The neck.


def grid_of_coordinates() -> Tensor:
    """x, then y, of each cell, from -1 to 1."""
    at = torch.zeros(B, 2, H3, H3, dtype=torch.float64)
    for row in range(H3):
        for column in range(H3):
            at[:, 0, row, column] = -1 + 2 * column / (H3 - 1)
            at[:, 1, row, column] = -1 + 2 * row / (H3 - 1)
    return at


def test_the_neck_is_the_pyramid_of_cris() -> None:
    w = shaken(Neck(channels=(5, 6, 7), global_width=STATE, width=C, grid=H3))
    v3, v4, v5, state = rand(B, 5, 8, 8), rand(B, 6, 4, 4), rand(B, 7, 2, 2), rand(B, STATE)

    s = relu_linear(w.text, state)
    f5 = relu_conv(w.conv_5, v5)
    for b in range(B):
        for channel in range(2 * C):
            f5[b, channel] *= s[b, channel]
    norm = w.norm_5
    spread = (norm.running_var + norm.eps).sqrt()
    for channel in range(2 * C):
        centred = (f5[:, channel] - norm.running_mean[channel]) / spread[channel]
        f5[:, channel] = relu(centred * norm.weight[channel] + norm.bias[channel])
    f4 = relu_conv(w.join_4, torch.cat([relu_conv(w.conv_4, v4), up(f5)], 1))
    f3 = relu_conv(w.join_3, torch.cat([avg(relu_conv(w.conv_3, v3)), f4], 1))
    q5 = up(relu_conv(w.query_5, f5))
    q4, q3 = relu_conv(w.query_4, f4), relu_conv(w.query_3, f3)
    fq = relu_conv(w.aggregate, torch.cat([q3, q4, q5], 1))
    fq = relu_conv(w.conv[0], torch.cat([fq, grid_of_coordinates()], 1))
    fq = relu_conv(w.conv[1], fq)

    out = w(w.laterals(v3, v4, v5), state)
    assert out.shape == (B, N, C)
    for row in range(H3):
        for column in range(H3):
            assert_close(out[:, row * H3 + column], fq[:, :, row, column])


def test_widths_of_the_neck_follow_the_papers() -> None:
    w = Neck(channels=(512, 1024, 1024), global_width=1024, width=512, grid=2)
    sizes = {
        name: (part.in_channels, part.out_channels, part.kernel_size[0])
        for name, part in w.named_modules()
        if isinstance(part, nn.Conv2d)
    }
    assert sizes == {
        "conv_5.0": (1024, 1024, 1),
        "conv_4.0": (1024, 512, 3),
        "join_4.0": (1536, 512, 1),
        "conv_3.0": (512, 256, 3),
        "join_3.0": (768, 512, 1),
        "query_5.0": (1024, 512, 3),
        "query_4.0": (512, 512, 3),
        "query_3.0": (512, 512, 3),
        "aggregate.0": (1536, 512, 1),
        "conv.0.0": (514, 512, 3),
        "conv.1.0": (512, 512, 3),
    }


# The decoder.


def attend(w: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (
        x @ weight.T + bias
        for x, weight, bias in zip(
            (q, k, v), w.in_proj_weight.chunk(3), w.in_proj_bias.chunk(3), strict=True
        )
    )
    return linear(w.out_proj, multi_head(q, k, v, HEADS))


def literal_layer(w: Any, x: Tensor, words: Tensor, lengths: list[int]) -> Tensor:
    """One sentence after another, its padding cut off."""
    x_at = sine_positions_2d(H3, H3, C).double()
    word_at = sine_positions(L, C).double()
    out = torch.zeros_like(x)
    for b, length in enumerate(lengths):
        one, said, at = x[b : b + 1], words[b : b + 1, :length], word_at[:length]
        normed = layer_norm(w.ln_1, one)
        one = one + layer_norm(w.after_1, attend(w.mhsa, normed + x_at, normed + x_at, normed))
        normed = layer_norm(w.ln_2, one)
        one = one + layer_norm(w.after_2, attend(w.mhca, normed + x_at, said + at, said))
        hidden = relu(linear(w.mlp[0], layer_norm(w.ln_3, one)))
        out[b] = (one + linear(w.mlp[4], layer_norm(w.mlp[3], hidden)))[0]
    return out


def test_the_decoder_attends_to_words_and_not_to_padding() -> None:
    w = shaken(
        Decoder(width=C, heads=HEADS, ffn=12, dropout=0.1, layers=2, grid=H3, max_length=2 * L)
    )
    for layer in w.layers:  # a new one's biases are zero, which would hide their lack
        for attention in (layer.mhsa, layer.mhca):
            nn.init.normal_(attention.in_proj_bias)
            nn.init.normal_(attention.out_proj.bias)
    x, words, lengths = rand(B, N, C), rand(B, L, C), [6, 3, 4]
    is_pad = torch.tensor([[i >= length for i in range(L)] for length in lengths])
    expected = x
    for layer in w.layers:
        expected = literal_layer(layer, expected, words, lengths)
    assert_close(w(x, words, is_pad), layer_norm(w.ln, expected))


def test_padding_is_token_zero() -> None:
    model = shaken(build_head("cris"))
    seen: list[Tensor] = []
    model.decoder.register_forward_hook(lambda module, given, output: seen.append(given[2]))
    tokens = sentences(4)
    model(rand(4, 3, 64, 64), tokens)
    assert torch.equal(seen[0], tokens == 0)


def test_dropout_acts_on_attention_residual_branches_and_within_the_mlp() -> None:
    layer = DecoderLayer(width=C, heads=HEADS, ffn=12, dropout=0.1)
    assert (layer.mhsa.dropout, layer.mhca.dropout) == (0.1, 0.1)
    assert (layer.dropout.p, layer.mlp[2].p) == (0.1, 0.1)
    # With nothing left of any branch, a layer is the identity.
    layer.dropout.p = 1.0
    x, words, at = torch.randn(B, N, C), torch.randn(B, L, C), torch.zeros(1, C)
    no_pad = torch.zeros(B, L, dtype=torch.bool)
    assert torch.equal(layer.train()(x, words, no_pad, at, at), x)


# The projector.


def test_each_sentence_has_its_own_kernel_linear_in_it() -> None:
    w = shaken(Projector(global_width=STATE, width=C))
    f_q, state = rand(B, C, H3, H3), rand(B, STATE)
    x = relu_conv(w.conv_2, up(relu_conv(w.conv_1, up(f_q))))
    x = convolve(x, w.conv_3.weight) + w.conv_3.bias[:, None, None]
    y = w(f_q, state)
    assert y.shape == (B, 4 * H3, 4 * H3)
    for b in range(B):
        values = linear(w.kernel, state[b])
        assert (values < 0).any()  # no ReLU
        for row in range(4 * H3):
            for column in range(4 * H3):
                logit = values[9 * C // 2].item()
                for channel in range(C // 2):
                    for i in range(3):
                        for j in range(3):
                            r, c = row + i - 1, column + j - 1
                            if 0 <= r < 4 * H3 and 0 <= c < 4 * H3:
                                weight = values[9 * channel + 3 * i + j]
                                logit += (weight * x[b, channel, r, c]).item()
                assert math.isclose(y[b, row, column].item(), logit, abs_tol=1e-9)


# The whole.


def test_a_resnets_stages_enter_as_they_are() -> None:
    model = shaken(build_head("cris", "mini-rn"))
    image = rand(2, 3, 64, 64)
    x2, x3, z, _ = model.backbone.encode(image)
    expected = model.neck.laterals(x2, x3, z)
    for found, wanted in zip(model.encode_image(image), expected, strict=True):
        assert torch.equal(found, wanted)
    assert isinstance(model.encode_image(image), CRISFeatures)


def test_a_vits_maps_are_those_of_mmnets_three_convolutions() -> None:
    model = shaken(build_head("cris", "mini-vit-b"))
    image = rand(2, 3, 64, 64)
    z, _ = model.backbone.encode(image)
    backbone = model.backbone
    expected = model.neck.laterals(backbone.m_2(z), backbone.m_3(z), backbone.m_4(z))
    for found, wanted in zip(model.encode_image(image), expected, strict=True):
        assert torch.equal(found, wanted)


def test_the_sentence_makes_the_kernel_and_multiplies_the_deepest_stage() -> None:
    model = shaken(build_head("cris"))
    image, tokens = rand(2, 3, 64, 64), sentences(2)
    words, state, _ = model.text_encoder(tokens)
    f_q = model.neck(model.encode_image(image), state)
    f_q = model.decoder(f_q, linear(model.words, words), tokens == 0)
    f_q = f_q.transpose(1, 2).reshape(2, 16, 4, 4)
    assert_close(model(image, tokens), model.projector(f_q, state))


def test_weights_are_drawn_as_pytorch_does_and_xavier_before_attention() -> None:
    model = build_head("cris", width=64, ffn=128)
    attention = model.decoder.layers[0].mhca
    assert_is_uniform(attention.in_proj_weight, math.sqrt(6 / (64 + 3 * 64)))
    assert not attention.in_proj_bias.any()
    assert not attention.out_proj.bias.any()
    drawn = (model.projector.kernel, model.decoder.layers[0].mlp[0], attention.out_proj)
    for part in drawn:
        assert_is_uniform(part.weight, 1 / math.sqrt(part.in_features))
    for part in (model.neck.conv[0][0], model.projector.conv_2[0], model.projector.conv_3):
        assert_is_uniform(part.weight, 1 / math.sqrt(part.weight[0].numel()))


def assert_is_uniform(weight: Tensor, bound: float) -> None:
    assert weight.abs().max() <= bound
    assert_close(weight.square().mean().sqrt().item(), bound / math.sqrt(3), rtol=0.05, atol=0)
