"""The transformer: parity with diffusers, who sees whom, and the stream against the pass over a whole clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from lively import CHANNELS, SIZE, clip_of, lively, normal, text_of
from torch import Tensor

from aad1.flow import TIMESTEP_SCALE
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import save_transformer
from aad1.models.context import Context, Span, chunk_slices

SPANS = {"sink 1, window 9": (4, 1, 9), "sink 2, window 6": (4, 2, 6), "no sink": (2, 0, 5), "all": (4, 1, -1)}
PAPER = Span(4, 1, 9)
every_span = pytest.mark.parametrize("span", [Span(*s) for s in SPANS.values()], ids=list(SPANS))


def build(span: Span = PAPER, **config: Any) -> CausalWanTransformer3DModel:
    return lively(
        num_frames_per_block=span.chunk, sink_size=span.sink, local_attn_size=span.window, **config
    ).requires_grad_(False)


def visible(frame: int, frames: int, span: Span) -> list[int]:
    """The rule, frame by frame: own chunk, sink, and the window counted back from the chunk's end."""
    number = 0 if frame == 0 else (frame - 1) // span.chunk + 1
    start = 0 if number == 0 else 1 + (number - 1) * span.chunk
    end = 1 if number == 0 else start + span.chunk
    earliest = 0 if span.window < 0 else end - span.window
    return [j for j in range(min(end, frames)) if j >= start or j < span.sink or j >= earliest]


def levels_of(frames: int, batch: int = 1) -> Tensor:
    """A different level for every frame."""
    return torch.linspace(0.95, 0.05, batch * frames).reshape(batch, frames)


# --- parity with diffusers -------------------------------------------------------------------


@pytest.mark.parametrize("patch", [(1, 2, 2), (1, 1, 1)])
def test_full_visibility_is_diffusers_forward(patch: tuple[int, int, int]) -> None:
    stock = lively(WanTransformer3DModel, patch_size=patch)
    ours = lively(patch_size=patch)
    latents, text, t = normal(2, CHANNELS, 5, 4, 6), text_of(2), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        expected = stock(latents, t * TIMESTEP_SCALE, text).sample
        torch.testing.assert_close(ours(latents, t[:, None].expand(2, 5), text), expected, atol=2e-5, rtol=1e-4)


def test_a_level_per_frame_is_diffusers_level_per_token() -> None:
    stock, ours = lively(WanTransformer3DModel), lively()
    latents, text, t = clip_of(5, batch=2), text_of(2), levels_of(5, batch=2)
    tokens = (SIZE // 2) ** 2
    with torch.no_grad():
        expected = stock(latents, (t * TIMESTEP_SCALE).repeat_interleave(tokens, dim=1), text).sample
        found = ours(latents, t, text)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert (ours(latents, t.flip(1), text) - expected).abs().max() > 0.1


def test_folders_pass_between_diffusers_and_us(tmp_path: Path) -> None:
    stock, latents, text = lively(WanTransformer3DModel), clip_of(3), text_of()
    stock.save_pretrained(tmp_path / "stock")
    ours = CausalWanTransformer3DModel.from_pretrained(tmp_path / "stock")
    assert (ours.span, ours.config.num_layers) == (Span(4, 1, 9), 2)
    save_transformer(ours, tmp_path / "ours", as_stock=True)
    back = WanTransformer3DModel.from_pretrained(tmp_path / "ours")
    assert type(back) is WanTransformer3DModel
    saved, original = back.state_dict(), stock.state_dict()
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name], original[name]) for name in original)
    with torch.no_grad():
        expected = stock(latents, torch.tensor([500.0]), text).sample
        torch.testing.assert_close(ours(latents, torch.full((1, 3), 0.5), text), expected, atol=2e-5, rtol=1e-4)


def test_the_span_is_kept_in_the_folder(tmp_path: Path) -> None:
    save_transformer(build(Span(2, 3, 7)), tmp_path / "student")
    assert CausalWanTransformer3DModel.from_pretrained(tmp_path / "student").span == Span(2, 3, 7)


# --- who sees whom ---------------------------------------------------------------------------


class DenseRelativeAttention:
    """A slow processor for diffusers' own blocks: one query frame at a time, in float64, positions from the rule."""

    def __init__(self, span: Span, frames: int, height: int, width: int) -> None:
        self.span, self.frames, self.height, self.width = span, frames, height, width

    def __call__(self, attn: Any, hidden: Tensor, *unused: Any, **also_unused: Any) -> Tensor:
        q, k, v = attn.norm_q(attn.to_q(hidden)), attn.norm_k(attn.to_k(hidden)), attn.to_v(hidden)
        q, k, v = (x.double().reshape(1, self.frames, self.height * self.width, attn.heads, -1)[0] for x in (q, k, v))
        out = torch.zeros_like(q)
        for frame in range(self.frames):
            seen = visible(frame, self.frames, self.span)
            query = self.turned(q[frame], seen.index(frame))
            keys = torch.cat([self.turned(k[j], rank) for rank, j in enumerate(seen)])
            values = torch.cat([v[j] for j in seen])
            for head in range(attn.heads):
                scores = query[:, head] @ keys[:, head].T / q.shape[-1] ** 0.5
                out[frame, :, head] = scores.softmax(-1) @ values[:, head]
        return attn.to_out[0](out.reshape(1, self.frames * self.height * self.width, -1).float())

    def turned(self, x: Tensor, position: int) -> Tensor:
        """[tokens, heads, dim] as complex numbers, turned by time, row and column."""
        side = 2 * (x.shape[-1] // 6)
        parts = (x.shape[-1] - 2 * side, side, side)
        angles = []
        for token in range(self.height * self.width):
            where = (position, token // self.width, token % self.width)
            angles.append([w * 10000 ** (-2 * i / d) for w, d in zip(where, parts, strict=True) for i in range(d // 2)])
        turn = torch.polar(torch.ones(1, dtype=torch.float64), torch.tensor(angles, dtype=torch.float64))
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn[:, None]).flatten(
            -2
        )


@every_span
@pytest.mark.parametrize("frames", [1 + 3 * 4, 1 + 4 * 4 + 2], ids=["whole chunks", "a short last chunk"])
def test_block_causal_is_dense_attention_by_the_rule(span: Span, frames: int) -> None:
    """Diffusers' blocks with a slow attention of our rule, against our forward: window, sink, positions, levels."""
    ours, stock = build(span), lively(WanTransformer3DModel)
    latents, text, t, side = clip_of(frames), text_of(), levels_of(frames), SIZE // 2
    for block in stock.blocks:
        block.attn1.processor = DenseRelativeAttention(span, frames, side, side)
    with torch.no_grad():
        expected = stock(latents, (t * TIMESTEP_SCALE).repeat_interleave(side * side, dim=1), text).sample
        found = ours(latents, t, text, visibility="block_causal")
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)


@every_span
def test_no_chunk_sees_later_chunks(span: Span) -> None:
    """Any depth: the gradient of a chunk's output with respect to later latents is exactly zero."""
    model, frames = build(span), 13
    for own in chunk_slices(frames, span.chunk):
        latents = clip_of(frames).requires_grad_()
        model(latents, levels_of(frames), text_of(), visibility="block_causal")[:, :, own].square().sum().backward()
        reached = touched(latents)
        assert all(reached[own.start : own.stop])
        assert not any(reached[own.stop :])


@every_span
def test_one_layer_sees_exactly_sink_and_window(span: Span) -> None:
    model, frames = build(span, num_layers=1), 1 + 4 * 4
    for own in chunk_slices(frames, span.chunk):
        latents = clip_of(frames).requires_grad_()
        model(latents, levels_of(frames), text_of(), visibility="block_causal")[:, :, own].square().sum().backward()
        assert [j for j, hit in enumerate(touched(latents)) if hit] == visible(own.start, frames, span)


def test_full_visibility_reaches_every_frame() -> None:
    latents = clip_of(9).requires_grad_()
    build()(latents, levels_of(9), text_of())[:, :, 0].square().sum().backward()
    assert all(touched(latents))


def touched(latents: Tensor) -> list[bool]:
    """Which frames have any gradient."""
    assert latents.grad is not None
    return (latents.grad != 0).any(dim=4).any(dim=3).any(dim=1)[0].tolist()


# --- the stream ------------------------------------------------------------------------------


@every_span
@pytest.mark.parametrize("chunks", [5, 12])
def test_the_stream_is_the_pass_over_the_whole_clip(span: Span, chunks: int) -> None:
    """A clean past at t = 0 and the newest chunk as noise at t = 1, chunk after chunk."""
    model, text = build(span), text_of()
    frames = 1 + chunks * span.chunk
    clean, noise = clip_of(frames), clip_of(frames, seed=7)
    context = Context()
    with torch.no_grad():
        whole = model(clean, torch.zeros(1, frames), text, visibility="block_causal")
        for own in chunk_slices(frames, span.chunk):
            still, ones = torch.zeros(1, own.stop - own.start), torch.ones(1, own.stop - own.start)
            step = model(clean[:, :, own], still, text, visibility="block_causal", context=context)
            torch.testing.assert_close(step, whole[:, :, own], atol=5e-5, rtol=1e-4)
            if own.start in (0, 1, frames - span.chunk):
                latents = torch.cat([clean[:, :, : own.start], noise[:, :, own]], dim=2)
                t = torch.cat([torch.zeros(1, own.start), ones], dim=1)
                expected = model(latents, t, text, visibility="block_causal")[:, :, own]
                found = model(noise[:, :, own], ones, text, visibility="block_causal", context=context)
                torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)
            context = model.extend(context, clean[:, :, own], text)


@pytest.mark.parametrize("span", [Span(4, 1, 9), Span(4, 2, 6), Span(4, 1, 4), Span(4, 0, 4)], ids=str)
def test_sixty_chunks_need_no_position_beyond_sink_and_window(span: Span) -> None:
    """The rotary table has exactly sink + window rows: a position that grew would fall off its end."""
    model, text = build(span, rope_max_seq_len=span.sink + span.window), text_of()
    context = model.extend(Context(), clip_of(1), text)
    ones = torch.ones(1, span.chunk)
    with torch.no_grad():
        for number in range(60):
            chunk = clip_of(span.chunk, seed=number)
            assert torch.isfinite(model(chunk, ones, text, visibility="block_causal", context=context)).all()
            context = model.extend(context, chunk, text)
            assert context.frames <= span.sink + span.window - span.chunk
    assert context.frames == span.sink + span.window - span.chunk


def test_a_chunk_over_an_empty_context_is_one_chunk() -> None:
    """With sink 0 and a window of one chunk nothing is kept; the next chunk is still whole, not image + rest."""
    span = Span(4, 0, 4)
    model, text, chunk, t = build(span), text_of(), clip_of(4), torch.ones(1, 4)
    context = model.extend(model.extend(Context(), clip_of(1), text), clip_of(4, seed=5), text)
    assert context.frames == 0
    with torch.no_grad():
        found = model(chunk, t, text, visibility="block_causal", context=context)
        torch.testing.assert_close(found, model(chunk, t, text, visibility="full"))


def test_the_stream_answers_alike_wherever_it_stands() -> None:
    """The same kept frames give the same answer after 3 chunks and after 30."""
    span = Span(4, 1, 9)
    model, text = build(span, num_layers=1), text_of()
    answers = []
    for chunks in (3, 30):
        context = model.extend(Context(), clip_of(1), text)
        for number in range(chunks - 2, -1, -1):
            context = model.extend(context, clip_of(4, seed=100 + number), text)
        with torch.no_grad():
            answers.append(model(clip_of(4), torch.ones(1, 4), text, visibility="block_causal", context=context))
    torch.testing.assert_close(*answers)


def test_the_context_keeps_the_sink_and_the_latest_frames() -> None:
    span = Span(2, 2, 5)
    model, text, clean = build(span, num_layers=1), text_of(), clip_of(13)
    context = Context()
    for own in chunk_slices(13, 2):
        context = model.extend(context, clean[:, :, own], text)
    with torch.no_grad():  # one layer: a frame's keys depend on that frame alone
        step = model._embed(clean, torch.zeros(1, 13), text, model._views(clean, "block_causal", None))
        (output,) = model._blocks(step, None)
    whole = Context((output.keys,), (output.values,))
    kept = [0, 1, 10, 11, 12]
    torch.testing.assert_close(context.keys[0], whole.keys[0][:, kept])
    torch.testing.assert_close(context.values[0], whole.values[0][:, kept])


def test_a_graded_pass_reads_the_context_and_never_writes_it() -> None:
    model, text = build().requires_grad_(True), text_of().requires_grad_()
    first = model.extend(Context(), clip_of(1).requires_grad_(), text)
    context = model.extend(first, clip_of(4), text)
    tensors = [*context.keys, *context.values]
    before, versions = [x.clone() for x in tensors], [x._version for x in tensors]
    chunk = clip_of(4, seed=9).requires_grad_()
    out = model(chunk, torch.ones(1, 4), text, visibility="block_causal", context=context)
    longer = model.extend(context, out.detach(), text)
    out.square().mean().backward()
    assert chunk.grad is not None
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))
    assert [x._version for x in tensors] == versions
    assert not any(x.requires_grad for x in [*tensors, *longer.keys, *longer.values])
    assert (first.frames, context.frames, longer.frames) == (1, 5, 6)


@pytest.mark.parametrize("span", [Span(4, 1, 9), Span(4, 2, 6), Span(4, 1, 4), Span(4, 0, 4), Span(3, 1, -1)], ids=str)
def test_one_pass_that_advances_is_the_pass_that_extends_and_the_pass_that_denoises(span: Span) -> None:
    """Ten chunks, well past the window: the same velocity and the same context, from one forward."""
    model, text, context = build(span), text_of(), Context()
    finished = clip_of(1)
    with torch.no_grad():
        for number in range(10):
            chunk = clip_of(span.chunk, seed=40 + number)
            t = torch.full((1, span.chunk), 1.0 if number % 2 else 0.8)
            longer = model.extend(context, finished, text)
            expected = model(chunk, t, text, visibility="block_causal", context=longer)
            found, context = model.advance(context, finished, chunk, t, text)
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
            for ours, theirs in zip((*context.keys, *context.values), (*longer.keys, *longer.values), strict=True):
                torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
            finished = clip_of(span.chunk, seed=80 + number)


def test_a_finished_chunk_does_not_see_the_noise_that_shares_its_pass() -> None:
    model, text, t = build(), text_of(), torch.ones(1, 4)
    context = model.extend(Context(), clip_of(1), text)
    (v, one), (w, other) = (model.advance(context, clip_of(4), clip_of(4, seed=s), t, text) for s in (5, 6))
    assert (v - w).abs().max() > 0.1
    assert all(torch.equal(a, b) for a, b in zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True))
    assert not v.requires_grad


# --- checkpointing and the critic's features -------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_gradient_checkpointing_changes_memory_only(streaming: bool) -> None:
    found = []
    for checkpointing in (False, True):
        model = build().requires_grad_(True)
        if checkpointing:
            model.enable_gradient_checkpointing()
        context = model.extend(Context(), clip_of(1), text_of()) if streaming else None
        chunk = clip_of(4, seed=9).requires_grad_()
        out = model(chunk, levels_of(4), text_of(), visibility="block_causal", context=context)
        out.square().mean().backward()
        found.append([out.detach(), chunk.grad, *[p.grad for p in model.parameters()]])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_features_are_the_hidden_states_after_the_blocks_asked_for() -> None:
    model, latents, t, text = build(num_layers=3), clip_of(5), levels_of(5), text_of()
    entered: list[Tensor] = []
    readers = [model.blocks[1].norm1, model.norm_out]  # what they read is what blocks 0 and 2 gave
    hooks = [reader.register_forward_pre_hook(lambda _, args: entered.append(args[0])) for reader in readers]
    with torch.no_grad():
        model(latents, t, text)
        for hook in hooks:
            hook.remove()
        last, first = model.features(latents, t, text, [2, 0], "full")
        (causal,) = model.features(latents, t, text, [2], "block_causal")
    assert last.shape == (1, 5, 4, 24)
    assert torch.equal(first, entered[0])
    assert torch.equal(last, entered[1])
    assert (causal - last).abs().max() > 0.1
