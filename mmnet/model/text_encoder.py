"""The Text Encoder: CLIP's, with all its tokens."""

import open_clip
import torch
from torch import Tensor, nn

# B batch, L tokens, C_t width of CLIP's text tower, C' of the space it shares with images.


class TextEncoder(nn.Module):
    """F_t, the last layer's tokens, and F_tg, the projected [EOS] among them (§3.1).

    The tower reads L tokens, not CLIP's full context: it is causal, so that what is cut off
    could not have mattered.
    """

    attn_mask: Tensor

    def __init__(self, clip: open_clip.CLIP) -> None:
        super().__init__()
        self.token_embedding = clip.token_embedding
        self.positional_embedding = clip.positional_embedding
        self.transformer = clip.transformer
        self.ln_final = clip.ln_final
        self.text_projection = clip.text_projection
        self.register_buffer("attn_mask", clip.attn_mask, persistent=False)
        self.token_width, self.global_width = clip.text_projection.shape

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        f_t = self.ln_final(x)  # (B, L, C_t)
        eos = tokens.argmax(1)  # [EOS] is the vocabulary's last entry, and comes once.
        f_tg = f_t[torch.arange(len(f_t), device=f_t.device), eos] @ self.text_projection  # (B, C')
        is_pad = torch.arange(length, device=eos.device) > eos[:, None]  # (B, L)
        return f_t, f_tg, is_pad
