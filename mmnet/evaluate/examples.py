"""What Figures 5 and 6 show of their sentences: masks, and what each query reads."""

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from mmnet.config import Config
from mmnet.data.dataset import (
    EvaluationItems,
    ImageBatch,
    evaluation_items,
    read,
    read_image,
    read_mask,
)
from mmnet.data.tokenizer import EOS, SOS
from mmnet.data.transforms import logits_to_image, normalise
from mmnet.errors import DataError
from mmnet.evaluate.choice import (
    QUERY_RULE,
    RULE,
    Run,
    check_comparable,
    choose_examples,
    choose_sentence,
    read_rows,
)
from mmnet.evaluate.metrics import iou
from mmnet.evaluate.pair import SPLIT
from mmnet.evaluate.predict import load_model, predict_masks
from mmnet.files import atomic_write
from mmnet.model.mmnet import ImageFeatures, MMNet
from mmnet.progress import track

CHUNK = 8
"""Sentences whose N_q masks are made at a time."""


def write_examples(
    with_mmp: Run,
    without: Run,
    *,
    table: Path,
    images: Path,
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
    items = evaluation_items(config, table, images, splits=[SPLIT])
    _check_sentences(with_mmp, rows[0], items, table)
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
        arrays[f"{number}/image"] = read_image(images / row["file"]).numpy()
        arrays[f"{number}/truth"] = read_mask(row["counts"], row["height"], row["width"]).numpy()
        for key, of_run in masks.items():
            arrays[f"{number}/{key}"] = of_run[example["sent_id"]].numpy()
    about = {**_about(config), "without": without.config.experiment, "rule": RULE}
    _write(output, {**about, "examples": described}, arrays)


def write_queries(
    run: Run, *, table: Path, images: Path, output: Path, device: torch.device
) -> None:
    """Write Figure 6's sentence, what each query reads of it, its mask and its score.

    Beside it, how alike the queries are, of this sentence and of all sentences of the split.

    Raises:
        DataError: the run is missing, or its rows are of other values or sentences.
        CheckpointError: the checkpoint is damaged or of other values.
    """
    config = run.config
    rows = read_rows(run, "figure6")
    items = evaluation_items(config, table, images, splits=[SPLIT])
    _check_sentences(run, rows, items, table)
    model = load_model(config, run.checkpoint).to(device)
    scored = items.rows.merge(rows.assign(iou=iou(rows))[["sent_id", "iou"]], on="sent_id")
    sent_id = choose_sentence(scored, max_length=config.dataset.max_length)
    row: Any = next(scored[scored["sent_id"] == sent_id].itertuples(index=False))
    logit = math.log(config.evaluate.threshold / (1 - config.evaluate.threshold))

    likeness = []
    batches = track(
        read(items, batch_size=None, workers=config.train.workers),
        name=f"{config.experiment} reading queries",
        total=len(items),
        unit="batches",
    )
    for batch in batches:
        features = encode(model, batch, device)
        for some in torch.arange(len(batch.rows)).split(CHUNK):
            queries = read_queries(model, features, batch, some)
            likeness.append(alike(queries.masks > logit, queries.attention))
            if sent_id in (sent_ids := list(batch.rows["sent_id"].iloc[some.numpy()])):
                place = sent_ids.index(sent_id)
                number = int(some[place])
                placement = batch.placements[int(batch.image_of_sentence[number])]
                words, attention = merge_words(batch.tokens[number], queries.attention[place])
                arrays = {
                    "masks": logits_to_image(queries.masks[place], placement),
                    "y": logits_to_image(queries.y[place, None], placement)[0],
                    "scores": queries.scores[place],
                    "attention": attention,
                }
                own_iou, own_cosine = likeness[-1][place].tolist()
    mean_iou, mean_cosine = torch.cat(likeness).mean(0).tolist()
    about = {
        **_about(config),
        "sent_id": sent_id,
        "sentence": row.sentence,
        "iou": float(row.iou),
        "rule": QUERY_RULE,
        "words": words,
        "mask_iou": own_iou,
        "attention_cosine": own_cosine,
        "sentences": len(rows),
        "mean_mask_iou": mean_iou,
        "mean_attention_cosine": mean_cosine,
    }
    arrays["image"] = read_image(images / row.file)
    arrays["truth"] = read_mask(row.counts, row.height, row.width)
    _write(output, about, {key: value.numpy() for key, value in arrays.items()})


def _check_sentences(run: Run, rows: pd.DataFrame, items: EvaluationItems, table: Path) -> None:
    if set(items.rows["sent_id"]) != set(rows["sent_id"]):
        raise DataError(
            f"{run.rows}: not of the sentences of {table}. Make it again: mmnet predict."
        )


class Queries(NamedTuple):
    """What is read of S sentences, on the CPU."""

    masks: Tensor
    """(S, N_q, H/4, W/4) logits"""
    scores: Tensor
    """(S, N_q)"""
    attention: Tensor
    """(S, N_q, L)"""
    y: Tensor
    """(S, H/4, W/4) logits"""


@torch.inference_mode()
def encode(model: MMNet, batch: ImageBatch, device: torch.device) -> ImageFeatures:
    return model.eval().encode_image(normalise(batch.images.to(device)))


@torch.inference_mode()
def read_queries(model: MMNet, features: ImageFeatures, batch: ImageBatch, some: Tensor) -> Queries:
    """Return what is read of some sentences of a batch, by their numbers there."""
    device = features.f_vg.device
    of_image = batch.image_of_sentence[some].to(device)
    per_sentence = ImageFeatures(*(feature[of_image] for feature in features))
    read_by = model.eval().masks(per_sentence, batch.tokens[some].to(device))
    masks, scores, attention = (tensor.float().cpu() for tensor in read_by)
    y = (scores[..., None, None] * masks).sum(1)  # Eq. 16, literally
    return Queries(masks, scores, attention, y)


def alike(masks: Tensor, attention: Tensor) -> Tensor:
    """Return how alike the queries of S sentences are, (S, 2), 1 where they are the same.

    Means over all pairs of queries: IoU of their masks (S, N_q, H/4, W/4) of bool, two empty ones
    agreeing; cosine of their rows of attention (S, N_q, L). Of one query: 1.
    """
    flat = masks.flatten(2).double()
    intersection = flat @ flat.transpose(1, 2)
    areas = flat.sum(2)
    union = areas[:, :, None] + areas[:, None] - intersection
    ious = torch.where(union > 0, intersection / union.clamp(min=1), 1.0)
    rows = torch.nn.functional.normalize(attention.double(), dim=2)
    cosines = rows @ rows.transpose(1, 2)
    n = masks.shape[1]
    if n == 1:
        return torch.ones(len(masks), 2, dtype=torch.float64)
    one, other = torch.triu_indices(n, n, offset=1)
    return torch.stack([pairs[:, one, other].mean(1) for pairs in (ious, cosines)], dim=1)


def merge_words(tokens: Tensor, attention: Tensor) -> tuple[list[str], Tensor]:
    """Return a sentence's words with [SOS] and [EOS], and each query's attention to each.

    A word is one or more tokens of CLIP's BPE; its attention is theirs together. Padding, which
    gets none, is left out.
    """
    tokenizer = _tokenizer()
    words: list[str] = []
    word_of: list[int] = []
    unfinished = b""
    for token in tokens.tolist():
        word_of.append(len(words))
        if token in (SOS, EOS):
            if unfinished:  # cut off within a word
                words.append(unfinished.decode(errors="replace"))
                unfinished, word_of[-1] = b"", len(words)
            words.append("[SOS]" if token == SOS else "[EOS]")
            if token == EOS:
                break
            continue
        piece = tokenizer.decoder[token]
        unfinished += bytes(tokenizer.byte_decoder[c] for c in piece.removesuffix("</w>"))
        if piece.endswith("</w>"):
            words.append(unfinished.decode(errors="replace"))
            unfinished = b""
    merged = torch.zeros(len(attention), len(words), dtype=attention.dtype)
    return words, merged.index_add(1, torch.tensor(word_of), attention[:, : len(word_of)])


@functools.cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


def _about(config: Config) -> dict[str, Any]:
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


def _write(output: Path, about: dict[str, Any], arrays: dict[str, Any]) -> None:
    with atomic_write(output, "wb") as file:
        np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)
