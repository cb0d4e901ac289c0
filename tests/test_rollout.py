"""The rollout: Eq. 1 and 4 against passes over whole clips, where gradient goes, and that it streams."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice, repeat
from typing import Any

import pytest
import torch
from lively import clip_of, lively, normal, text_of
from torch import Tensor

from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.context import Context, chunk_slices
from aad1.rollout import roll_clip, rollout

CHUNK, CHUNKS = 2, 5
FRAMES = CHUNK * CHUNKS
TWO_PASSES = (1.0, 5 / 6)


def build(**config: Any) -> CausalWanTransformer3DModel:
    span = {"num_frames_per_block": CHUNK, "local_attn_size": 5, "sink_size": 1}
    return lively(**{**span, **config}).requires_grad_(False)


def noise_chunks(chunks: int = CHUNKS) -> tuple[Tensor, ...]:
    return clip_of(FRAMES, seed=11).split(CHUNK, dim=2)[:chunks]


def fixed_noise() -> Any:
    """A renoise that draws the same sequence every time it is made anew."""
    numbers = count(100)
    return lambda like: normal(*like.shape, seed=next(numbers))


def slow_rollout(
    model: CausalWanTransformer3DModel, image: Tensor, text: Tensor, noise: Tensor, levels: tuple[float, ...]
) -> Tensor:
    """Eq. 1 without a context: every pass goes over the whole clip so far, finished frames at t = 0."""
    clip, renoise = image, fixed_noise()
    for chunk in noise.split(CHUNK, dim=2):
        x_t = chunk
        for number, level in enumerate(levels):
            t = torch.cat([torch.zeros(1, clip.shape[2]), torch.full((1, CHUNK), level)], dim=1)
            v = model(torch.cat([clip, x_t], dim=2), t, text, visibility="block_causal")[:, :, -CHUNK:]
            x0 = x_t - level * v
            if number + 1 < len(levels):
                x_t = (1 - levels[number + 1]) * x0 + levels[number + 1] * renoise(x0)
        clip = torch.cat([clip, x0], dim=2)
    return clip


@pytest.mark.parametrize("levels", [(1.0,), TWO_PASSES, (1.0, 0.9, 0.5)], ids=["1 pass", "2 passes", "3 passes"])
def test_a_rolled_clip_is_equation_1_written_out(levels: tuple[float, ...]) -> None:
    model, image, text, noise = build(), clip_of(1), text_of(), clip_of(FRAMES, seed=11)
    with torch.no_grad():
        expected = slow_rollout(model, image, text, noise, levels)
        found = roll_clip(model, image, text, noise, levels=levels, renoise=fixed_noise())
    assert found.shape == (1, 4, 1 + FRAMES, 4, 4)
    assert torch.equal(found[:, :, :1], image)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("levels", [(1.0,), TWO_PASSES], ids=["1 pass", "2 passes"])
def test_training_and_streaming_make_the_same_chunks(levels: tuple[float, ...]) -> None:
    model, image, text = build().requires_grad_(True), clip_of(1), text_of()
    trained = roll_clip(
        model, image, text, torch.cat(noise_chunks(), dim=2), levels=levels, renoise=fixed_noise()
    ).detach()
    with torch.no_grad():
        stream = rollout(model, image, text, iter(noise_chunks()), levels=levels, renoise=fixed_noise())
        streamed = [next(stream) for _ in range(CHUNKS)]
    torch.testing.assert_close(torch.cat([image, *streamed], dim=2), trained, atol=2e-4, rtol=1e-3)
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.parametrize(
    ("levels", "enabled", "calls"),
    [
        ((1.0,), False, ["advance"]),
        ((1.0,), True, ["extend", "forward"]),
        (TWO_PASSES, False, ["advance", "forward"]),
        (TWO_PASSES, True, ["advance", "forward"]),
    ],
)
def test_a_chunk_costs_one_forward_a_pass_unless_the_first_is_graded(
    levels: tuple[float, ...], enabled: bool, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, made = build(), []
    for name in ("advance", "extend", "forward"):
        monkeypatch.setattr(model, name, _noting(name, getattr(model, name), made))
    with torch.set_grad_enabled(enabled):
        list(rollout(model, clip_of(1), text_of(), noise_chunks(3), levels=levels))
    assert made == calls * 3


def _noting(name: str, function: Any, calls: list[str]) -> Any:
    def noted(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        return function(*arguments, **options)

    return noted


def test_the_first_chunk_may_have_passes_of_its_own() -> None:
    model, image, text = build(), clip_of(1), text_of()
    with torch.no_grad():
        options = {"first_levels": TWO_PASSES, "renoise": fixed_noise()}
        found = list(rollout(model, image, text, noise_chunks(2), **options))
        first = roll_clip(model, image, text, noise_chunks(1)[0], levels=TWO_PASSES, renoise=fixed_noise())
        _, context = model.advance(Context(), image, first[:, :, 1:], torch.ones(1, CHUNK), text)
        x_t = noise_chunks(2)[1]
        v, _ = model.advance(context, first[:, :, 1:], x_t, torch.ones(1, CHUNK), text)
    torch.testing.assert_close(found[0], first[:, :, 1:])
    torch.testing.assert_close(found[1], x_t - v)


def test_a_last_chunk_may_be_shorter() -> None:
    assert roll_clip(build(), clip_of(1), text_of(), clip_of(CHUNK + 1)).shape[2] == 1 + CHUNK + 1


# --- gradient --------------------------------------------------------------------------------


def test_a_chunk_has_gradient_to_its_own_noise_alone() -> None:
    """The context is detached: neither the image nor earlier chunks take part."""
    model, image, text = build(), clip_of(1).requires_grad_(), text_of()
    noise = [chunk.clone().requires_grad_() for chunk in noise_chunks()]
    for number, made in enumerate(rollout(model, image, text, noise)):
        gradients = torch.autograd.grad(made.square().sum(), [image, *noise], allow_unused=True)
        assert [g is not None for g in gradients] == [i == number + 1 for i in range(CHUNKS + 1)]
        assert gradients[number + 1].any()


@pytest.mark.parametrize("levels", [(1.0,), TWO_PASSES], ids=["1 pass", "2 passes"])
def test_the_weights_learn_from_the_chunks_own_last_pass(levels: tuple[float, ...]) -> None:
    """The same gradient as one graded pass over a context made in advance."""
    model, image, text = build().requires_grad_(True), clip_of(1), text_of()
    *_, made = rollout(model, image, text, noise_chunks(3), levels=levels, renoise=fixed_noise())
    found = torch.autograd.grad(made.square().sum(), list(model.parameters()))

    with torch.no_grad():
        clip = roll_clip(
            model, image, text, torch.cat(noise_chunks(2), dim=2), levels=levels, renoise=(renoise := fixed_noise())
        )
        x_t = noise_chunks(3)[2]
        t = torch.cat([torch.zeros(1, clip.shape[2]), torch.ones(1, CHUNK)], dim=1)
        if len(levels) == 2:
            v = model(torch.cat([clip, x_t], dim=2), t, text, visibility="block_causal")[:, :, -CHUNK:]
            x0 = x_t - v
            x_t = (1 - levels[1]) * x0 + levels[1] * renoise(x0)
    context = context_of(model, clip, text)
    t = torch.full((1, CHUNK), levels[-1])
    x0 = x_t - levels[-1] * model(x_t, t, text, visibility="block_causal", context=context)
    expected = torch.autograd.grad(x0.square().sum(), list(model.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3 * float(theirs.abs().max()) + 1e-6, rtol=1e-3)


def context_of(model: CausalWanTransformer3DModel, clip: Tensor, text: Tensor) -> Context:
    context = Context()
    for own in chunk_slices(clip.shape[2], CHUNK):
        context = model.extend(context, clip[:, :, own], text)
    return context


@pytest.mark.parametrize("levels", [(1.0,), TWO_PASSES], ids=["1 pass", "2 passes"])
@pytest.mark.parametrize("enabled", [True, False])
def test_a_suspended_rollout_leaves_grad_mode_alone(levels: tuple[float, ...], enabled: bool) -> None:
    model = build().requires_grad_(True)
    with torch.set_grad_enabled(enabled):
        stream = rollout(model, clip_of(1), text_of(), noise_chunks(), levels=levels)
        for _ in range(3):
            assert next(stream).requires_grad is enabled
            assert torch.is_grad_enabled() is enabled
        stream.close()  # type: ignore[attr-defined]
        assert torch.is_grad_enabled() is enabled


# --- streaming -------------------------------------------------------------------------------


def test_endless_noise_gives_an_endless_stream_at_constant_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, held = build(rope_max_seq_len=6), []
    advance = model.advance

    def watched(*arguments: Any) -> Any:
        v, longer = advance(*arguments)
        held.append(longer.frames)
        return v, longer

    monkeypatch.setattr(model, "advance", watched)
    endless = (clip_of(CHUNK, seed=number) for number in count())
    with torch.no_grad():
        made = list(islice(rollout(model, clip_of(1), text_of(), endless), 40))
    assert len(made) == 40
    assert all(torch.isfinite(chunk).all() for chunk in made)
    assert held == [1, 3, *[4] * 38]  # sink 1 + the window's 5 frames less the chunk's own 2; no pass after the last


def test_noise_and_prompt_are_drawn_when_the_chunk_is_asked_for() -> None:
    """A live prompt takes effect in the next chunk."""
    drawn: list[str] = []

    def watch(name: str, items: Any) -> Iterator[Tensor]:
        for item in items:
            drawn.append(name)
            yield item

    with torch.no_grad():
        stream = rollout(build(), clip_of(1), watch("text", repeat(text_of())), watch("noise", noise_chunks()))
        assert drawn == []
        next(stream)
        assert sorted(drawn) == ["noise", "text"]
        next(stream)
        assert sorted(drawn) == ["noise", "noise", "text", "text"]


def test_a_prompt_that_changes_changes_the_chunks_from_there_on() -> None:
    model, image = build(), clip_of(1)
    one, other = text_of(seed=2), text_of(seed=3)
    with torch.no_grad():
        steady = list(rollout(model, image, one, noise_chunks()))
        same = list(rollout(model, image, [one] * CHUNKS, noise_chunks()))
        switched = list(rollout(model, image, [one, one, other, other, other], noise_chunks()))
    assert all(torch.equal(a, b) for a, b in zip(steady, same, strict=True))
    assert [torch.equal(a, b) for a, b in zip(steady, switched, strict=True)] == [True, True, False, False, False]
    assert min(float((a - b).abs().max()) for a, b in zip(steady[2:], switched[2:], strict=True)) > 0.05


@pytest.mark.parametrize(("prompts", "chunks"), [(3, 3), (2, 3), (3, 2)])
def test_the_stream_ends_with_the_shorter_of_prompts_and_noise(prompts: int, chunks: int) -> None:
    with torch.no_grad():
        made = list(rollout(build(), clip_of(1), [text_of()] * prompts, noise_chunks(chunks)))
    assert len(made) == min(prompts, chunks)


def test_the_same_noise_gives_the_same_clip() -> None:
    model, image, text, noise = build(), clip_of(1), text_of(), clip_of(FRAMES, seed=11)
    with torch.no_grad():
        clips = [roll_clip(model, image, text, noise, levels=TWO_PASSES, renoise=fixed_noise()) for _ in range(2)]
        other = roll_clip(model, image, text, clip_of(FRAMES, seed=12))
    assert torch.equal(*clips)
    assert not torch.equal(clips[0], other)


def test_earlier_chunks_do_not_wait_for_later_noise() -> None:
    model, image, text = build(), clip_of(1), text_of()
    with torch.no_grad():
        whole = roll_clip(model, image, text, torch.cat(noise_chunks(), dim=2))
        start = roll_clip(model, image, text, torch.cat(noise_chunks()[:2], dim=2))
    assert torch.equal(whole[:, :, : 1 + 2 * CHUNK], start)
