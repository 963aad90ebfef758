"""VLT's head against literal references: loops and matrix products only."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mmnet.model.heads.vlt import MaskDecoder, QueryBalance, QueryGeneration, Transformer
from mmnet.model.layers import sine_positions
from support.heads import build_head, own_parameters
from support.literal import convolve, layer_norm, linear, multi_head, rand, relu, relu_linear, up
from support.model import sentences, shaken

B, L, D, TOKENS, H3, N_Q, HEADS = 3, 6, 8, 12, 4, 3, 2
N = H3 * H3


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def leaky_conv(w: Any, x: Tensor) -> Tensor:
    convolution, norm, _ = w
    y = convolve(x, convolution.weight)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    y = (y - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    return torch.where(y > 0, y, 0.1 * y)


def attend(w: Any, query: Tensor, key: Tensor) -> Tensor:
    q, k, v = relu_linear(w.w_q, query), relu_linear(w.w_k, key), relu_linear(w.w_v, key)
    return relu_linear(w.w_o, multi_head(q, k, v, HEADS))


def query_generation() -> Any:
    return shaken(
        QueryGeneration(
            token_width=TOKENS, width=D, num_queries=N_Q, heads=HEADS, grid=H3, max_length=2 * L
        )
    )


def test_the_query_net_sees_each_coordinate_three_times() -> None:
    w = query_generation()
    f_v = rand(B, D, H3, H3)
    at = torch.zeros(B, 6, H3, H3, dtype=torch.float64)
    for row in range(H3):
        for column in range(H3):
            at[:, :3, row, column] = -1 + 2 * column / (H3 - 1)
            at[:, 3:, row, column] = -1 + 2 * row / (H3 - 1)
    x = torch.cat([f_v, at], 1)
    for part in w.conv[:3]:
        x = leaky_conv(part, x)
    maps = convolve(x, w.conv[3].weight) + w.conv[3].bias[:, None, None]
    v = w.look(f_v)
    assert v.shape == (B, N_Q, D)
    for n in range(N_Q):
        assert_close(v[:, n], relu_linear(w.dense_v, maps[:, n].reshape(B, N)))


def test_queries_ask_the_words_that_are_no_padding_and_keep_what_they_saw() -> None:
    w = query_generation()
    v, f_t, lengths = rand(B, N_Q, D), rand(B, L, TOKENS), [6, 3, 4]
    is_pad = torch.tensor([[i >= length for i in range(L)] for length in lengths])
    f_q = w(v, f_t, is_pad)
    for b, length in enumerate(lengths):
        words = torch.stack([relu_linear(w.dense_w, f_t[b, i]) for i in range(length)])
        words = words + sine_positions(length, D).double()
        asked = v[b] + sine_positions(N_Q, D).double()
        # The residual is v itself, without its position.
        assert_close(f_q[b], attend(w.attention, asked[None], words[None])[0] + v[b])


def test_pixels_are_encoded_then_queries_look_at_each_other_and_at_the_pixels() -> None:
    w = shaken(Transformer(width=D, heads=HEADS, dropout=0.1, num_queries=N_Q, grid=H3))
    f, f_q = rand(B, N, D), rand(B, N_Q, D)

    def mlp(part: Any, x: Tensor) -> Tensor:
        return linear(part.mlp[1], relu(linear(part.mlp[0][0], x)))

    pixels = f + sine_positions(N, D).double()
    for part in w.encoder:
        pixels = layer_norm(part.ln_1, pixels + attend(part.mhsa, pixels, pixels))
        pixels = layer_norm(part.ln_2, pixels + mlp(part, pixels))
    queries = f_q + sine_positions(N_Q, D).double()
    for part in w.decoder:
        queries = layer_norm(part.ln_1, queries + attend(part.mhsa, queries, queries))
        queries = layer_norm(part.ln_2, queries + attend(part.mhca, queries, pixels))
        queries = layer_norm(part.ln_3, queries + mlp(part, queries))
    assert_close(w(f, f_q), queries)
    assert (len(w.encoder), len(w.decoder)) == (2, 2)


def test_dropout_acts_on_every_branch_of_the_transformer() -> None:
    w = Transformer(width=D, heads=HEADS, dropout=0.1, num_queries=N_Q, grid=H3).train()
    f, f_q = torch.randn(B, N, D), torch.randn(B, N_Q, D)
    for part in (*w.encoder, *w.decoder):
        assert part.dropout.p == 0.1
        part.dropout.p = 1.0  # nothing left of any branch
    expected = f_q + sine_positions(N_Q, D)
    for part in w.decoder:
        for ln in (part.ln_1, part.ln_2, part.ln_3):
            expected = ln(expected)
    assert_close(w(f, f_q), expected)
    pixels = f + sine_positions(N, D)
    for part in w.encoder:
        pixels = part.ln_2(part.ln_1(pixels))
    assert_close(w.encoder(f + w.pixel_position), pixels)


def test_the_balance_weighs_each_response_by_one_number() -> None:
    w = shaken(QueryBalance(width=D))
    response, f_q = rand(B, N_Q, D), rand(B, N_Q, D)
    balanced = w(response, f_q)
    gates = set()
    for b in range(B):
        for n in range(N_Q):
            r = relu_linear(w.dense_response, response[b, n])
            q = relu_linear(w.dense_query, f_q[b, n])
            logit = linear(w.dense_1, relu_linear(w.dense_both, torch.cat([r, q])))
            gate = 1 / (1 + math.exp(-logit.item()))
            gates.add(round(gate, 6))
            assert_close(balanced[b, n], gate * response[b, n])
    assert len(gates) == B * N_Q


def test_maps_of_the_queries_are_the_channels_of_one_mask() -> None:
    w = shaken(MaskDecoder(width=D, num_queries=N_Q, grid=H3))
    response = rand(B, N_Q, D)
    channels = torch.zeros(B, N_Q, H3, H3, dtype=torch.float64)
    for n in range(N_Q):
        values = relu_linear(w.dense_map, response[:, n])
        for row in range(H3):
            for column in range(H3):
                channels[:, n, row, column] = values[:, row * H3 + column]
    x = channels
    for part in w.conv_16:
        x = leaky_conv(part, x)
    x = leaky_conv(w.conv_4[0], up(leaky_conv(w.conv_8, up(x))))
    x = convolve(x, w.conv_4[1].weight) + w.conv_4[1].bias[:, None, None]
    y = w(response)
    assert y.shape == (B, 4 * H3, 4 * H3)
    assert_close(y, x[:, 0])


def test_the_parts_meet_as_described() -> None:
    """F of MMNet's neck, queries from its text-free pyramid, the balance by generated queries."""
    model = shaken(build_head("vlt", dropout=0.0))
    image, tokens = rand(2, 3, 64, 64), sentences(2)
    f_v2, f_v3, f_v4, _ = model.backbone(image)
    f_t, f_tg, is_pad = model.text_encoder(tokens)
    f = model.neck(*model.neck.laterals(f_v2, f_v3, f_v4), f_tg)
    v2, v3, v4 = model.laterals(f_v2, f_v3, f_v4)
    f_q = model.query_generation(
        model.query_generation.look(model.pyramid(v2, v3, up(v4))), f_t, is_pad
    )
    response = model.query_balance(model.transformer(f, f_q), f_q)
    assert_close(model(image, tokens), model.mask_decoder(response))


@pytest.mark.parametrize("norm", ["none", "global", "all"])
def test_the_necks_vector_norm_is_mmnets(norm: str) -> None:
    model = build_head("vlt", vector_norm=norm)
    has_norm = any(isinstance(part, nn.BatchNorm1d) for part in model.neck.w_tg)
    assert has_norm == (norm != "none")


def test_weights_are_drawn_as_keras_does_and_mmnets_parts_as_mmnet() -> None:
    model = build_head("vlt", width=64)
    for name, part in model.named_modules():
        if not isinstance(part, nn.Linear | nn.Conv2d) or name.startswith(
            ("backbone.", "text_encoder.")
        ):
            continue
        fan_in = part.weight[0].numel()
        fan_out = part.weight.numel() // part.weight.shape[1]
        is_mmnets = name.startswith(("neck.", "laterals.", "pyramid."))
        bound = 1 / math.sqrt(fan_in) if is_mmnets else math.sqrt(6 / (fan_in + fan_out))
        assert 0.8 * bound < part.weight.abs().max() <= bound, name
        if part.bias is not None:
            assert part.bias.any() == is_mmnets, name
    assert {name.split(".")[0] for name in own_parameters(model)} == {
        *("neck", "laterals", "pyramid"),
        *("query_generation", "transformer", "query_balance", "mask_decoder"),
    }
