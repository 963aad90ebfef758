"""Each equation of the paper against a literal reference: loops and matrix products only."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, nn
from torch.testing import assert_close

from mmnet.model.ablations import EqualScores, PlainWords, SingleMaskDecoder
from mmnet.model.backbone_resnet import attention_pool
from mmnet.model.decoder import Decoder, DecoderLayer
from mmnet.model.estimator import QueryEstimator
from mmnet.model.layers import Attention, coordinates, sine_positions, sine_positions_2d
from mmnet.model.mask_decoder import MaskDecoder
from mmnet.model.mask_projector import MaskProjector
from mmnet.model.neck import FusionNeck
from mmnet.model.pyramid import Pyramid
from mmnet.model.query_generator import DenseFeatures, QueryGenerator, VisualWords
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
    softmax,
    up,
)
from support.model import shaken

B, L, C, N_Q, H3, HEADS = 2, 5, 8, 3, 4, 2
N, C2, C3, C4, C_T, C_PRIME = H3 * H3, 4, 6, 10, 12, 7


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


# The references' vocabulary, beside support/literal.py.


def attend(w: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    q, k, v = linear(w.w_q, query), linear(w.w_k, key), linear(w.w_v, value)
    return linear(w.w_o, multi_head(q, k, v, w.heads))


def pyramid(w: Pyramid, v2: Tensor, v3: Tensor, f_m4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F_m2, F_m and the map of Eq. 5, from Eqs. 3-5."""
    f_m3 = torch.cat([relu_conv(w.w_m4, f_m4), v3], 1)
    f_m2 = torch.cat([relu_conv(w.w_m3, f_m3), v2], 1)
    f_m = relu_conv(w.aggregate, torch.cat([f_m2, f_m3, f_m4], 1))
    f_coord = coordinates(H3, H3).double().expand(B, -1, -1, -1)
    both = torch.cat([f_m, f_coord], 1)
    return f_m2, f_m, relu_conv(w.conv[1], relu_conv(w.conv[0], both))


def trace(module: nn.Module) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    """Record what enters a module and what leaves it."""
    calls: list[tuple[tuple[Tensor, ...], Tensor]] = []
    module.register_forward_hook(lambda module, args, output: calls.append((args, output)))
    return calls


def stages() -> tuple[Tensor, Tensor, Tensor]:
    return rand(B, C2, 2 * H3, 2 * H3), rand(B, C3, H3, H3), rand(B, C4, H3 // 2, H3 // 2)


def run_neck() -> tuple[FusionNeck, tuple[Tensor, ...], Any, Tensor]:
    neck = shaken(FusionNeck(channels=(C2, C3, C4), global_width=C_PRIME, width=C, grid=H3))
    inputs = (*stages(), rand(B, C_PRIME))
    calls = {name: trace(neck.get_submodule(name)) for name in ("pyramid", "pyramid.aggregate")}
    f_vt = neck(*neck.laterals(*inputs[:3]), inputs[3])
    return neck, inputs, {name: call[0] for name, call in calls.items()}, f_vt


# Image and text features, §3.1.


def test_eq1_attention_pool_keeps_all_its_outputs() -> None:
    pool = AttentionPool2d(2, C, HEADS, C_PRIME).double()
    x4 = rand(B, C, 2, 2)
    z_bar, z = attention_pool(pool, x4)
    x = x4.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(1, keepdim=True), x], 1) + pool.positional_embedding
    q, k, v = linear(pool.q_proj, x), linear(pool.k_proj, x), linear(pool.v_proj, x)
    reference = linear(pool.c_proj, multi_head(q, k, v, HEADS))
    assert_close(z_bar, reference[:, 0])
    for cell in range(4):
        assert_close(z[:, :, cell // 2, cell % 2], reference[:, 1 + cell])


def test_eq2_multiplies_the_top_stage_by_the_sentence() -> None:
    neck, (_, _, f_v4, f_tg), calls, _ = run_neck()
    text = relu(linear(neck.w_tg[0], f_tg))
    f_m4 = up(relu_conv(neck.laterals.w_v4, f_v4) * text[:, :, None, None])
    assert_close(calls["pyramid"][0][2], f_m4)


def test_eq3_concatenates_from_the_top_down() -> None:
    neck, (f_v2, f_v3, _, _), calls, _ = run_neck()
    f_m4 = calls["pyramid"][0][2]
    v2, v3 = relu_conv(neck.laterals.w_v2, avg(f_v2)), relu_conv(neck.laterals.w_v3, f_v3)
    f_m2, _, _ = pyramid(neck.pyramid, v2, v3, f_m4)
    assert_close(calls["pyramid.aggregate"][0][0][:, : 2 * C], f_m2)


def test_eq4_aggregates_three_maps_by_a_1x1() -> None:
    neck, _, calls, _ = run_neck()
    (concatenated,), f_m = calls["pyramid.aggregate"]
    assert neck.pyramid.aggregate[0].weight.shape == (C, 5 * C, 1, 1)
    assert_close(f_m, relu_conv(neck.pyramid.aggregate, concatenated))


def test_eq5_convolves_with_coordinates_and_flattens() -> None:
    neck, _, calls, f_vt = run_neck()
    _, _, reference = pyramid(neck.pyramid, *calls["pyramid"][0])
    for cell in range(N):
        assert_close(f_vt[:, cell], reference[:, :, cell // H3, cell % H3])


def test_eq5_coordinates_run_from_minus_one_to_one() -> None:
    x, y = coordinates(3, 5)
    assert_close(x, torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]).expand(3, 5))
    assert_close(y, torch.tensor([-1.0, 0.0, 1.0])[:, None].expand(3, 5))


# The Multi-Query Generator, §3.2.


def test_eq6_is_the_neck_without_text_and_with_its_own_weights() -> None:
    dense = shaken(DenseFeatures(channels=(C2, C3, C4), width=C, num_queries=N_Q, grid=H3))
    f_v2, f_v3, f_v4 = stages()
    calls = trace(dense.pyramid)
    dense(f_v2, f_v3, f_v4)
    w = dense.laterals
    v2, v3 = relu_conv(w.w_v2, avg(f_v2)), relu_conv(w.w_v3, f_v3)
    _, _, f_v = pyramid(dense.pyramid, v2, v3, up(relu_conv(w.w_v4, f_v4)))
    assert_close(calls[0][1], f_v)


def test_eq7_flattens_one_map_per_query() -> None:
    dense = shaken(DenseFeatures(channels=(C2, C3, C4), width=C, num_queries=N_Q, grid=H3))
    calls = trace(dense.pyramid)
    f_vd = dense(*stages())
    last = dense.conv[2]
    x = relu_conv(dense.conv[1], relu_conv(dense.conv[0], calls[0][1]))
    maps = convolve(x, last.weight) + last.bias[:, None, None]
    assert f_vd.shape == (B, N_Q, N)
    for n in range(N_Q):
        for cell in range(N):
            assert_close(f_vd[:, n, cell], maps[:, n, cell // H3, cell % H3])


@pytest.mark.parametrize(("norm_t", "norm_vg"), [(False, False), (False, True), (True, True)])
def test_eq8_multiplies_each_word_by_the_global_visual_feature(norm_t: bool, norm_vg: bool) -> None:
    words = shaken(
        VisualWords(token_width=C_T, vision_width=C4, width=C, norm_t=norm_t, norm_vg=norm_vg)
    )
    f_t, f_vg = rand(B, L, C_T), rand(B, C4)
    f_tv = words(f_t, f_vg)
    for b in range(B):
        for i in range(L):
            word = relu_linear(words.w_t, f_t[b, i])
            assert_close(f_tv[b, i], word * relu_linear(words.w_vg, f_vg[b]))


def test_without_f_vg_the_words_stay_as_they_are() -> None:
    words = PlainWords(token_width=C_T, width=C).double()
    f_t = rand(B, L, C_T)
    assert_close(words(f_t, rand(B, C4)), relu(linear(words.w_t[0], f_t)))


def run_generator(**reading: Any) -> tuple[QueryGenerator, Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = shaken(
        QueryGenerator(
            channels=(C2, C3, C4), token_width=C_T, width=C, num_queries=N_Q, grid=H3, **reading
        )
    )
    f_vd, f_vg, f_t = rand(B, N_Q, N), rand(B, C4), rand(B, L, C_T)
    is_pad = torch.arange(L) >= torch.tensor([[L], [L - 2]])  # The second sentence is shorter.
    f_q, attention = generator(f_vd, f_vg, f_t, is_pad)
    return generator, f_vd, generator.words(f_t, f_vg), is_pad, f_q, attention


@pytest.mark.parametrize("norm", ["none", "global", "all"])
def test_eq9_weighs_the_words_for_each_query(norm: str) -> None:
    generator, f_vd, f_tv, is_pad, _, attention = run_generator(norm=norm)
    for b in range(B):
        for n in range(N_Q):
            view = relu_linear(generator.w_vd, f_vd[b, n])
            words = [i for i in range(L) if not is_pad[b, i]]
            a = torch.stack([view @ relu_linear(generator.w_a, f_tv[b, i]) for i in words])
            assert_close(attention[b, n, words], softmax(a))
            assert attention[b, n].sum() == pytest.approx(1)


@pytest.mark.parametrize("visual_query", [False, True])
@pytest.mark.parametrize("norm", ["none", "all"])
def test_eq10_sums_the_words_for_each_query(norm: str, visual_query: bool) -> None:
    generator, f_vd, f_tv, _, f_q, attention = run_generator(norm=norm, visual_query=visual_query)
    for b in range(B):
        for n in range(N_Q):
            words = (relu_linear(generator.w_tv, f_tv[b, i]) for i in range(L))
            reference = sum(attention[b, n, i] * word for i, word in enumerate(words))
            if visual_query:  # as VLT
                reference = reference + relu_linear(generator.w_vd, f_vd[b, n])
            assert_close(f_q[b, n], reference)


# The Vision-Language Decoder, §3.3.


def run_layer() -> tuple[DecoderLayer, tuple[Tensor, ...], Tensor, Tensor]:
    layer = shaken(DecoderLayer(width=C, heads=HEADS, ffn=12, dropout=0.5))
    inputs = rand(B, N, C), rand(B, N_Q, C), rand(N, C), rand(N_Q, C)
    calls = trace(layer.ln_2)
    f_s = layer(*inputs)
    return layer, inputs, calls[0][0][0], f_s


def test_eq11_pixels_attend_to_each_other() -> None:
    layer, (f_vt, _, vt_position, _), f_vt_prime, _ = run_layer()
    x = layer_norm(layer.ln_1, f_vt)
    assert_close(f_vt_prime, attend(layer.mhsa, x + vt_position, x + vt_position, x) + f_vt)


def test_eq12_is_attention_head_by_head() -> None:
    attention = Attention(width=C, heads=HEADS).double()
    query, key, value = rand(B, N, C), rand(B, N_Q, C), rand(B, N_Q, C)
    assert_close(attention(query, key, value), attend(attention, query, key, value))


def test_eq13_pixels_attend_to_the_queries() -> None:
    layer, (_, f_q, vt_position, q_position), f_vt_prime, f_s = run_layer()
    query = layer_norm(layer.ln_2, f_vt_prime) + vt_position
    f_s_prime = attend(layer.mhca, query, f_q + q_position, f_q) + f_vt_prime
    hidden = relu(linear(layer.mlp[0], layer_norm(layer.ln_3, f_s_prime)))
    assert_close(f_s, linear(layer.mlp[3], hidden) + f_s_prime)


def test_decoder_stacks_its_layers_and_normalises() -> None:
    decoder = shaken(
        Decoder(width=C, heads=HEADS, ffn=12, dropout=0.5, layers=3, num_queries=N_Q, grid=H3)
    )
    f_vt, f_q = rand(B, N, C), rand(B, N_Q, C)
    reference = f_vt
    for layer in decoder.layers:
        reference = layer(reference, f_q, decoder.vt_position, decoder.q_position)
    assert len(decoder.layers) == 3
    assert_close(decoder(f_vt, f_q), layer_norm(decoder.ln, reference))


def test_sine_positions_follow_the_formula() -> None:
    positions = sine_positions(7, C)
    for position in range(7):
        for i in range(C // 2):
            angle = position / 10000 ** (2 * i / C)
            assert positions[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert positions[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_sine_positions_of_a_map_join_row_and_column() -> None:
    positions = sine_positions_2d(3, 5, C)
    rows, columns = sine_positions(3, C // 2), sine_positions(5, C // 2)
    for row in range(3):
        for column in range(5):
            reference = torch.cat([rows[row], columns[column]])
            assert_close(positions[row * 5 + column], reference)


# The Mask Decoder, §3.4.


def one_convolution_per_query(w: MaskProjector, f_s: Tensor, f_pn: Tensor) -> Tensor:
    """Eq. 14 as printed: F_p made, then one 3x3 convolution for each query."""
    x = f_s.transpose(1, 2).reshape(B, C, H3, H3)
    x = up(relu_conv(w.conv, up(x)))
    f_p = convolve(x, w.linear.weight) + w.linear.bias[:, None, None]
    c_p = C // 2
    masks = torch.zeros(B, f_pn.shape[1], 4 * H3, 4 * H3, dtype=f_s.dtype)
    for b in range(B):
        for n in range(f_pn.shape[1]):
            kernel, bias = f_pn[b, n, : 9 * c_p].reshape(1, c_p, 3, 3), f_pn[b, n, 9 * c_p]
            masks[b, n] = convolve(f_p[b : b + 1], kernel)[0, 0] + bias
    return masks


@pytest.mark.parametrize("relu_kernel", [True, False])
def test_eq14_matches_one_convolution_per_query(relu_kernel: bool) -> None:
    projector = shaken(MaskProjector(width=C, grid=H3, relu_kernel=relu_kernel))
    nn.init.normal_(projector.linear.bias)  # What it adds differs at the borders: test it.
    f_s, f_q = rand(B, N, C), rand(B, N_Q, C)
    f_pn = projector.kernel(f_q)
    reference = linear(projector.w_p[0], f_q)
    assert f_pn.shape == (B, N_Q, 9 * (C // 2) + 1)
    assert_close(f_pn, relu(reference) if relu_kernel else reference)
    assert (f_pn < 0).any() != relu_kernel
    masks, maps = one_convolution_per_query(projector, f_s, f_pn), projector.maps(f_s)
    assert_close(projector(maps, f_pn), masks)
    assert_close(projector.masks(maps, f_pn), masks)


@pytest.mark.parametrize("residual", [False, True])
def test_eq15_scores_the_queries(residual: bool) -> None:
    estimator = QueryEstimator(width=C, heads=HEADS, residual=residual).double()
    f_q = rand(B, N_Q, C)
    s_q = estimator(f_q)
    compared = attend(estimator.mhsa, f_q, f_q, f_q)
    scores = (f_q + compared if residual else compared) @ estimator.w_s.weight[0]
    assert_close(s_q, softmax(scores))


def decoder_parts() -> dict[str, Any]:
    return {
        "projector": MaskProjector(width=C, grid=H3, relu_kernel=True),
        "estimator": QueryEstimator(width=C, heads=HEADS),
    }


@pytest.mark.parametrize("equal", [None, 1.0, 1 / N_Q])
def test_eq16_one_summed_kernel_equals_the_weighed_sum_of_masks(equal: float | None) -> None:
    decoder = shaken(MaskDecoder(**decoder_parts()))
    if equal:
        decoder.estimator = EqualScores(mean=equal < 1)
    f_s, f_q = rand(B, N, C), rand(B, N_Q, C)
    y, s_q, kernels, maps = decoder.make(f_s, f_q)
    masks = decoder.projector.masks(maps, kernels)
    assert_close(kernels, decoder.projector.kernel(f_q))
    assert_close(masks, one_convolution_per_query(decoder.projector, f_s, kernels))
    if equal:
        assert_close(s_q, torch.full_like(s_q, equal))
    reference = sum(s_q[:, n, None, None] * masks[:, n] for n in range(N_Q))
    assert_close(y, reference)
    assert torch.equal(decoder(f_s, f_q), y)


def test_without_mmp_queries_are_summed_before_the_kernel() -> None:
    decoder = shaken(SingleMaskDecoder(**decoder_parts()))
    f_s, f_q = rand(B, N, C), rand(B, N_Q, C)
    s_q = decoder.estimator(f_q)
    query = sum(s_q[:, n, None] * f_q[:, n] for n in range(N_Q))
    f_pn = relu(linear(decoder.projector.w_p[0], query))[:, None]
    reference = one_convolution_per_query(decoder.projector, f_s, f_pn)[:, 0]
    assert_close(decoder(f_s, f_q), reference)
    # Its queries have no masks of their own, of which y would be the sum.
    assert decoder.make(f_s, f_q).kernels is None
    with_mmp = MaskDecoder(projector=decoder.projector, estimator=decoder.estimator)
    assert not torch.allclose(with_mmp(f_s, f_q), reference)
