"""VLT's head on MMNet's towers, neck and text-free pyramid: many queries, one mask.

Vision-Language Transformer and Query Generation for Referring Segmentation (Ding et al., ICCV 2021;
arXiv 2108.05565), §3: Query Generation Module, transformer, Query Balance Module, mask decoder.

Every width is d = `width` (256 in the paper), the MLPs' too; there are always two layers and two.
Other keys: image_size, channels, num_queries (16), heads (8), dropout (0.1), vector_norm (of W_tg).
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmnet.model.heads.backbone import leave_out, make_backbone
from mmnet.model.layers import ReLULinear, coordinates, sine_positions
from mmnet.model.neck import FusionNeck
from mmnet.model.pyramid import Laterals, Pyramid, up
from mmnet.model.text_encoder import TextEncoder

# B batch, L tokens, d width, N_q queries, H3 x W3 grid at stride 16, N = H3 * W3 cells.
# Dense is ReLULinear. Maps are channel-first.


class VLTFeatures(NamedTuple):
    """All that depends on the image alone."""

    v2: Tensor  # (B, d, H3, W3)
    v3: Tensor  # (B, d, H3, W3)
    v4: Tensor  # (B, d, H4, W4)
    v: Tensor  # (B, N_q, d)  what each query sees of the image


def leaky_conv(in_width: int, out_width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_width, out_width, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_width),
        nn.LeakyReLU(0.1),
    )


class ReLUAttention(nn.Module):
    """Multi-head attention, each of its four projections a Dense; keys are the values too.

    `is_pad` (B, keys) are the keys that get no attention.
    """

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.w_q, self.w_k, self.w_v, self.w_o = (ReLULinear(width, width) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, is_pad: Tensor | None = None) -> Tensor:
        q, k, v = (
            w(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, length, d_k)
            for w, x in ((self.w_q, query), (self.w_k, key), (self.w_v, key))
        )
        seen = None if is_pad is None else ~is_pad[:, None, None]
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        out: Tensor = self.w_o(heads.transpose(1, 2).flatten(2))  # (B, length, d)
        return out


class QueryGeneration(nn.Module):
    """What the image shows each query asks the words: N_q readings of one sentence."""

    coordinates: Tensor
    q_position: Tensor
    word_position: Tensor

    def __init__(
        self,
        *,
        token_width: int,
        width: int,
        num_queries: int,
        heads: int,
        grid: int,
        max_length: int,
    ) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(leaky_conv(channels, width) for channels in (width + 6, width, width)),
            nn.Conv2d(width, num_queries, 1),
        )
        self.dense_v = ReLULinear(grid * grid, width)
        self.dense_w = ReLULinear(token_width, width)
        self.attention = ReLUAttention(width=width, heads=heads)
        at = coordinates(grid, grid).repeat_interleave(3, 0)  # x, x, x, y, y, y
        self.register_buffer("coordinates", at, persistent=False)
        self.register_buffer("q_position", sine_positions(num_queries, width), persistent=False)
        self.register_buffer("word_position", sine_positions(max_length, width), persistent=False)

    def look(self, f_v: Tensor) -> Tensor:
        """Return v, from the text-free map (B, d, H3, W3)."""
        at = self.coordinates.expand(len(f_v), -1, -1, -1)
        maps = self.conv(torch.cat([f_v, at], 1)).flatten(2)  # (B, N_q, N)
        v: Tensor = self.dense_v(maps)  # (B, N_q, d)
        return v

    def forward(self, v: Tensor, f_t: Tensor, is_pad: Tensor) -> Tensor:
        w = self.dense_w(f_t) + self.word_position[: f_t.shape[1]]  # (B, L, d)
        f_q: Tensor = self.attention(v + self.q_position, w, is_pad) + v  # (B, N_q, d)
        return f_q


class EncoderLayer(nn.Module):
    """Pixels look at each other, then through an MLP; post-norm."""

    def __init__(self, *, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.mhsa = ReLUAttention(width=width, heads=heads)
        self.mlp = nn.Sequential(ReLULinear(width, width), nn.Linear(width, width))
        self.ln_1, self.ln_2 = (nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, f: Tensor) -> Tensor:
        f = self.ln_1(f + self.dropout(self.mhsa(f, f)))  # (B, N, d)
        out: Tensor = self.ln_2(f + self.dropout(self.mlp(f)))  # (B, N, d)
        return out


class DecoderLayer(nn.Module):
    """Queries look at each other, then at the pixels, then through an MLP; post-norm."""

    def __init__(self, *, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.mhsa, self.mhca = (ReLUAttention(width=width, heads=heads) for _ in range(2))
        self.mlp = nn.Sequential(ReLULinear(width, width), nn.Linear(width, width))
        self.ln_1, self.ln_2, self.ln_3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, f_q: Tensor, f: Tensor) -> Tensor:
        f_q = self.ln_1(f_q + self.dropout(self.mhsa(f_q, f_q)))  # (B, N_q, d)
        f_q = self.ln_2(f_q + self.dropout(self.mhca(f_q, f)))  # (B, N_q, d)
        out: Tensor = self.ln_3(f_q + self.dropout(self.mlp(f_q)))  # (B, N_q, d)
        return out


class Transformer(nn.Module):
    """Encode the pixels, then let the queries read them. Positions are added once to either."""

    pixel_position: Tensor
    q_position: Tensor

    def __init__(
        self, *, width: int, heads: int, dropout: float, num_queries: int, grid: int
    ) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"width": width, "heads": heads, "dropout": dropout}
        self.encoder = nn.Sequential(*(EncoderLayer(**sizes) for _ in range(2)))
        self.decoder = nn.ModuleList(DecoderLayer(**sizes) for _ in range(2))
        self.register_buffer("pixel_position", sine_positions(grid**2, width), persistent=False)
        self.register_buffer("q_position", sine_positions(num_queries, width), persistent=False)

    def forward(self, f: Tensor, f_q: Tensor) -> Tensor:
        f = self.encoder(f + self.pixel_position)  # (B, N, d)
        f_q = f_q + self.q_position
        for layer in self.decoder:
            f_q = layer(f_q, f)  # (B, N_q, d)
        return f_q


class QueryBalance(nn.Module):
    """Weigh each query's response by how well it and its query fit together."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.dense_response, self.dense_query = (ReLULinear(width, width) for _ in range(2))
        self.dense_both = ReLULinear(2 * width, width)
        self.dense_1 = nn.Linear(width, 1)

    def forward(self, response: Tensor, f_q: Tensor) -> Tensor:
        both = torch.cat([self.dense_response(response), self.dense_query(f_q)], -1)
        gate: Tensor = self.dense_1(self.dense_both(both)).sigmoid()  # (B, N_q, 1)
        return response * gate  # (B, N_q, d)


class MaskDecoder(nn.Module):
    """Make a map of each query, and of the maps, as channels, one mask."""

    def __init__(self, *, width: int, num_queries: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.dense_map = ReLULinear(width, grid * grid)
        self.conv_16 = nn.Sequential(
            *(leaky_conv(channels, width) for channels in (num_queries, width, width))
        )
        self.conv_8 = leaky_conv(width, width)
        self.conv_4 = nn.Sequential(leaky_conv(width, width), nn.Conv2d(width, 1, 1))

    def forward(self, response: Tensor) -> Tensor:
        maps = self.dense_map(response).unflatten(2, (self.grid, self.grid))  # (B, N_q, H3, W3)
        x = self.conv_8(up(self.conv_16(maps)))  # (B, d, 2 H3, 2 W3)
        y: Tensor = self.conv_4(up(x)).squeeze(1)  # (B, 4 H3, 4 W3)
        return y


class VLT(nn.Module):
    """An image and a sentence in, the mask of what the sentence refers to out."""

    def __init__(
        self,
        *,
        backbone: nn.Module,
        text_encoder: TextEncoder,
        neck: FusionNeck,
        laterals: Laterals,
        pyramid: Pyramid,
        query_generation: QueryGeneration,
        transformer: Transformer,
        query_balance: QueryBalance,
        mask_decoder: MaskDecoder,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.text_encoder = text_encoder
        self.neck = neck
        self.laterals = laterals
        self.pyramid = pyramid
        self.query_generation = query_generation
        self.transformer = transformer
        self.query_balance = query_balance
        self.mask_decoder = mask_decoder
        for part in (query_generation, transformer, query_balance, mask_decoder):
            start_as_keras(part)

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        return self.segment(self.encode_image(image), tokens)

    def encode_image(self, image: Tensor) -> VLTFeatures:
        f_v2, f_v3, f_v4, _ = self.backbone(image)
        v2, v3, v4 = self.laterals(f_v2, f_v3, f_v4)
        v = self.query_generation.look(self.pyramid(v2, v3, up(v4)))  # MMNet's text-free map
        v2, v3, v4 = self.neck.laterals(f_v2, f_v3, f_v4)
        return VLTFeatures(v2, v3, v4, v)

    def segment(self, features: VLTFeatures, tokens: Tensor) -> Tensor:
        f_t, f_tg, is_pad = self.text_encoder(tokens)
        f_vt = self.neck(features.v2, features.v3, features.v4, f_tg)  # (B, N, d)
        f_q = self.query_generation(features.v, f_t, is_pad)  # (B, N_q, d)
        response = self.query_balance(self.transformer(f_vt, f_q), f_q)  # (B, N_q, d)
        y: Tensor = self.mask_decoder(response)  # (B, 4 H3, 4 W3)
        return y


def start_as_keras(module: nn.Module) -> None:
    """Draw weights as Keras does by default: Glorot uniform, biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def build_vlt(
    clip: open_clip.CLIP,
    *,
    image_size: int,
    width: int,
    channels: Sequence[int],
    num_queries: int,
    heads: int,
    dropout: float,
    vector_norm: Literal["none", "global", "all"],
) -> VLT:
    """Build VLT's head on CLIP's towers."""
    backbone = make_backbone(clip, image_size=image_size, channels=channels)
    leave_out(backbone, "m_g")
    text_encoder = TextEncoder(clip)
    grid = image_size // 16
    return VLT(
        backbone=backbone,
        text_encoder=text_encoder,
        neck=FusionNeck(
            channels=channels,
            global_width=text_encoder.global_width,
            width=width,
            grid=grid,
            norm=vector_norm != "none",
        ),
        laterals=Laterals(channels=channels, width=width),
        pyramid=Pyramid(width=width, grid=grid),
        query_generation=QueryGeneration(
            token_width=text_encoder.token_width,
            width=width,
            num_queries=num_queries,
            heads=heads,
            grid=grid,
            max_length=len(text_encoder.positional_embedding),
        ),
        transformer=Transformer(
            width=width, heads=heads, dropout=dropout, num_queries=num_queries, grid=grid
        ),
        query_balance=QueryBalance(width=width),
        mask_decoder=MaskDecoder(width=width, num_queries=num_queries, grid=grid),
    )
