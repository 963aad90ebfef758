"""CRIS on MMNet's towers: words in place of queries, one linear kernel from the sentence.

CRIS: CLIP-Driven Referring Image Segmentation (Wang et al., CVPR 2022; arXiv 2111.15174), §3.1 the
neck, §3.2 the decoder, §3.3 the projector. Sizes follow its code where the paper gives none.

The paper's widths are multiples of C = 512 (`width`): 2C, C and C/2 at strides 32, 16 and 8 of the
neck, C in the decoder, C/2 under the kernel. Other keys: image_size, decoder_layers (3 in the
paper), heads (8), ffn (2048), dropout (0.1) and, for a ViT, channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmnet.model.backbone_resnet import ResNetBackbone
from mmnet.model.heads.backbone import leave_out, make_backbone
from mmnet.model.layers import (
    ReLUConv,
    ReLULinear,
    coordinates,
    sine_positions,
    sine_positions_2d,
)
from mmnet.model.pyramid import up
from mmnet.model.text_encoder import TextEncoder

# B batch, L tokens, C width, C' width of the sentence as a whole, H3 x W3 grid at stride 16,
# H4 x W4 at stride 32, N = H3 * W3 cells. Maps are channel-first.


class CRISFeatures(NamedTuple):
    """All that depends on the image alone."""

    f_3: Tensor  # (B, C/2, H3, W3)
    f_4: Tensor  # (B, C, H3, W3)
    f_5: Tensor  # (B, 2C, H4, W4)


class Neck(nn.Module):
    """Join three stages of the image, the deepest times the sentence, at stride 16 (§3.1)."""

    coordinates: Tensor

    def __init__(
        self, *, channels: Sequence[int], global_width: int, width: int, grid: int
    ) -> None:
        super().__init__()
        c_3, c_4, c_5 = channels
        self.conv_3 = ReLUConv(c_3, width // 2, size=3)
        self.conv_4 = ReLUConv(c_4, width, size=3)
        self.conv_5 = ReLUConv(c_5, 2 * width)
        self.text = ReLULinear(global_width, 2 * width, norm=True)
        self.norm_5 = nn.BatchNorm2d(2 * width)
        self.join_4 = ReLUConv(3 * width, width)
        self.join_3 = ReLUConv(width // 2 + width, width)
        self.query_5 = ReLUConv(2 * width, width, size=3)
        self.query_4 = ReLUConv(width, width, size=3)
        self.query_3 = ReLUConv(width, width, size=3)
        self.aggregate = ReLUConv(3 * width, width)
        self.conv = nn.Sequential(
            ReLUConv(width + 2, width, size=3), ReLUConv(width, width, size=3)
        )
        self.register_buffer("coordinates", coordinates(grid, grid), persistent=False)

    def laterals(self, v_3: Tensor, v_4: Tensor, v_5: Tensor) -> CRISFeatures:
        """Return what no text enters."""
        f_3 = F.avg_pool2d(self.conv_3(v_3), 2)  # (B, C/2, H3, W3)
        return CRISFeatures(f_3, self.conv_4(v_4), self.conv_5(v_5))

    def forward(self, features: CRISFeatures, state: Tensor) -> Tensor:
        f_3, f_4, f_5 = features
        f_5 = self.norm_5(f_5 * self.text(state)[:, :, None, None]).relu()  # (B, 2C, H4, W4)
        f_4 = self.join_4(torch.cat([f_4, up(f_5)], 1))  # (B, C, H3, W3)
        f_3 = self.join_3(torch.cat([f_3, f_4], 1))  # (B, C, H3, W3)
        # All three at stride 16.
        f_q = torch.cat([self.query_3(f_3), self.query_4(f_4), up(self.query_5(f_5))], 1)
        f_q = self.aggregate(f_q)  # (B, C, H3, W3)
        at = self.coordinates.expand(len(f_q), -1, -1, -1)
        f_q = self.conv(torch.cat([f_q, at], 1))  # (B, C, H3, W3)
        out: Tensor = f_q.flatten(2).transpose(1, 2)  # (B, N, C)
        return out


class DecoderLayer(nn.Module):
    """Pixels look at each other, then at the words, then through an MLP (§3.2).

    Each branch is normalised before and, but for the MLP's, after; the MLP within.
    """

    def __init__(self, *, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.ln_3 = (nn.LayerNorm(width) for _ in range(3))
        self.after_1, self.after_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        # PyTorch's own: with its biases, dropout on the weights and initialisation.
        self.mhsa, self.mhca = (
            nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True) for _ in range(2)
        )
        self.mlp = nn.Sequential(
            nn.Linear(width, ffn),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.LayerNorm(ffn),
            nn.Linear(ffn, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, words: Tensor, is_pad: Tensor, x_position: Tensor, word_position: Tensor
    ) -> Tensor:
        v = self.ln_1(x)
        q = k = v + x_position
        attended, _ = self.mhsa(q, k, v, need_weights=False)
        x = x + self.dropout(self.after_1(attended))  # (B, N, C)
        q, k = self.ln_2(x) + x_position, words + word_position
        attended, _ = self.mhca(q, k, words, key_padding_mask=is_pad, need_weights=False)
        x = x + self.dropout(self.after_2(attended))  # (B, N, C)
        out: Tensor = x + self.dropout(self.mlp(self.ln_3(x)))  # (B, N, C)
        return out


class Decoder(nn.Module):
    """Carry the words to the pixels (§3.2). Sine positions join queries and keys, not values."""

    x_position: Tensor
    word_position: Tensor

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        ffn: int,
        dropout: float,
        layers: int,
        grid: int,
        max_length: int,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(width=width, heads=heads, ffn=ffn, dropout=dropout) for _ in range(layers)
        )
        self.ln = nn.LayerNorm(width)
        positions = sine_positions_2d(grid, grid, width), sine_positions(max_length, width)
        self.register_buffer("x_position", positions[0], persistent=False)
        self.register_buffer("word_position", positions[1], persistent=False)

    def forward(self, x: Tensor, words: Tensor, is_pad: Tensor) -> Tensor:
        word_position = self.word_position[: words.shape[1]]
        for layer in self.layers:
            x = layer(x, words, is_pad, self.x_position, word_position)  # (B, N, C)
        out: Tensor = self.ln(x)  # (B, N, C)
        return out


class Projector(nn.Module):
    """Convolve the pixels with one 3x3 kernel, linear in the sentence (§3.3)."""

    def __init__(self, *, global_width: int, width: int) -> None:
        super().__init__()
        self.conv_1 = ReLUConv(width, width, size=3)
        self.conv_2 = ReLUConv(width, width // 2, size=3)
        self.conv_3 = nn.Conv2d(width // 2, width // 2, 1)
        self.kernel = nn.Linear(global_width, 9 * (width // 2) + 1)

    def forward(self, f_q: Tensor, state: Tensor) -> Tensor:
        x = self.conv_2(up(self.conv_1(up(f_q))))
        x = self.conv_3(x)  # (B, C/2, 4 H3, 4 W3)
        kernel = self.kernel(state)  # (B, 9 C/2 + 1)
        # The 3x3 as nine 1x1s, shifted and summed, zeros outside: ten times as fast as a
        # convolution by groups. Folding adds tap k of cell p to cell p - shift(k), where a
        # convolution reads p + shift(k).
        taps = kernel[:, :-1].unflatten(1, (-1, 9)).flip(2).transpose(1, 2)  # (B, 9, C/2)
        tap_maps = taps @ x.flatten(2)  # (B, 9, 4 H3 * 4 W3)
        y = F.fold(tap_maps, x.shape[2:], 3, padding=1).squeeze(1)
        out: Tensor = y + kernel[:, -1, None, None]  # (B, 4 H3, 4 W3)
        return out


class CRIS(nn.Module):
    """An image and a sentence in, the mask of what the sentence refers to out."""

    def __init__(
        self,
        *,
        backbone: nn.Module,
        text_encoder: TextEncoder,
        neck: Neck,
        decoder: Decoder,
        projector: Projector,
        width: int,
        grid: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.text_encoder = text_encoder
        token_width = text_encoder.token_width
        # CRIS's towers have words of C channels. Reading: others are projected to C.
        self.words = nn.Identity() if token_width == width else nn.Linear(token_width, width)
        self.neck = neck
        self.decoder = decoder
        self.projector = projector
        self.grid = grid

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        return self.segment(self.encode_image(image), tokens)

    def encode_image(self, image: Tensor) -> CRISFeatures:
        v_3, v_4, v_5, _ = self.backbone(image)
        return self.neck.laterals(v_3, v_4, v_5)

    def segment(self, features: CRISFeatures, tokens: Tensor) -> Tensor:
        words, state, _ = self.text_encoder(tokens)  # (B, L, C_t), (B, C')
        f_q = self.neck(features, state)  # (B, N, C)
        # As CRIS: 0, which pads, is no word.
        f_q = self.decoder(f_q, self.words(words), tokens == 0)  # (B, N, C)
        f_q = f_q.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # (B, C, H3, W3)
        y: Tensor = self.projector(f_q, state)  # (B, 4 H3, 4 W3)
        return y


def build_cris(
    clip: open_clip.CLIP,
    *,
    image_size: int,
    width: int,
    channels: Sequence[int],
    decoder_layers: int,
    heads: int,
    ffn: int,
    dropout: float,
) -> CRIS:
    """Build CRIS on CLIP's towers: on x2, x3, z of a ResNet as they are, or on a ViT's three maps.

    `channels` are those of a ViT's maps. The sentence passes BatchNorm: train on 2 items or more.
    """
    text_encoder = TextEncoder(clip)
    backbone = make_backbone(clip, image_size=image_size, channels=channels)
    leave_out(backbone, "m_g")
    if isinstance(backbone, ResNetBackbone):
        channels = [m.in_channels for m in (backbone.m_2, backbone.m_3, backbone.m_4)]
        leave_out(backbone, "m_2", "m_3", "m_4")
    grid = image_size // 16
    return CRIS(
        backbone=backbone,
        text_encoder=text_encoder,
        neck=Neck(
            channels=channels, global_width=text_encoder.global_width, width=width, grid=grid
        ),
        decoder=Decoder(
            width=width,
            heads=heads,
            ffn=ffn,
            dropout=dropout,
            layers=decoder_layers,
            grid=grid,
            max_length=len(text_encoder.positional_embedding),
        ),
        projector=Projector(global_width=text_encoder.global_width, width=width),
        width=width,
        grid=grid,
    )
