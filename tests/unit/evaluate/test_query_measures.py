"""How different queries are: each measure against a slow literal reading of its definition."""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from mmnet.data.dataset import evaluation_items
from mmnet.data.loader import read
from mmnet.evaluate.metrics import MEASURES, query_means, summary
from mmnet.evaluate.predict import predict, read_batch
from mmnet.evaluate.query_measures import (
    CHUNK,
    attention_entropy,
    attention_variation,
    effective_queries,
    measure,
    score_entropy,
    spread,
)
from mmnet.model.mmnet import MMNet, Queries
from support.model import build, sentences
from support.tiny import Tiny

CPU = torch.device("cpu")
S, N_Q, L = 5, 4, 7


def entropy_literally(p: list[float]) -> float:
    return float(-sum(x * math.log(x) for x in p if x > 0))


def spread_literally(x: Tensor) -> float:
    """Of one sentence, (N_q, ...)."""
    rows = [row.flatten().tolist() for row in x]
    variances = [np.var(column) for column in zip(*rows, strict=True)]
    squares = [value**2 for row in rows for value in row]
    return math.sqrt(sum(variances) / len(variances)) / math.sqrt(sum(squares) / len(squares))


def variation_literally(attention: Tensor) -> float:
    pairs = itertools.combinations(attention.tolist(), 2)
    halves = [sum(abs(a - b) for a, b in zip(*pair, strict=True)) / 2 for pair in pairs]
    return sum(halves) / len(halves)


def effective_literally(f_q: Tensor) -> float:
    """The Gram matrix's eigenvalues are the squares of F_q's singular values."""
    squares = np.linalg.svd(f_q.double().numpy(), compute_uv=False) ** 2
    return math.exp(entropy_literally((squares / squares.sum()).tolist()))


def attended() -> tuple[Tensor, Tensor]:
    """Attention (S, N_q, L) over sentences of 3 to L tokens, and their lengths."""
    lengths = torch.tensor([3, 4, 5, 6, 7])
    logits = 2 * torch.randn(S, N_Q, L)
    is_pad = torch.arange(L) >= lengths[:, None]
    return logits.masked_fill(is_pad[:, None], -torch.inf).softmax(-1), lengths


def test_each_measure_is_its_literal_definition() -> None:
    torch.manual_seed(0)
    x, f_q, s_q = torch.randn(S, N_Q, 6, 5) + 1, torch.randn(S, N_Q, 9), torch.rand(S, N_Q)
    s_q = s_q / s_q.sum(1, keepdim=True)
    attention, lengths = attended()
    for s in range(S):
        of_rows = [entropy_literally(row) for row in attention[s].tolist()]
        for found, expected in (
            (spread(x), spread_literally(x[s])),
            (attention_entropy(attention, lengths), np.mean(of_rows) / math.log(lengths[s])),
            (attention_variation(attention), variation_literally(attention[s])),
            (score_entropy(s_q), entropy_literally(s_q[s].tolist()) / math.log(N_Q)),
            (effective_queries(f_q), effective_literally(f_q[s])),
        ):
            assert found.shape == (S,)
            assert found[s].item() == pytest.approx(expected, rel=1e-5)


def test_small_spreads_are_not_lost_to_rounding() -> None:
    torch.manual_seed(0)
    x = torch.randn(S, 1, 512, dtype=torch.float64) + 1e-5 * torch.randn(S, 24, 512)
    expected = [spread_literally(of_sentence) for of_sentence in x]
    assert spread(x.float()).tolist() == pytest.approx(expected, rel=0.02)


def test_queries_that_agree_and_queries_that_share_nothing_are_the_ends_of_each_scale() -> None:
    torch.manual_seed(0)
    same = torch.rand(S, 1, 9).expand(-1, N_Q, -1)
    apart = 3 * torch.eye(N_Q, 9).expand(S, -1, -1)
    zero, equal = torch.zeros(S, N_Q, 9), torch.full((S, N_Q), 1 / N_Q)
    even = torch.full((S, N_Q, L), 1 / L)
    for found, expected in (
        (spread(same), 0),
        (spread(zero), 0),
        (effective_queries(same), 1),
        (effective_queries(zero), 1),
        (effective_queries(apart), N_Q),
        (attention_variation(same / same.sum(2, keepdim=True)), 0),
        (attention_variation(apart / 3), 1),
        (attention_entropy(even, torch.full((S,), L)), 1),
        (attention_entropy(apart / 3, torch.full((S,), L)), 0),
        (score_entropy(equal), 1),
        (score_entropy(apart[0, :, :N_Q] / 3), 0),
    ):
        assert found.tolist() == pytest.approx([expected] * len(found), abs=1e-6)


def test_a_model_that_diverged_is_measured_without_an_error() -> None:
    f_q = torch.eye(N_Q).repeat(2, 1, 1)
    f_q[0, 0, 0] = math.nan
    assert effective_queries(f_q).tolist() == pytest.approx([math.nan, N_Q], nan_ok=True)


def read_literally(model: MMNet, queries: Queries, s: int, length: int) -> dict[str, float]:
    made, attention = queries.made, queries.attention[s]
    has_masks = made.kernels is not None
    return {
        "mask_spread": spread_literally(model.masks(made)[s]) if has_masks else math.nan,
        "kernel_spread": spread_literally(made.kernels[s]) if has_masks else math.nan,  # type: ignore[index]
        "query_spread": spread_literally(queries.f_q[s]),
        "attention_entropy": float(
            np.mean([entropy_literally(row[:length]) for row in attention.tolist()])
            / math.log(length)
        ),
        "attention_variation": variation_literally(attention),
        "score_entropy": entropy_literally(made.s_q[s].tolist()) / math.log(len(made.s_q[s])),
        "effective_queries": effective_literally(queries.f_q[s]),
    }


@pytest.mark.parametrize(
    ("changes", "undefined"),
    [
        ({}, set()),
        ({"mmp": False}, {"mask_spread", "kernel_spread"}),
        ({"mqe": False}, {"score_entropy"}),
    ],
)
@torch.no_grad()
def test_a_model_is_measured_sentence_by_sentence(
    changes: dict[str, Any], undefined: set[str]
) -> None:
    model = lively(build(**changes))
    tokens = sentences(CHUNK + 3)  # more than the masks of one chunk
    queries = model.read(model.encode_image(torch.randn(len(tokens), 3, 64, 64)), tokens)
    found = measure(model, queries, tokens)
    assert tuple(found) == MEASURES
    for s, row in enumerate(tokens):
        expected = read_literally(model, queries, s, int((row != 0).sum()))
        expected |= dict.fromkeys(undefined, math.nan)
        of_sentence = {name: values[s] for name, values in found.items()}
        assert of_sentence == pytest.approx(expected, rel=1e-4, abs=1e-6, nan_ok=True)
    assert query_means_of(found).keys() == {*MEASURES} - undefined


def lively(model: MMNet) -> MMNet:
    """Random weights say the same everywhere: let the queries differ."""
    for part in (model.query_generator, model.mask_decoder):
        for weights in part.parameters():
            torch.nn.init.normal_(weights, 0, 0.5)
    return model.eval()


def query_means_of(found: dict[str, Any]) -> dict[str, float]:
    return query_means(pd.DataFrame(found))


@torch.no_grad()
def test_one_query_differs_from_none() -> None:
    model, tokens = build(num_queries=1).eval(), sentences(3)
    queries = model.read(model.encode_image(torch.randn(3, 3, 64, 64)), tokens)
    found = query_means_of(measure(model, queries, tokens))
    assert 0 < found.pop("attention_entropy") <= 1 + 1e-9
    zeros = dict.fromkeys(["mask_spread", "kernel_spread", "query_spread"], 0.0)
    # Entropy of one score over ln 1 is not defined.
    assert found == pytest.approx(
        {**zeros, "attention_variation": 0.0, "effective_queries": 1.0}, abs=1e-9
    )


def test_rows_have_each_sentences_measures_and_scores_their_means(tiny: Tiny) -> None:
    torch.manual_seed(0)
    model = build(width=16, num_queries=3)
    items = evaluation_items(tiny.config, tiny.table, tiny.images, splits=["val"])
    batches = list(read(items, batch_size=None, workers=0))
    rows = predict(model, batches, threshold=0.35, device=CPU)
    parts = [measure(model, read_batch(model, batch, CPU), batch.tokens) for batch in batches]
    for name in MEASURES:
        values = np.concatenate([part[name] for part in parts])
        np.testing.assert_array_equal(rows[name], values)
        assert summary(rows)["queries"][name] == pytest.approx(values.mean())
    assert summary(rows)["queries"]["query_spread"] > 0
