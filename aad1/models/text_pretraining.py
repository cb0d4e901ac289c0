"""Teaches a random text encoder which words of a caption belong together.

A random encoder hardly tells which motion belongs to which colour. Here every token's output must say,
through a linear head, the hue, shape, heading and speed of the clause it stands in and the clause's
place in the caption; afterwards the heads are thrown away. The captions are the embedded world's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from aad1.data.world import HEADINGS, HUES, SHAPES, SPEEDS, sample_scene

NONE = "none"
IGNORED = -100  # cross_entropy's label for "no target": </s> and padding stand in no clause
MAX_CLAUSES = 4
QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "hue": tuple(HUES),
    "shape": SHAPES,
    "heading": (*HEADINGS, NONE),
    "speed": (*SPEEDS, NONE),
    "ordinal": tuple(str(i) for i in range(MAX_CLAUSES)),
}
POOL = 16384
VALIDATION = 1024


@dataclass(frozen=True)
class LabelledCaptions:
    """Tokenised captions: ids and mask [captions, length]; labels [captions, length, questions]."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def __getitem__(self, rows: Tensor) -> LabelledCaptions:
        """Select captions and drop the padding that none of them needs."""
        length = int(self.mask[rows].sum(1).max())
        return LabelledCaptions(self.ids[rows, :length], self.mask[rows, :length], self.labels[rows, :length])


def clause_answers(caption: str) -> list[dict[str, str]]:
    """What each clause says: hue, shape, heading and speed (or ``none``) and its place.

    "a red disc moves up and left slowly" -> hue red, shape disc, heading "up and left", speed slowly.
    """
    answers = []
    for place, clause in enumerate(caption.split(", ")):
        _, hue, shape, *motion = clause.split()
        heading, speed = (" ".join(motion[1:-1]), motion[-1]) if motion else (NONE, NONE)
        answers.append({"hue": hue, "shape": shape, "heading": heading, "speed": speed, "ordinal": str(place)})
    return answers


def label_captions(tokenizer: Any, captions: Sequence[str]) -> LabelledCaptions:
    """Tokenise captions and label every token with its clause's answers; a comma ends its clause."""
    tokens = tokenizer(list(captions), padding=True, return_tensors="pt")
    comma = tokenizer.convert_tokens_to_ids(",")
    is_comma = tokens.input_ids == comma
    clause = is_comma.long().cumsum(1) - is_comma.long()
    words = tokens.attention_mask.bool() & (tokens.input_ids != tokenizer.eos_token_id)
    table = torch.full((len(captions), MAX_CLAUSES, len(QUESTIONS)), IGNORED)
    for row, caption in enumerate(captions):
        for place, answer in enumerate(clause_answers(caption)):
            table[row, place] = torch.tensor([QUESTIONS[q].index(answer[q]) for q in QUESTIONS])
    labels = table.gather(1, clause[..., None].expand(-1, -1, len(QUESTIONS)))
    return LabelledCaptions(tokens.input_ids, tokens.attention_mask, labels.masked_fill(~words[..., None], IGNORED))


def world_captions(split: str, count: int) -> list[str]:
    """Return the captions of the split's first ``count`` scenes, the two tracks alternating."""
    return [sample_scene(split, index).caption for index in range(count)]


class ClauseHeads(nn.Module):
    """One linear read-out per question, from a token's embedding [..., width] to its answers' logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, len(answers)) for answers in QUESTIONS.values())

    def forward(self, hidden: Tensor) -> list[Tensor]:
        """Return one [..., answers] tensor per question, in the order of QUESTIONS."""
        return [head(hidden) for head in self.heads]


def clause_loss(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Mean cross-entropy per token, summed over the questions; labels [batch, length, questions]."""
    pairs = zip(logits, labels.unbind(-1), strict=True)
    return torch.stack([F.cross_entropy(a.flatten(0, 1), b.flatten(), ignore_index=IGNORED) for a, b in pairs]).sum()


@torch.no_grad()
def token_accuracy(encoder: UMT5EncoderModel, heads: ClauseHeads, captions: LabelledCaptions) -> dict[str, float]:
    """Return the share of tokens answered right, per question, and ``all``: right on every question."""
    logits = heads(encoder(captions.ids, captions.mask).last_hidden_state)
    right = torch.stack([a.argmax(-1) for a in logits], -1) == captions.labels
    counted = captions.labels[..., 0] != IGNORED
    result = {name: float(right[..., i][counted].float().mean()) for i, name in enumerate(QUESTIONS)}
    return {**result, "all": float(right.all(-1)[counted].float().mean())}


@torch.no_grad()
def scale_outputs(encoder: UMT5EncoderModel, captions: LabelledCaptions) -> float:
    """Rescale the final norm so that each output dimension has unit variance over ``captions``.

    Returns the spread (standard deviation) over all dimensions afterwards.
    """
    valid = captions.mask.bool()
    spread = encoder(captions.ids, captions.mask).last_hidden_state[valid].std(0)
    encoder.encoder.final_layer_norm.weight /= spread.clamp_min(1e-3)
    return float(encoder(captions.ids, captions.mask).last_hidden_state[valid].std())


def train_tiny_text(
    encoder: UMT5EncoderModel,
    tokenizer: Any,
    *,
    steps: int = 600,
    batch: int = 128,
    lr: float = 3e-3,
    seed: int = 0,
    log: Callable[[int, float], None] | None = None,
) -> dict[str, float]:
    """Train ``encoder`` in place on captions of the train split, then rescale its outputs.

    ``log(step, loss)`` is called each step. Returns the token accuracies on the validation split per
    question (hue, shape, heading, speed, ordinal), ``all`` (every question right), and ``spread``, the
    outputs' standard deviation.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = ClauseHeads(encoder.config.d_model)
    players = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(players, lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, pct_start=0.1)
    pool = label_captions(tokenizer, world_captions("train", POOL))
    for step in range(steps):
        captions = pool[torch.randint(POOL, (batch,), generator=generator)]
        loss = clause_loss(heads(encoder(captions.ids, captions.mask).last_hidden_state), captions.labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(players, 1.0)
        optimizer.step()
        schedule.step()
        if log is not None:
            log(step, float(loss.detach()))
    validation = label_captions(tokenizer, world_captions("val", VALIDATION))
    accuracy = token_accuracy(encoder, heads, validation)
    return {**accuracy, "spread": scale_outputs(encoder, validation)}
