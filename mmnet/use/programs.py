"""`torch.export` programs of MMNet: they run without this package, in Python or C++."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export, save

from mmnet.data.transforms import normalise
from mmnet.model.mmnet import ImageFeatures, MMNet
from mmnet.use.folder import HEAD, IMAGE

MOST_SENTENCES = 4096
"""At a time, for one image."""

# S sentences, L tokens, H x H the model's square, 4 H3 = H / 4.


class ImagePart(nn.Module):
    """All that depends on the image alone: (1, 3, H, H) uint8 to five tensors of features."""

    def __init__(self, model: MMNet) -> None:
        super().__init__()
        none = nn.Identity()
        # The parts that it does not use would double the file.
        self.mmnet = MMNet(
            backbone=model.backbone,
            text_encoder=none,  # type: ignore[arg-type]
            neck=model.neck,
            query_generator=model.query_generator,
            decoder=none,  # type: ignore[arg-type]
            mask_decoder=none,  # type: ignore[arg-type]
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.mmnet.encode_image(normalise(image)))


class Head(nn.Module):
    """The features of one image and S sentences' tokens (S, L) to logits (S, 4 H3, 4 H3)."""

    def __init__(self, model: MMNet) -> None:
        super().__init__()
        self.mmnet = MMNet(
            backbone=nn.Identity(),
            text_encoder=model.text_encoder,
            neck=model.neck,
            query_generator=model.query_generator,
            decoder=model.decoder,
            mask_decoder=model.mask_decoder,
        )

    def forward(
        self, v2: Tensor, v3: Tensor, v4: Tensor, f_vd: Tensor, f_vg: Tensor, tokens: Tensor
    ) -> Tensor:
        features = (x.expand(len(tokens), *x.shape[1:]) for x in (v2, v3, v4, f_vd, f_vg))
        return self.mmnet.segment(ImageFeatures(*features), tokens)


def write_programs(model: MMNet, folder: Path, *, image_size: int, max_length: int) -> None:
    """Write IMAGE and HEAD: the image part for one image, the head for 1 to 4096 sentences."""
    model = model.cpu().eval()
    with torch.no_grad(), _old_settings(), warnings.catch_warnings():
        # On the CPU nothing comes of it.
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        for name, program in _programs(model, image_size, max_length):
            # Through memory: torch's own writer reports a full disk as an error of its own.
            buffer = io.BytesIO()
            save(program, buffer)
            (folder / name).write_bytes(buffer.getbuffer())


@contextlib.contextmanager
def _old_settings() -> Iterator[None]:
    """Set TF32 by torch's old interface: its exporter asks that, and refuses if both disagree."""
    cudnn: Any = torch.backends.cudnn
    conv, rnn = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = conv, rnn


def _programs(
    model: MMNet, image_size: int, max_length: int
) -> tuple[tuple[str, ExportedProgram], ...]:
    image = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)
    image_part = ImagePart(model)
    features = image_part(image)
    tokens = torch.zeros(2, max_length, dtype=torch.long)
    tokens[:, 1] = 1  # [EOS] is the largest id
    shapes = (*(None for _ in features), {0: Dim("sentences", min=1, max=MOST_SENTENCES)})
    head_inputs = (*features, tokens)
    # Strict: the number of sentences, which the model reads by len(), stays a symbol.
    head = export(Head(model), head_inputs, dynamic_shapes=shapes, strict=True)
    return (IMAGE, export(image_part, (image,))), (HEAD, head)
