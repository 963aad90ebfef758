"""What Figure 5 shows: masks of a run and of its twin without MMP."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mmnet.config.identity import RunInputs
from mmnet.config.schema import Config
from mmnet.config.tables import SPLIT
from mmnet.data.dataset import EvaluationItems, evaluation_items, read_image, read_mask
from mmnet.data.loader import read
from mmnet.evaluate.predict import load_model, predict_masks
from mmnet.evaluate.selection import (
    RULE,
    Run,
    check_comparable,
    choose_examples,
    read_rows,
)
from mmnet.runtime.errors import DataError
from mmnet.runtime.files import atomic_write


def write_examples(
    with_mmp: Run,
    without: Run,
    inputs: RunInputs,
    *,
    output: Path,
    device: torch.device,
) -> None:
    """Write Figure 5's sentences: image, truth and both runs' masks, at the original size.

    Raises:
        DataError: a run is missing, or the two are not of the same sentences, profile and seed.
        CheckpointError: a checkpoint is damaged or of other values.
    """
    rows = [read_rows(run, "figure5") for run in (with_mmp, without)]
    check_comparable(with_mmp, without, *rows)
    chosen = choose_examples(*rows)
    sent_ids = list(chosen["sent_id"])
    config = with_mmp.config
    items = evaluation_items(config, inputs.table, inputs.images, splits=[SPLIT])
    check_sentences(with_mmp, rows[0], items, inputs.table)
    masks = {
        key: predict_masks(
            load_model(run.config, run.checkpoint).to(device),
            read(items, batch_size=None, workers=0),
            sent_ids=sent_ids,
            threshold=run.config.evaluate.threshold,
            device=device,
        )
        for key, run in (("with", with_mmp), ("without", without))
    }
    described, arrays = [], {}
    of_sentence = items.rows.set_index("sent_id")
    for number, example in enumerate(chosen.to_dict("records")):
        row = of_sentence.loc[example["sent_id"]]
        described.append({**example, "sentence": row["sentence"]})
        arrays[f"{number}/image"] = read_image(inputs.images / row["file"]).numpy()
        arrays[f"{number}/truth"] = read_mask(row["counts"], row["height"], row["width"]).numpy()
        for key, of_run in masks.items():
            arrays[f"{number}/{key}"] = of_run[example["sent_id"]].numpy()
    about = {**about_run(config), "without": without.config.experiment, "rule": RULE}
    write_arrays(output, {**about, "examples": described}, arrays)


def check_sentences(run: Run, rows: pd.DataFrame, items: EvaluationItems, table: Path) -> None:
    if set(items.rows["sent_id"]) != set(rows["sent_id"]):
        raise DataError(
            f"{run.rows}: not of the sentences of {table}. Make it again: mmnet predict."
        )


def about_run(config: Config) -> dict[str, Any]:
    return {
        "profile": config.profile,
        "experiment": config.experiment,
        "seed": config.seed,
        "dataset": config.dataset_name,
        "split": SPLIT,
        "backbone": config.tower.label,
        "num_queries": config.model.num_queries,
        "threshold": config.evaluate.threshold,
    }


def write_arrays(output: Path, about: dict[str, Any], arrays: dict[str, Any]) -> None:
    with atomic_write(output, "wb") as file:
        np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)
