"""What Figure 5 shows: masks of a run and of its twin without MMP."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mmnet.config.paths import Paths, RunPaths
from mmnet.config.schema import Config
from mmnet.config.tables import SPLIT
from mmnet.data.dataset import EvaluationItems, evaluation_items, read_image, read_mask
from mmnet.data.loader import read
from mmnet.evaluate.predict import load_model, predict_masks
from mmnet.evaluate.selection import RULE, check_same_sentences, choose_examples, read_rows
from mmnet.runtime.errors import DataError
from mmnet.runtime.files import atomic_write


def write_examples(config: Config, without: Config, paths: Paths, *, device: torch.device) -> None:
    """Write Figure 5's sentences: image, truth, and masks with MMP and `without`, original size.

    Raises:
        DataError: a run is missing, or the two are not of the same sentences.
        CheckpointError: a checkpoint is damaged or of other values.
    """
    configs = (config, without)
    run, twin = runs = [paths.run(of.experiment, of.seed) for of in configs]
    ours, theirs = (read_rows(*pair, "figure5") for pair in zip(runs, configs, strict=True))
    check_same_sentences(run, twin, ours, theirs)
    chosen = choose_examples(ours, theirs)
    items = items_of(run, config, paths, ours)
    masks = {
        key: predict_masks(
            load_model(of, paths.run(of.experiment, of.seed).checkpoint).to(device),
            read(items, batch_size=None, workers=0),
            sent_ids=list(chosen["sent_id"]),
            threshold=of.evaluate.threshold,
            device=device,
        )
        for key, of in zip(("with", "without"), configs, strict=True)
    }
    described, arrays = [], {}
    of_sentence = items.rows.set_index("sent_id")
    for number, example in enumerate(chosen.to_dict("records")):
        row = of_sentence.loc[example["sent_id"]]
        described.append({**example, "sentence": row["sentence"]})
        arrays[f"{number}/image"] = read_image(paths.images / row["file"]).numpy()
        arrays[f"{number}/truth"] = read_mask(row["counts"], row["height"], row["width"]).numpy()
        for key, of_run in masks.items():
            arrays[f"{number}/{key}"] = of_run[example["sent_id"]].numpy()
    about = {**about_run(config), "without": without.experiment, "rule": RULE}
    write_arrays(run.examples, {**about, "examples": described}, arrays)


def items_of(run: RunPaths, config: Config, paths: Paths, rows: pd.DataFrame) -> EvaluationItems:
    """Return the split's items, of whose sentences the run's `rows` must be."""
    table = paths.table(config.dataset_name)
    items = evaluation_items(config, table, paths.images, splits=[SPLIT])
    if set(items.rows["sent_id"]) != set(rows["sent_id"]):
        raise DataError(f"{run.rows}: not of the sentences of {table}; re-run mmnet predict.")
    return items


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
