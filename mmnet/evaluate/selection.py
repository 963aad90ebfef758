"""Which sentences Figures 5 and 6 show: selected by rule, from rows, without torch."""

from typing import Any

import pandas as pd

from mmnet.config.paths import RunPaths
from mmnet.config.schema import Config
from mmnet.config.tables import SPLIT
from mmnet.data.refer import read_table
from mmnet.evaluate.metrics import iou
from mmnet.runtime.errors import DataError

KINDS = ("largest gain", "median gain", "least gain")
RULE = (
    "Of the gains in IoU of all sentences, the two largest, the two closest to their median and "
    "the two least (the largest losses); taken in turns, no image twice, ties to the lowest "
    "sent_id."
)
QUERY_RULE = (
    "Of the sentences with IoU above 0.5 (of all, should there be none) the one of most tokens "
    "that is not cut; ties to the lowest sent_id."
)
IDS = ["split", "ref_id", "ann_id", "image_id", "sent_id"]


def read_rows(run: RunPaths, config: Config, figure: str) -> pd.DataFrame:
    """Return a run's rows of the split.

    Raises:
        DataError: rows or checkpoint are missing, or the rows are of other parameters.
    """
    for path, maker in ((run.checkpoint, "Train"), (run.rows, "Predict")):
        if not path.is_file():
            raise DataError(
                f"{figure} ({config.profile}): {run.name} is missing: {path} not found. "
                f"{maker} it: snakemake does when asked for results/{figure}.pdf."
            )
    rows = read_table(run.rows, [SPLIT], maker="mmnet predict")
    if rows.attrs.get("config") != config.prediction_values():
        raise DataError(
            f"{run.rows}: was produced with different parameters; re-run mmnet predict."
        )
    return rows


def check_same_sentences(
    one: RunPaths, other: RunPaths, rows: pd.DataFrame, others: pd.DataFrame
) -> None:
    """Refuse to compare the rows of two runs on different sentences (DataError)."""
    ids, their_ids = (set(map(tuple, table[IDS].to_numpy())) for table in (rows, others))
    if ids != their_ids or len(rows) != len(others):
        raise DataError(
            f"{SPLIT}: {one.name} has {len(rows)} sentences, {other.name} {len(others)}, of which "
            f"{len(ids & their_ids)} are the same. Predict both on the same data."
        )


def choose_examples(with_mmp: pd.DataFrame, without: pd.DataFrame) -> pd.DataFrame:
    """Return Figure 5's sentences by `RULE`: sent_id, image_id, kind, both IoU and the gain."""
    rows = with_mmp.assign(iou_with=iou(with_mmp)).merge(
        without.assign(iou_without=iou(without))[["sent_id", "iou_without"]], on="sent_id"
    )
    # Rounded: equal gains of different IoU differ in the last bits, and must be ties.
    rows["gain"] = (rows["iou_with"] - rows["iou_without"]).round(12)
    rows["off"] = (rows["gain"] - rows["gain"].median()).abs().round(12)
    orders = {
        KINDS[0]: rows.sort_values(["gain", "sent_id"], ascending=[False, True]),
        KINDS[1]: rows.sort_values(["off", "sent_id"]),
        KINDS[2]: rows.sort_values(["gain", "sent_id"]),
    }
    chosen: list[dict[Any, Any]] = []
    for kind in KINDS * 2:
        order = orders[kind]
        left = order[~order["image_id"].isin([example["image_id"] for example in chosen])]
        if len(left):
            chosen.append({"kind": kind, **left.iloc[0].to_dict()})
    columns = ["kind", "sent_id", "image_id", "iou_with", "iou_without", "gain"]
    frame = pd.DataFrame(chosen)[columns]
    return frame.sort_values("kind", key=lambda kinds: kinds.map(KINDS.index), kind="stable")


def choose_sentence(rows: pd.DataFrame, *, max_length: int) -> int:
    """Return Figure 6's sent_id by `QUERY_RULE`, of rows with `iou` and the uncut `tokens`."""
    whole = rows[rows["tokens"] <= max_length]
    whole = whole if len(whole) else rows
    right = whole[whole["iou"] > 0.5]
    right = right if len(right) else whole
    order = right.sort_values(["tokens", "sent_id"], ascending=[False, True])
    return int(order["sent_id"].iloc[0])
