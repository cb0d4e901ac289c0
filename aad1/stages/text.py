"""Train the text encoder of an embedded folder: which words of a caption belong together.

A random encoder hardly tells which motion belongs to which colour. Here every token's output must say,
through a linear head, the hue, shape, heading and speed of the clause it stands in and the clause's
place in the caption; afterwards the heads are thrown away. The captions are the embedded world's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from aad1.data.world import HEADINGS, HUES, SHAPES, SPEEDS, sample_scene
from aad1.limits import Count
from aad1.models.checkpoint_io import save_component
from aad1.stages.base import PlainStage
from aad1.training.loop import LoopConfig, Loss, Turn
from aad1.training.player import OptimizerConfig, Player
from aad1.training.randomness import Draws

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


@dataclass(frozen=True, kw_only=True)
class TextConfig(LoopConfig):
    """captions: how many training captions; validation: how many held-out ones."""

    optimizer: OptimizerConfig
    captions: Count = 16384
    validation: Count = 1024


@dataclass
class Captions:
    """Labelled captions of the world's training scenes."""

    tokenizer: Any
    count: int

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int]) -> LabelledCaptions:
        """The captions at ``indices``."""
        return self._all[torch.tensor(indices)]

    @cached_property
    def _all(self) -> LabelledCaptions:
        return label_captions(self.tokenizer, world_captions("train", self.count))


@dataclass
class TextStage(PlainStage):
    """The encoder and its read-out heads are one player."""

    config: TextConfig
    tokenizer: Any
    encoder: UMT5EncoderModel
    name: str = "text"
    players: Mapping[str, Player] = field(init=False)
    dataset: Captions = field(init=False)

    def __post_init__(self) -> None:
        self.encoder.requires_grad_(True)
        self.heads = ClauseHeads(self.encoder.config.d_model).to(self.encoder.device)
        both = nn.ModuleDict({"encoder": self.encoder, "heads": self.heads})
        self.players = {"encoder": Player("encoder", both, self.config.optimizer)}
        self.dataset = Captions(self.tokenizer, self.config.captions)

    def turns(self, step: int) -> Sequence[str]:
        """One update a step."""
        return ("encoder",)

    def loss(self, turn: Turn, batch: LabelledCaptions, noise: Draws) -> Loss:
        """Cross-entropy of every token's answers, summed over the questions."""
        batch = batch.to(self.encoder.device)
        hidden = self.encoder(batch.ids, batch.mask).last_hidden_state
        return Loss(clause_loss(self.heads(hidden), batch.labels), {})

    def evaluate(self, step: int, samples: Path) -> dict[str, float]:
        """Token accuracy on held-out captions."""
        return token_accuracy(self.encoder, self.heads, self._validation)

    @cached_property
    def _validation(self) -> LabelledCaptions:
        captions = world_captions("val", self.config.validation)
        return label_captions(self.tokenizer, captions).to(self.encoder.device)

    def export(self, folder: Path) -> Path:
        """Save the averaged encoder, its outputs scaled to unit variance."""
        with self.players["encoder"].averaged():
            scale_outputs(self.encoder, self._validation)
            save_component(self.encoder, folder / "text_encoder")
        return folder / "text_encoder"


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

    def to(self, device: torch.device) -> LabelledCaptions:
        """The same captions on ``device``."""
        return LabelledCaptions(self.ids.to(device), self.mask.to(device), self.labels.to(device))


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
