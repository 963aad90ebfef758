"""What Figure 6 shows: what each query reads, its mask and its score."""

import functools
import math
from typing import Any, NamedTuple

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from mmnet.config.paths import Paths
from mmnet.config.schema import Config
from mmnet.data.dataset import EvaluationItems, ImageBatch, read_image, read_mask
from mmnet.data.loader import read
from mmnet.data.tokenizer import EOS, SOS
from mmnet.data.transforms import logits_to_image, normalise
from mmnet.evaluate.examples import about_run, items_of, write_arrays
from mmnet.evaluate.metrics import iou
from mmnet.evaluate.predict import load_model
from mmnet.evaluate.selection import QUERY_RULE, choose_sentence, read_rows
from mmnet.model.mmnet import ImageFeatures, MMNet
from mmnet.runtime.errors import ConfigError
from mmnet.runtime.progress import track

CHUNK = 8
"""Sentences whose N_q masks are made at a time."""


def write_queries(config: Config, paths: Paths, *, device: torch.device) -> None:
    """Write Figure 6's sentence, what each query reads of it, its mask and its score.

    Beside it, how alike the queries are, of this sentence and of all sentences of the split.

    Raises:
        DataError: the run is missing, or its rows are of other values or sentences.
        CheckpointError: the checkpoint is damaged or of other values.
    """
    if not config.model.mmp:
        raise ConfigError(
            f"{config.experiment}: model.mmp is false, so its queries have no masks of their own. "
            "Name an experiment with MMP."
        )
    run = paths.run(config.experiment, config.seed)
    rows = read_rows(run, config, "figure6")
    items = items_of(run, config, paths, rows)
    model = load_model(config, run.checkpoint).to(device)
    scored = items.rows.merge(rows.assign(iou=iou(rows))[["sent_id", "iou"]], on="sent_id")
    sent_id = choose_sentence(scored, max_length=config.dataset.max_length)
    row: Any = next(scored[scored["sent_id"] == sent_id].itertuples(index=False))
    shown, likeness = _read_all(model, items, sent_id, config, device)
    means = likeness.mean(0).tolist()
    about = {
        **about_run(config),
        **{"sent_id": sent_id, "sentence": row.sentence, "iou": float(row.iou)},
        **{"rule": QUERY_RULE, "words": shown.words},
        **{"mask_iou": shown.likeness[0], "attention_cosine": shown.likeness[1]},
        **{"sentences": len(rows), "mean_mask_iou": means[0], "mean_attention_cosine": means[1]},
    }
    arrays = shown.arrays | {
        "image": read_image(paths.images / row.file),
        "truth": read_mask(row.counts, row.height, row.width),
    }
    write_arrays(run.queries, about, {key: value.numpy() for key, value in arrays.items()})


class Shown(NamedTuple):
    """What is read of the sentence that is shown."""

    words: list[str]
    arrays: dict[str, Tensor]
    likeness: list[float]
    """How alike its queries are: masks, attention."""


def _read_all(
    model: MMNet, items: EvaluationItems, sent_id: int, config: Config, device: torch.device
) -> tuple[Shown, Tensor]:
    """Read all sentences; return what is shown of one, and how alike each one's queries are."""
    limit = math.log(config.evaluate.threshold / (1 - config.evaluate.threshold))
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
            likeness.append(alike(queries.masks > limit, queries.attention))
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
                shown = Shown(words, arrays, likeness[-1][place].tolist())
    return shown, torch.cat(likeness)


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
