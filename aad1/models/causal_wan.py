"""The Wan 2.1 transformer with per-frame noise levels, visible asymmetry and a streaming context.

Parameters, names and config are those of diffusers' ``WanTransformer3DModel``, so any Wan T2V folder
loads unchanged and what is saved here loads there; only the forward is ours. The asymmetry of AAD-1
is one argument: ``block_causal`` for the generator, ``full`` for teacher, fake score and critic.

Axes: latents [batch, channels, frames, height, width]; t [batch, frames] in [0, 1]; text [batch,
length, text_dim]; hidden states [batch, frames, tokens, dim] with the tokens of one latent frame
together, so that a frame's modulation is broadcast instead of copied to each token. Where the model's ``layout``
spreads them over processes, hidden states are of own tokens, keys and values of own heads; latents are whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor

from aad1.flow import TIMESTEP_SCALE
from aad1.models.context import (
    Context,
    Span,
    View,
    Visibility,
    advance_views,
    block_causal_views,
    full_view,
    next_chunk_view,
    select,
)
from aad1.models.layout import WHOLE, Layout


class Step(NamedTuple):
    """What every block of one forward needs."""

    hidden: Tensor
    modulation: Tensor  # [batch, frames, 6, dim]
    temb: Tensor  # [batch, frames, dim]
    text: Tensor  # [batch, length, dim]
    views: list[View]
    rotation: Tensor  # complex, [positions, tokens, 1, head_dim / 2]
    layout: Layout


class BlockOutput(NamedTuple):
    """Hidden states after a block, and the un-rotated keys and values (own heads) it made of its own frames."""

    hidden: Tensor
    keys: Tensor
    values: Tensor


class CausalWanTransformer3DModel(WanTransformer3DModel):
    """Wan T2V with block-causal attention over sink + window.

    num_frames_per_block: latent frames a chunk; sink_size: first latent frames always seen;
    local_attn_size: latent frames of the window, own chunk included (-1 = all). What a student was
    distilled for travels with it: passes, the noise levels of a chunk's passes; size, the picture's
    (height, width) in pixels, None where it is not known.
    """

    layout: Layout = WHOLE  # where the sequence lies; set from outside to spread it over processes

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, ...] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        num_frames_per_block: int = 4,
        local_attn_size: int = 9,
        sink_size: int = 1,
        passes: Sequence[float] = (1.0,),
        size: Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            patch_size,
            num_attention_heads,
            attention_head_dim,
            in_channels,
            out_channels,
            text_dim,
            freq_dim,
            ffn_dim,
            num_layers,
            cross_attn_norm,
            qk_norm,
            eps,
            image_dim,
            added_kv_proj_dim,
            rope_max_seq_len,
            pos_embed_seq_len,
        )
        for block in self.blocks:
            block.__class__ = CausalWanBlock  # the same parameters; only what calling it computes is ours

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Run each block through torch.compile: one graph for all of them, and for each length of the context."""
        compiled = torch.compile(run_block, backend=backend)
        for block in self.blocks:
            block.compute = compiled

    @property
    def span(self) -> Span:
        """How far the generator sees."""
        return Span(self.config.num_frames_per_block, self.config.sink_size, self.config.local_attn_size)

    def forward(
        self,
        latents: Tensor,
        t: Tensor,
        text: Tensor,
        *,
        visibility: Visibility = "full",
        context: Context | None = None,
    ) -> Tensor:
        """Predict the velocity, shaped like ``latents``.

        With a ``context`` the latents are the next chunk: they see the context and each other. The
        context is read, never written.
        """
        step = self._embed(latents, t, text, self._views(latents, visibility, context))
        hidden = step.hidden
        for output in self._blocks(step, context):
            hidden = output.hidden
        return self._unembed(hidden, step.temb, latents.shape)

    @torch.no_grad()
    def extend(self, context: Context, latents: Tensor, text: Tensor) -> Context:
        """Write a finished chunk into the context: a pass at t = 0, without gradient (Eq. 1's clean past)."""
        t = latents.new_zeros(latents.shape[0], latents.shape[2])
        step = self._embed(latents, t, text, next_chunk_view(context.frames, latents.shape[2]))
        outputs = list(self._blocks(step, context))
        return context.extended([o.keys for o in outputs], [o.values for o in outputs], self.span)

    @torch.no_grad()
    def advance(
        self, context: Context, finished: Tensor, latents: Tensor, t: Tensor, text: Tensor
    ) -> tuple[Tensor, Context]:
        """``extend`` by the finished chunk and ``forward`` of the next one over it, in one pass over both.

        The finished frames stand at t = 0 and do not see the next chunk, which sees them as the context it will
        have; so velocity (shaped like ``latents``) and context are those of the two passes, to rounding. Without
        gradient: a graded chunk must not reach the frames it looks back at.
        """
        done, coming = finished.shape[2], latents.shape[2]
        views = advance_views(context.frames, done, coming, self.span)
        clean = t.new_zeros(t.shape[0], done)
        step = self._embed(torch.cat([finished, latents], dim=2), torch.cat([clean, t], dim=1), text, views)
        outputs = list(self._blocks(step, context))
        velocity = self._unembed(outputs[-1].hidden[:, done:], step.temb[:, done:], latents.shape)
        keys, values = ([own[:, :done] for own in x] for x in zip(*((o.keys, o.values) for o in outputs), strict=True))
        return velocity, context.extended(keys, values, self.span)

    def features(
        self, latents: Tensor, t: Tensor, text: Tensor, layers: Sequence[int], visibility: Visibility
    ) -> list[Tensor]:
        """Hidden states after the given blocks, each [batch, frames, own tokens, dim] (what a critic's heads read)."""
        step = self._embed(latents, t, text, self._views(latents, visibility, None))
        outputs = [o.hidden for _, o in zip(range(max(layers) + 1), self._blocks(step, None), strict=False)]
        return [outputs[layer] for layer in layers]

    def tokens_of(self, shape: Sequence[int]) -> int:
        """How many tokens one latent frame of latents of this shape [batch, channels, frames, height, width] has."""
        _, p_h, p_w = self.config.patch_size
        return (shape[3] // p_h) * (shape[4] // p_w)

    def _embed(self, latents: Tensor, t: Tensor, text: Tensor, views: list[View]) -> Step:
        hidden = self.patch_embedding(latents.to(self.patch_embedding.weight.dtype))
        grid = hidden.shape[3:]
        hidden = self.layout.split(hidden.flatten(3).permute(0, 2, 3, 1))  # [batch, frames, own tokens, dim]
        temb, modulation, text, _ = self.condition_embedder(
            (t * TIMESTEP_SCALE).flatten(), text.to(hidden.dtype), None, timestep_seq_len=hidden.shape[1]
        )
        rotation = self._rotation(max(len(view.keys) for view in views), *grid)
        modulation = modulation.unflatten(2, (6, -1)).float()
        return Step(hidden.contiguous(), modulation, temb, text, views, rotation, self.layout)

    def _views(self, latents: Tensor, visibility: Visibility, context: Context | None) -> list[View]:
        frames = latents.shape[2] // self.config.patch_size[0]
        if context is not None:
            return next_chunk_view(context.frames, frames)
        return full_view(frames) if visibility == "full" else block_causal_views(frames, self.span)

    def _blocks(self, step: Step, context: Context | None) -> Iterator[BlockOutput]:
        hidden = step.hidden
        for index, block in enumerate(self.blocks):
            past = context.layer(index) if context is not None else None
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                output = self._gradient_checkpointing_func(block, hidden, step, past)
            else:
                output = block(hidden, step, past)
            hidden = output.hidden
            yield output

    def _rotation(self, frames: int, height: int, width: int) -> Tensor:
        """Rotary cos + i sin of ``frames`` latent frames of height x width tokens."""
        angles = torch.complex(self.rope.freqs_cos[:, ::2].float(), self.rope.freqs_sin[:, ::2].float())
        time, rows, columns = angles.split([d // 2 for d in self._rope_dims], dim=1)
        grid = (frames, height, width)
        parts = (time[:frames, None, None], rows[None, :height, None], columns[None, None, :width])
        return torch.cat([part.expand(*grid, -1) for part in parts], dim=-1).reshape(frames, height * width, 1, -1)

    @property
    def _rope_dims(self) -> tuple[int, int, int]:
        return self.rope.t_dim, self.rope.h_dim, self.rope.w_dim

    def _unembed(self, hidden: Tensor, temb: Tensor, shape: Sequence[int]) -> Tensor:
        """Output norm, projection, and patches back to [batch, channels, frames, height, width]."""
        shift, scale = (self.scale_shift_table + temb.float().unsqueeze(2)).unsqueeze(3).unbind(2)
        hidden = self.proj_out(modulated(self.norm_out(hidden.float()), shift, scale).type_as(hidden))
        hidden = self.layout.join(hidden, self.tokens_of(shape))
        (p_t, p_h, p_w), (batch, _, frames, height, width) = self.config.patch_size, shape
        grid = (frames // p_t, height // p_h, width // p_w)
        patches = hidden.reshape(batch, *grid, p_t, p_h, p_w, -1)
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(batch, -1, frames, height, width)


class CausalWanBlock(WanTransformerBlock):
    """A Wan block that is called with what one forward needs; whatever is hooked to a block's call, works."""

    compute: Any = staticmethod(lambda *given: run_block(*given))  # or its compiled form

    def forward(self, hidden: Tensor, step: Step, past: tuple[Tensor, Tensor] | None) -> BlockOutput:  # type: ignore[override]
        """``hidden`` after the block, and its keys and values."""
        return self.compute(self, hidden, step, past)


def run_block(block: Any, hidden: Tensor, step: Step, past: tuple[Tensor, Tensor] | None) -> BlockOutput:
    """One Wan block: modulated self-attention, cross-attention to the text, modulated feed-forward."""
    table = (block.scale_shift_table.float() + step.modulation).unsqueeze(3)  # [batch, frames, 6, 1, dim]
    shift, scale, gate, ff_shift, ff_scale, ff_gate = table.unbind(2)
    normed = modulated(block.norm1(hidden.float()), shift, scale).type_as(hidden)
    attended, keys, values = self_attention(block.attn1, normed, step, past)
    hidden = torch.addcmul(hidden.float(), attended.float(), gate).type_as(hidden)
    normed = block.norm2(hidden.float()).type_as(hidden)
    hidden = hidden + cross_attention(block.attn2, normed, step.text)
    normed = modulated(block.norm3(hidden.float()), ff_shift, ff_scale).type_as(hidden)
    hidden = torch.addcmul(hidden.float(), block.ffn(normed).float(), ff_gate).type_as(hidden)
    return BlockOutput(hidden, keys, values)


def modulated(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(1 + scale) x + shift, broadcast over the tokens of a frame."""
    return torch.addcmul(shift, normed, 1 + scale)


def self_attention(
    attn: Any, hidden: Tensor, step: Step, past: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of frames to frames by the step's views; returns the output and its un-rotated keys and values.

    Norms are across all heads, so they come before the exchange of tokens for heads.
    """
    heads = attn.heads
    query = attn.norm_q(attn.to_q(hidden)).unflatten(-1, (heads, -1))
    own_keys = attn.norm_k(attn.to_k(hidden)).unflatten(-1, (heads, -1))
    own_values = attn.to_v(hidden).unflatten(-1, (heads, -1))
    query, own_keys, own_values = step.layout.to_heads(query, own_keys, own_values, tokens=step.rotation.shape[1])
    keys, values = own_keys, own_values
    if past is not None:
        keys, values = torch.cat([past[0], own_keys], dim=1), torch.cat([past[1], own_values], dim=1)
    parts = [_attend(query, keys, values, view, step.rotation) for view in step.views]
    output = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return attn.to_out[0](step.layout.to_tokens(output).flatten(3)), own_keys, own_values


def _attend(query: Tensor, keys: Tensor, values: Tensor, view: View, rotation: Tensor) -> Tensor:
    """One view: positions count the keys from 0, the queries stand at their end; [batch, frames, tokens, heads, d]."""
    q, k, v = query[:, view.queries], select(keys, view.keys), select(values, view.keys)
    q = rotate(q, rotation, k.shape[1] - q.shape[1])
    k = rotate(k, rotation, 0)
    q_tokens, k_tokens, v_tokens = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q_tokens, k_tokens, v_tokens)
    return out.transpose(1, 2).unflatten(1, q.shape[1:3])


def rotate(x: Tensor, rotation: Tensor, start: int) -> Tensor:
    """Rotary position of ``x`` [batch, frames, tokens, heads, head_dim] whose first frame stands at ``start``."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # one multiplication, read and written once
    return torch.view_as_real(pairs * rotation[start : start + x.shape[1]]).flatten(-2).type_as(x)


def cross_attention(attn: Any, hidden: Tensor, text: Tensor) -> Tensor:
    """Attention of every token to the whole text."""
    query = attn.norm_q(attn.to_q(hidden)).flatten(1, 2)
    keys, values = attn.norm_k(attn.to_k(text)), attn.to_v(text)
    q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, keys, values))
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return attn.to_out[0](out).reshape_as(hidden)
