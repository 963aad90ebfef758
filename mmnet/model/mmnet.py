"""MMNet as Figure 3 draws it."""

from typing import NamedTuple

from torch import Tensor, nn

from mmnet.model.ablations import EqualScores, SingleMaskDecoder
from mmnet.model.decoder import Decoder
from mmnet.model.mask_decoder import MaskDecoder
from mmnet.model.mask_projector import Made
from mmnet.model.neck import FusionNeck
from mmnet.model.query_generator import QueryGenerator
from mmnet.model.text_encoder import TextEncoder

# B batch, L tokens, C width, N_q queries, H3 x W3 grid at stride 16, N = H3 * W3 cells.


class ImageFeatures(NamedTuple):
    """All that depends on the image alone, so that its sentences can share it."""

    v2: Tensor  # (B, C, H3, W3)  ReLU(F'_v2 W_v2)
    v3: Tensor  # (B, C, H3, W3)  ReLU(F_v3 W_v3)
    v4: Tensor  # (B, C, H4, W4)  ReLU(F_v4 W_v4)
    f_vd: Tensor  # (B, N_q, N)
    f_vg: Tensor  # (B, C4)


class Queries(NamedTuple):
    """What the queries of B sentences are, and what is made of them."""

    f_q: Tensor  # (B, N_q, C)
    attention: Tensor  # (B, N_q, L)  A, zero on padding
    made: Made


class MMNet(nn.Module):
    """An image and a sentence in, the mask of what the sentence refers to out."""

    def __init__(
        self,
        *,
        backbone: nn.Module,
        text_encoder: TextEncoder,
        neck: FusionNeck,
        query_generator: QueryGenerator,
        decoder: Decoder,
        mask_decoder: MaskDecoder | SingleMaskDecoder,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.text_encoder = text_encoder
        self.neck = neck
        self.query_generator = query_generator
        self.decoder = decoder
        self.mask_decoder = mask_decoder

    @property
    def has_scores(self) -> bool:
        """Whether the queries are scored by the Multi-Query Estimator."""
        return not isinstance(self.mask_decoder.estimator, EqualScores)

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Figure 3, left to right: one mask of logits per sentence, (B, 4 H3, 4 W3)."""
        return self.segment(self.encode_image(image), tokens)

    def encode_image(self, image: Tensor) -> ImageFeatures:
        f_v2, f_v3, f_v4, f_vg = self.backbone(image)
        v2, v3, v4 = self.neck.laterals(f_v2, f_v3, f_v4)
        f_vd = self.query_generator.dense(f_v2, f_v3, f_v4)
        return ImageFeatures(v2, v3, v4, f_vd, f_vg)

    def segment(self, features: ImageFeatures, tokens: Tensor) -> Tensor:
        f_s, f_q, _ = self.decode(features, tokens)
        y: Tensor = self.mask_decoder(f_s, f_q)
        return y

    def read(self, features: ImageFeatures, tokens: Tensor) -> Queries:
        """Return the masks of `segment`, with all that made them, at the same cost."""
        f_s, f_q, attention = self.decode(features, tokens)
        return Queries(f_q, attention, self.mask_decoder.make(f_s, f_q))

    def decode(self, features: ImageFeatures, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return F_s (B, N, C), F_q (B, N_q, C) and the attention A (B, N_q, L)."""
        f_t, f_tg, is_pad = self.text_encoder(tokens)
        f_vt = self.neck(features.v2, features.v3, features.v4, f_tg)
        f_q, attention = self.query_generator(features.f_vd, features.f_vg, f_t, is_pad)
        f_s = self.decoder(f_vt, f_q)
        return f_s, f_q, attention

    def masks(self, made: Made, some: slice = slice(None)) -> Tensor:
        """Return the masks (S, N_q, 4 H3, 4 W3) of all single queries of some sentences.

        Not of a model without MMP, whose queries make one mask together.
        """
        assert made.kernels is not None  # one mask per query
        return self.mask_decoder.projector.masks(made.maps[some], made.kernels[some])
