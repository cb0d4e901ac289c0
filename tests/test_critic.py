"""The critic: its four kinds, what a frame's logit can see (Proposition A.2), and what its layers may be."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from lively import clip_of, lively, normal, text_of

from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.critic import Critic, QueryHead

FRAMES, CHUNK = 9, 4
KINDS = list(product(("full", "block_causal"), ("clip", "frame")))
every_kind = pytest.mark.parametrize(("visibility", "granularity"), KINDS)


def build(layers: tuple[int, ...] = (0, 1), **kind: Any) -> Critic:
    torch.manual_seed(0)
    critic = Critic(lively(num_frames_per_block=CHUNK, local_attn_size=9, sink_size=1), layers, **kind)
    return critic.requires_grad_(False)


def levels(batch: int) -> torch.Tensor:
    return torch.linspace(0.2, 0.8, batch)[:, None].expand(batch, FRAMES)


@every_kind
def test_one_logit_a_clip_or_one_a_frame(visibility: Any, granularity: Any) -> None:
    critic = build(visibility=visibility, granularity=granularity, queries=3)
    logits = critic(clip_of(FRAMES, batch=2), levels(2), text_of(2))
    assert logits.shape == ((2,) if granularity == "clip" else (2, FRAMES))
    assert critic.norm.normalized_shape == (2 * 3 * 24,)


@every_kind
def test_samples_are_judged_apart(visibility: Any, granularity: Any) -> None:
    critic = build(visibility=visibility, granularity=granularity)
    clips, text = clip_of(FRAMES, batch=2), text_of(2)
    both = critic(clips, levels(2), text)
    alone = [critic(clips[i : i + 1], levels(2)[i : i + 1], text[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_the_critic_is_given_tau_and_the_text() -> None:
    critic, clips, text = build(), clip_of(FRAMES, batch=2), text_of(2)
    logits = critic(clips, levels(2), text)
    assert (critic(clips, levels(2) + 0.15, text) - logits).abs().min() > 1e-3
    assert (critic(clips, levels(2), text.flip(0)) - logits).abs().min() > 1e-3


# --- Proposition A.2 -------------------------------------------------------------------------


def reach(critic: Critic, frame: int) -> list[float]:
    """How much the logit of ``frame`` changes with each frame of the clip."""
    clip = clip_of(FRAMES).requires_grad_()
    critic(clip, levels(1), text_of())[0, frame].backward()
    assert clip.grad is not None
    return clip.grad.abs().amax(dim=(0, 1, 3, 4)).tolist()


@pytest.mark.parametrize("frame", range(FRAMES))
def test_a_causal_backbone_gives_no_gradient_to_later_chunks(frame: int) -> None:
    end = 1 if frame == 0 else 1 + CHUNK * ((frame - 1) // CHUNK + 1)
    gradient = reach(build(visibility="block_causal", granularity="frame"), frame)
    assert all(g == 0 for g in gradient[end:])
    assert all(g > 0 for g in gradient[:end])


@pytest.mark.parametrize("frame", [0, 4, FRAMES - 1])
def test_a_bidirectional_backbone_gives_gradient_to_every_frame(frame: int) -> None:
    assert all(g > 0 for g in reach(build(visibility="full", granularity="frame"), frame))


@pytest.mark.parametrize("visibility", ["full", "block_causal"])
def test_one_logit_a_clip_gives_gradient_to_every_frame(visibility: Any) -> None:
    clip = clip_of(FRAMES).requires_grad_()
    build(visibility=visibility)(clip, levels(1), text_of()).sum().backward()
    assert clip.grad is not None
    assert clip.grad.abs().amax(dim=(0, 1, 3, 4)).min() > 0


# --- query heads -----------------------------------------------------------------------------


def test_a_frames_query_reads_its_own_frame_alone() -> None:
    torch.manual_seed(0)
    head = QueryHead(24, heads=2, queries=2)
    hidden = normal(2, 5, 4, 24)
    before = head(hidden, "frame")
    assert before.shape == (2, 5, 48)
    changed = hidden.clone()
    changed[1, 3] += 1 + normal(4, 24, seed=1)
    moved = (head(changed, "frame") - before).abs().amax(dim=2) > 1e-4
    assert moved.nonzero().tolist() == [[1, 3]]


def test_a_clips_query_reads_every_token() -> None:
    torch.manual_seed(0)
    head = QueryHead(24, heads=2, queries=1)
    hidden = normal(1, 5, 4, 24).requires_grad_()
    head(hidden, "clip").square().sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.abs().amax(dim=3).min() > 0


def test_a_query_attends_by_the_softmax_of_its_products() -> None:
    """Head by head, written out."""
    torch.manual_seed(0)
    head = QueryHead(24, heads=2, queries=3)
    tokens = normal(1, 2, 4, 24)
    with torch.no_grad():
        read = head.norm(tokens.reshape(8, 24))
        q, k, v = head.to_q(head.query), head.to_k(read), head.to_v(read)
        parts = []
        for half in (slice(0, 12), slice(12, 24)):
            parts.append((q[:, half] @ k[:, half].T / 12**0.5).softmax(-1) @ v[:, half])
        expected = head.to_out(torch.cat(parts, dim=1)).reshape(1, 72)
        torch.testing.assert_close(head(tokens, "clip"), expected)


# --- layers ----------------------------------------------------------------------------------


def test_heads_read_the_blocks_they_are_given() -> None:
    critic, clip, text = build(layers=(1, 0)), clip_of(FRAMES), text_of()
    hidden = critic.backbone.features(clip, levels(1), text, [0, 1], "full")
    reads = [critic.heads[0](hidden[1], "clip"), critic.heads[1](hidden[0], "clip")]
    expected = critic.logit(critic.norm(torch.cat(reads, dim=-1)))[:, 0]
    torch.testing.assert_close(critic(clip, levels(1), text), expected)


@pytest.mark.parametrize("layers", [(0, 2), (-1,), ()], ids=str)
def test_layers_that_the_backbone_does_not_have_are_refused(layers: tuple[int, ...]) -> None:
    backbone: CausalWanTransformer3DModel = lively()
    with pytest.raises(IndexError, match="blocks 0 to 1"):
        Critic(backbone, layers)


@every_kind
def test_every_weight_up_to_the_last_head_learns(visibility: Any, granularity: Any) -> None:
    critic = build(visibility=visibility, granularity=granularity).requires_grad_(True)
    critic(clip_of(FRAMES, batch=2), levels(2), text_of(2)).square().sum().backward()
    idle = {n for n, p in critic.named_parameters() if p.grad is None}
    assert idle == {"backbone.scale_shift_table", "backbone.proj_out.weight", "backbone.proj_out.bias"}
