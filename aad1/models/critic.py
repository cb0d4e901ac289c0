"""The critic of stage III: a Wan backbone, and query heads that read it into one realism logit.

The paper's critic sees the whole clip in both directions and gives ONE logit (visibility ``full``,
granularity ``clip``). Its ablations are the same class: a ``block_causal`` backbone, or one logit a
latent frame, where a frame's query attends to that frame's tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.context import Visibility
from aad1.models.layout import WHOLE, Layout

Granularity = Literal["clip", "frame"]


class QueryHead(nn.Module):
    """Learnable query tokens that attend to a block's output (cross-attention).

    Input [batch, frames, tokens, dim]; output [batch, queries x dim] for ``clip`` granularity, or
    [batch, frames, queries x dim] for ``frame``. Where a ``layout`` spreads the tokens, the input is of own tokens
    of ``tokens`` a frame; own heads of the query read them all, and the output is whole.
    """

    def __init__(self, dim: int, heads: int, queries: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(queries, dim) / dim**0.5)
        self.norm = nn.LayerNorm(dim)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(
        self, hidden: Tensor, granularity: Granularity, tokens: int | None = None, layout: Layout = WHOLE
    ) -> Tensor:
        """Read the hidden states of a clip; ``tokens`` a frame, by default those of ``hidden``."""
        normed = self.norm(hidden)
        given = (self.to_q(self.query)[None], self.to_k(normed), self.to_v(normed))
        query, keys, values = (x.unflatten(-1, (self.heads, -1)) for x in given)
        seen = layout.to_heads(keys, values, tokens=tokens or hidden.shape[2])
        keys, values = (x.flatten(1, 2) if granularity == "clip" else x.flatten(0, 1) for x in seen)
        query = layout.split(query).expand(len(keys), -1, -1, -1)
        q, k, v = (x.transpose(1, 2) for x in (query, keys, values))
        read = layout.join(F.scaled_dot_product_attention(q, k, v).transpose(1, 2), self.heads)
        read = self.to_out(read.flatten(2)).flatten(1)
        return read if granularity == "clip" else read.unflatten(0, hidden.shape[:2])


class Critic(nn.Module):
    """Backbone + one query head after each of ``layers`` (0-based) -> concatenate -> LayerNorm -> Linear.

    The backbone starts from pre-trained weights and learns too; ``D is given tau and the text``.
    Raises IndexError for a layer that the backbone does not have.
    """

    def __init__(
        self,
        backbone: CausalWanTransformer3DModel,
        layers: Sequence[int],
        *,
        visibility: Visibility = "full",
        granularity: Granularity = "clip",
        queries: int = 1,
    ) -> None:
        super().__init__()
        if not layers or max(layers) >= backbone.config.num_layers or min(layers) < 0:
            raise IndexError(
                f"critic layers {list(layers)}: the backbone has blocks 0 to {backbone.config.num_layers - 1}"
            )
        heads, dim = backbone.config.num_attention_heads, backbone.config.attention_head_dim
        self.backbone, self.layers = backbone, tuple(layers)
        self.visibility: Visibility = visibility
        self.granularity: Granularity = granularity
        self.heads = nn.ModuleList(QueryHead(heads * dim, heads, queries) for _ in layers)
        width = heads * dim * queries * len(layers)
        self.norm, self.logit = nn.LayerNorm(width), nn.Linear(width, 1)

    def forward(self, latents: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """Logits of noised clips, [batch] (or [batch, frames] for ``frame`` granularity)."""
        hidden = self.backbone.features(latents, t, text, self.layers, self.visibility)
        precise = self.logit.weight.dtype  # of the heads: a frozen backbone may be of half precision
        where = self.backbone.tokens_of(latents.shape), self.backbone.layout
        reads = [head(h.to(precise), self.granularity, *where) for head, h in zip(self.heads, hidden, strict=True)]
        return self.logit(self.norm(torch.cat(reads, dim=-1))).squeeze(-1)
