"""The Vision-Language Decoder: Eqs. 11-13."""

from torch import Tensor, nn

from mmnet.model.layers import Attention, sine_positions, sine_positions_2d

# B batch, C width, N_q queries, N cells of the grid at stride 16.


class DecoderLayer(nn.Module):
    """Pixels look at each other (Eq. 11), then at the queries (Eq. 13), then through an MLP.

    Reading: positions join queries and keys, not values, in every layer; dropout acts on each
    residual branch and inside the MLP.
    """

    def __init__(
        self, *, width: int, heads: int, ffn: int, dropout: float, bias: bool = False
    ) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.ln_3 = (nn.LayerNorm(width) for _ in range(3))
        self.mhsa = Attention(width=width, heads=heads, bias=bias)
        self.mhca = Attention(width=width, heads=heads, bias=bias)
        self.mlp = nn.Sequential(
            nn.Linear(width, ffn), nn.ReLU(), nn.Dropout(dropout), nn.Linear(ffn, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, f_vt: Tensor, f_q: Tensor, vt_position: Tensor, q_position: Tensor) -> Tensor:
        x = self.ln_1(f_vt)
        q = k = x + vt_position
        f_vt = self.dropout(self.mhsa(q, k, x)) + f_vt  # (B, N, C)  Eq. 11
        q, k = self.ln_2(f_vt) + vt_position, f_q + q_position
        f_s_prime = self.dropout(self.mhca(q, k, f_q)) + f_vt  # (B, N, C)  Eq. 13
        f_s: Tensor = self.dropout(self.mlp(self.ln_3(f_s_prime))) + f_s_prime  # (B, N, C)  Eq. 13
        return f_s


class Decoder(nn.Module):
    """Carry what the queries say to the pixels they speak of: F_vt, F_q -> F_s (§3.3)."""

    vt_position: Tensor
    q_position: Tensor

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        ffn: int,
        dropout: float,
        layers: int,
        num_queries: int,
        grid: int,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(width=width, heads=heads, ffn=ffn, dropout=dropout, bias=bias)
            for _ in range(layers)
        )
        # Pre-norm leaves the last sum unnormalised.
        self.ln = nn.LayerNorm(width)
        positions = sine_positions_2d(grid, grid, width), sine_positions(num_queries, width)
        self.register_buffer("vt_position", positions[0], persistent=False)
        self.register_buffer("q_position", positions[1], persistent=False)

    def forward(self, f_vt: Tensor, f_q: Tensor) -> Tensor:
        for layer in self.layers:
            f_vt = layer(f_vt, f_q, self.vt_position, self.q_position)  # Eqs. 11-13
        f_s: Tensor = self.ln(f_vt)  # (B, N, C)
        return f_s
