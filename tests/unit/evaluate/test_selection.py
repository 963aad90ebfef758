"""Which sentences and runs Figures 5 and 6 show: the rule, against a literal reading of it."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmnet.config.paths import RunPaths
from mmnet.config.tables import SPLIT, shown_run, without_mmp
from mmnet.evaluate.selection import (
    KINDS,
    check_same_sentences,
    choose_examples,
    choose_sentence,
)
from mmnet.runtime.errors import ConfigError, DataError
from support.results import params_of


def rows_of(ious: list[int], images: list[int]) -> pd.DataFrame:
    """Rows with IoU in tenths."""
    ids = np.arange(len(ious)) * 7 % 101  # not in order
    rows = {"split": SPLIT, "ref_id": ids, "ann_id": ids, "image_id": images, "sent_id": ids}
    return pd.DataFrame({**rows, "intersection": ious, "union": 10})


def literal_choice(with_mmp: pd.DataFrame, without: pd.DataFrame) -> list[tuple[str, int]]:
    """`RULE`, word by word."""
    gain = {}
    for sent_id in with_mmp["sent_id"]:
        one, other = (t[t["sent_id"] == sent_id].iloc[0] for t in (with_mmp, without))
        gain[sent_id] = (one["intersection"] / 10) - (other["intersection"] / 10)
    image = dict(zip(with_mmp["sent_id"], with_mmp["image_id"], strict=True))
    median = float(np.median(list(gain.values())))
    taken: list[tuple[str, int]] = []
    for kind in KINDS * 2:
        best = None
        for sent_id in sorted(gain):
            if image[sent_id] in [image[other] for _, other in taken]:
                continue
            merit = {
                "largest gain": gain[sent_id],
                "median gain": -abs(gain[sent_id] - median),
                "least gain": -gain[sent_id],
            }[kind]
            if best is None or merit > best[0]:
                best = (merit, sent_id)
        if best:
            taken.append((kind, int(best[1])))
    return sorted(taken, key=lambda pair: KINDS.index(pair[0]))


def test_examples_are_chosen_by_the_rule_with_its_ties() -> None:
    # Gains in tenths: 5 5 5 (two of one image), 0 ..., -4 -4.
    with_mmp = rows_of([9, 9, 9, 5, 5, 5, 1, 1], [1, 1, 2, 3, 4, 5, 6, 7])
    without = rows_of([4, 4, 4, 5, 5, 5, 5, 5], [1, 1, 2, 3, 4, 5, 6, 7])
    chosen = choose_examples(with_mmp, without.sample(frac=1, random_state=0))
    # sent_id: 0 7 14 21 28 35 42 49
    assert list(chosen["sent_id"]) == [0, 14, 21, 28, 42, 49]
    assert list(chosen["kind"]) == [kind for kind in KINDS for _ in range(2)]
    assert list(chosen["gain"]) == pytest.approx([0.5, 0.5, 0, 0, -0.4, -0.4])
    assert list(chosen["iou_without"]) == pytest.approx([0.4, 0.4, 0.5, 0.5, 0.5, 0.5])


def test_equal_gains_of_different_iou_are_ties() -> None:
    # 0.9 - 0.8 < 0.3 - 0.2 in floats.
    chosen = choose_examples(rows_of([9, 3, 5], [1, 2, 3]), rows_of([8, 2, 5], [1, 2, 3]))
    assert chosen["sent_id"].iloc[0] == 0


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 5, 10]), st.sampled_from([0, 5, 10]), st.integers(1, 8)),
        min_size=1,
        max_size=20,
    )
)
def test_examples_are_those_of_a_literal_choice(rows: list[tuple[int, int, int]]) -> None:
    ours, theirs, images = (list(column) for column in zip(*rows, strict=True))
    with_mmp, without = rows_of(ours, images), rows_of(theirs, images)
    chosen = choose_examples(with_mmp, without)
    assert chosen["image_id"].is_unique
    assert list(zip(chosen["kind"], chosen["sent_id"], strict=True)) == literal_choice(
        with_mmp, without
    )


def test_figure6_shows_the_longest_whole_sentence_that_is_segmented_right() -> None:
    rows = pd.DataFrame(
        {
            "sent_id": [5, 4, 3, 2, 1],
            "tokens": [18, 9, 9, 12, 8],
            "iou": [0.9, 0.6, 0.6, 0.5, 0.9],
        }
    )
    assert choose_sentence(rows, max_length=17) == 3
    assert choose_sentence(rows, max_length=18) == 5
    assert choose_sentence(rows.assign(iou=0.1), max_length=17) == 2
    assert choose_sentence(rows, max_length=3) == 5


def test_the_pair_differs_in_mmp_alone_and_has_the_most_queries() -> None:
    params = params_of("mini", "seeds=[3]")
    assert shown_run(params) == "nq_24"
    assert without_mmp(params, params.resolve("nq_16", 3)).experiment == "nq_16_no_mmp"
    with pytest.raises(ConfigError, match=r"nq_4.*nq_24"):
        without_mmp(params, params.resolve("nq_4", 3))
    other = params_of("mini", "experiments.nq_24_no_mmp.train={epochs: 9}")
    assert shown_run(other) == "nq_16"
    with pytest.raises(ConfigError, match="table3"):
        shown_run(params_of("mini", "experiments={}"))


def test_runs_of_different_sentences_are_not_compared() -> None:
    rows = rows_of([1, 2], [1, 2])
    runs = [RunPaths("mini", name, 0) for name in ("nq_24", "nq_24_no_mmp")]
    check_same_sentences(*runs, rows, rows.sample(frac=1, random_state=0))
    for others in (rows.assign(ann_id=rows["ann_id"].iloc[0]), rows.iloc[:1]):
        with pytest.raises(DataError, match="1 are the same"):
            check_same_sentences(*runs, rows, others)
