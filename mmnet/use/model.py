"""A trained model: look at a picture once, then find what sentences name in it."""

import contextlib
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from mmnet.data.dataset import stack_images
from mmnet.data.tokenizer import num_tokens, tokenize
from mmnet.data.transforms import normalise
from mmnet.evaluate.queries import merge_words
from mmnet.evaluate.query_measures import measure
from mmnet.model.mmnet import ImageFeatures, MMNet, Queries
from mmnet.runtime.errors import ConfigError, DataError, MMNetError
from mmnet.use.config import InferenceConfig
from mmnet.use.images import Pixels, Source, read_pixels
from mmnet.use.pairs import Failure, Pair, batches, check_sentence
from mmnet.use.result import QueryMasks, Result

MOST = 128
"""Sentences that are read at a time, to bound the memory."""


class Model:
    """A trained network on its device, and what is known of its training."""

    def __init__(self, config: InferenceConfig, network: MMNet, device: torch.device) -> None:
        self.config, self.network, self.device = config, network, device

    def look(self, image: Source) -> "Picture":
        """Encode a picture: a path, a Pillow image, or an array (h, w, 3) of uint8, RGB.

        Raises:
            DataError: it is missing, damaged, no picture, or too large.
        """
        pixels = self.read_pixels(image)
        return Picture(self, name_of(image), pixels, self.encode([pixels]))

    def find_many(
        self, pairs: Iterable[Pair], batch_size: int = 16, threshold: float | None = None
    ) -> Iterator[Result]:
        """Yield the result of each pair of a picture and a sentence.

        Pairs are grouped by picture, in the order of their first ones, and each picture is encoded
        once; `Result.number` is the pair's place. A batch ends with the picture that brings it to
        `batch_size` sentences. The next pictures are decoded meanwhile.

        Raises:
            DataError: a picture or sentence is invalid.
            ConfigError: the threshold is not between 0 and 1.
        """
        for outcome in self.try_many(pairs, batch_size, threshold):
            if isinstance(outcome, Failure):
                raise outcome.error
            yield outcome

    def try_many(
        self, pairs: Iterable[Pair], batch_size: int = 16, threshold: float | None = None
    ) -> Generator[Result | Failure, None, None]:
        """Yield what `find_many` does, and a `Failure` for each pair that cannot be read.

        Raises:
            ConfigError: the threshold is not between 0 and 1.
        """
        threshold = self.threshold(threshold)
        for batch in batches(pairs, self.read_pixels, batch_size):
            if isinstance(batch, Failure):
                yield batch
                continue
            start = time.perf_counter()
            features = self.encode(batch.pixels)
            logits, cut = self.read(features, batch.sentences, batch.of_picture)
            seconds = (time.perf_counter() - start) / len(batch.sentences)
            for place, which in enumerate(batch.of_picture):
                yield Result(
                    sentence=batch.sentences[place],
                    image=name_of(batch.sources[which]),
                    number=batch.numbers[place],
                    threshold=threshold,
                    cut=cut[place],
                    seconds=seconds,
                    pixels=batch.pixels[which],
                    logits=logits[place],
                )

    def read_pixels(self, image: Source) -> Pixels:
        """Decode a picture and fit it to the model's square, without encoding it.

        Raises:
            DataError: as `look`.
        """
        model = self.config.model
        return read_pixels(image, size=model.image_size, resize=model.resize)

    @torch.inference_mode()
    def encode(self, pixels: Sequence[Pixels]) -> ImageFeatures:
        """Return what the sentences of pictures share."""
        images = stack_images([one.square for one in pixels])
        with self._enough_memory():
            return self.network.encode_image(normalise(images.to(self.device)))

    @torch.inference_mode()
    def read(
        self, features: ImageFeatures, sentences: Sequence[str], of_picture: Sequence[int]
    ) -> tuple[Tensor, list[bool]]:
        """Return each sentence's logits y (n, H/4, W/4), and whether it was cut."""
        tokens, cut = self.tokenize(sentences)
        which = torch.tensor(of_picture, device=self.device)
        with self._enough_memory():
            parts = [
                self.network.read(_of_each(features, numbers), some).made.y
                for numbers, some in zip(which.split(MOST), tokens.split(MOST), strict=True)
            ]
            if self.device.type == "cuda":  # so that times are of the work, not of its start
                torch.cuda.synchronize(self.device)
        return torch.cat(parts), cut

    def tokenize(self, sentences: Sequence[str]) -> tuple[Tensor, list[bool]]:
        """Return token ids (n, L) on the device, and which sentences were cut to L.

        Raises:
            DataError: a sentence is empty.
        """
        for sentence in sentences:
            check_sentence(sentence)
        length = self.config.max_length
        tokens, _ = tokenize(list(sentences), length)
        return tokens.to(self.device), [num_tokens(sentence) > length for sentence in sentences]

    def threshold(self, given: float | None) -> float:
        """Return a threshold on the probability, or the default: the training's on val.

        Raises:
            ConfigError: it is not between 0 and 1.
        """
        if given is None:
            return self.config.threshold
        if not isinstance(given, Real) or not 0 < given < 1:
            raise ConfigError(f"threshold {given!r}: must be a number between 0 and 1.")
        return given

    def check_queries(self) -> None:
        """Check that each query makes a mask of its own.

        Raises:
            ConfigError: the model has no MMP, so its queries make one mask together.
        """
        if not self.config.model.mmp:
            raise ConfigError(
                f"{self.config.name}: has no MMP, so its queries have no masks of their own. "
                "Load a model with MMP."
            )

    @contextlib.contextmanager
    def _enough_memory(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0][:120]
            raise MMNetError(
                f"{self.device} has too little free memory ({reason}). Choose another device, or "
                "give fewer sentences at a time."
            ) from None


class Picture:
    """A picture that has been encoded, for any number of sentences."""

    def __init__(
        self, model: Model, image: str | None, pixels: Pixels, features: ImageFeatures
    ) -> None:
        self.model, self.image, self.pixels, self.features = model, image, pixels, features

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, after any rotation that EXIF asks for."""
        return self.pixels.placement.height, self.pixels.placement.width

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of the picture, in words."""
        return self.pixels.notes

    @overload
    def find(self, sentences: str, threshold: float | None = None) -> Result: ...
    @overload
    def find(self, sentences: list[str], threshold: float | None = None) -> list[Result]: ...
    def find(
        self, sentences: str | list[str], threshold: float | None = None
    ) -> Result | list[Result]:
        """Return the mask of what each sentence names; several sentences are read together.

        `threshold` is on the probability; default: the one that the model was chosen with.

        Raises:
            DataError: a sentence is empty or no text.
            ConfigError: the threshold is not between 0 and 1.
        """
        threshold = self.model.threshold(threshold)
        if isinstance(sentences, str):
            return self.find([sentences], threshold)[0]
        if not isinstance(sentences, list | tuple):
            raise DataError(f"{sentences!r}: not a sentence or a list of sentences.")
        if not sentences:
            return []
        start = time.perf_counter()
        logits, cut = self.model.read(self.features, sentences, [0] * len(sentences))
        seconds = (time.perf_counter() - start) / len(sentences)
        return [
            Result(
                sentence=sentence,
                image=self.image,
                number=number,
                threshold=threshold,
                cut=cut[number],
                seconds=seconds,
                pixels=self.pixels,
                logits=logits[number],
            )
            for number, sentence in enumerate(sentences)
        ]

    @torch.inference_mode()
    def queries(self, sentence: str) -> QueryMasks:
        """Return what each query reads of a sentence, its mask and its score.

        Raises:
            DataError: the sentence is empty.
            ConfigError: the model has no MMP, so its queries make one mask together.
        """
        self.model.check_queries()
        network = self.model.network
        tokens, (cut,) = self.model.tokenize([sentence])
        read: Queries = network.read(self.features, tokens)
        words, attention = merge_words(tokens[0].cpu(), read.attention[0].float().cpu())
        measures = measure(network, read, tokens)
        return QueryMasks(
            words=words,
            attention=attention.numpy(),
            scores=read.made.s_q[0].float().cpu().numpy(),
            measures={name: float(value[0]) for name, value in measures.items()},
            cut=cut,
            pixels=self.pixels,
            logits=network.masks(read.made)[0],
        )


def name_of(image: Source) -> str | None:
    return str(image) if isinstance(image, str | Path) else None


def _of_each(features: ImageFeatures, numbers: Tensor) -> ImageFeatures:
    """Return the features of each sentence's picture."""
    return ImageFeatures(*(feature[numbers] for feature in features))
