"""What Figure 6 shows: what each query reads, its mask and its score."""

import functools
from typing import Any

import pandas as pd
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from mmnet.config.paths import Paths
from mmnet.config.schema import Config
from mmnet.data.dataset import EvaluationItems, read_image, read_mask
from mmnet.data.tokenizer import EOS, SOS
from mmnet.data.transforms import logits_to_image, normalise
from mmnet.evaluate.examples import about_run, items_of, write_arrays
from mmnet.evaluate.metrics import iou, query_means
from mmnet.evaluate.predict import load_model, read_batch
from mmnet.evaluate.selection import QUERY_RULE, choose_sentence, read_rows
from mmnet.model.mmnet import MMNet
from mmnet.runtime.errors import ConfigError
from mmnet.runtime.progress import track


def write_queries(config: Config, paths: Paths, *, device: torch.device) -> None:
    """Write Figure 6's sentence, what each query reads of it, its mask and its score.

    Beside it, how different the queries are, of this sentence and on average over the split's, as
    its rows have it.

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
    scored = items.rows.merge(rows.assign(iou=iou(rows)), on="sent_id", suffixes=("", "_of_row"))
    sent_id = choose_sentence(scored, max_length=config.dataset.max_length)
    chosen = scored[scored["sent_id"] == sent_id]
    row: Any = next(chosen.itertuples(index=False))
    words, arrays = read_sentence(model, items, sent_id, device)
    key_words = None
    if config.dataset_name == "refcoco+" and paths.key_words.is_file():
        key_words = read_key_words(model, items, pd.read_csv(paths.key_words), device)
    about = {
        **about_run(config),
        **{"sent_id": sent_id, "sentence": row.sentence, "iou": float(row.iou)},
        **{"rule": QUERY_RULE, "words": words, "sentences": len(rows)},
        **{"queries": query_means(chosen), "mean_queries": query_means(rows)},
        "key_words": key_words,
    }
    arrays |= {
        "image": read_image(paths.images / row.file),
        "truth": read_mask(row.counts, row.height, row.width),
    }
    write_arrays(run.queries, about, {key: value.numpy() for key, value in arrays.items()})


@torch.inference_mode()
def read_key_words(
    model: MMNet, items: EvaluationItems, key_words: pd.DataFrame, device: torch.device
) -> dict[str, float]:
    """Return the mean attention to the word that names the object, and to the one beside it.

    Of the items' sentences that the procedural benchmark lists: the mean over the queries, and the
    query that reads each word most. Equal means: the queries do not know which word matters here.
    """
    keys = key_words.set_index("sent_id")
    found: list[list[float]] = []
    for number in track(range(len(items)), name="key words", total=len(items), unit="batches"):
        batch = items[number]
        places = [i for i, sent_id in enumerate(batch.rows["sent_id"]) if sent_id in keys.index]
        if not places:
            continue
        attention = read_batch(model, batch, device).attention.float().cpu()
        for place in places:
            words, merged = merge_words(batch.tokens[place], attention[place])
            line = keys.loc[batch.rows["sent_id"].iloc[place]]
            read = [merged[:, words.index(line[which])] for which in ("key", "other")]
            found.append([float(x) for x in (*map(torch.mean, read), *map(torch.max, read))])
    means = torch.tensor(found).reshape(-1, 4).mean(0).tolist()
    names = ("key", "other", "most_key", "most_other")
    return {"sentences": float(len(found)), **dict(zip(names, means, strict=True))}


@torch.inference_mode()
def read_sentence(
    model: MMNet, items: EvaluationItems, sent_id: int, device: torch.device
) -> tuple[list[str], dict[str, Tensor]]:
    """Return a sentence's words, and each query's attention to them, its mask and its score."""
    number = items.rows.index[items.rows["sent_id"] == sent_id][0]
    batch = next(items[i] for i, numbers in enumerate(items.batches) if number in numbers)
    place = list(batch.rows["sent_id"]).index(sent_id)
    image, tokens = int(batch.image_of_sentence[place]), batch.tokens[place]
    features = model.eval().encode_image(normalise(batch.images[image, None].to(device)))
    _, attention, made = model.read(features, tokens[None].to(device))
    masks, scores = model.masks(made)[0].float().cpu(), made.s_q[0].float().cpu()
    y = (scores[:, None, None] * masks).sum(0)  # Eq. 16, literally
    words, attention = merge_words(tokens, attention[0].float().cpu())
    placement = batch.placements[image]
    return words, {
        "masks": logits_to_image(masks, placement),
        "y": logits_to_image(y[None], placement)[0],
        "scores": scores,
        "attention": attention,
    }


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
