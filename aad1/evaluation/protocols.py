"""Which clips of the embedded world a model is asked for: short for motion, long for drift, four unlike training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from aad1.data.world import SHORT_FRAMES, Clip, make_clip
from aad1.errors import UserError, nearest

LONG_FRAMES = 321
CLIPS = 100


@dataclass(frozen=True)
class Protocol:
    """``clips`` clips of ``frames`` frames, the first ones of a split; the two tracks alternate."""

    name: str
    meaning: str
    split: str = "test"
    frames: int = SHORT_FRAMES
    clips: int = CLIPS

    def load(self) -> Iterator[tuple[str, Clip]]:
        """Each clip with its name, such as ``test-free-00001``."""
        for index in range(self.clips):
            clip = make_clip(self.split, index, self.frames)
            yield f"{self.split}-{clip.truth.scene.track}-{index:05d}", clip


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("short", "the distribution of training"),
        Protocol("long", "the distribution of training, four times as long", frames=LONG_FRAMES),
        Protocol("slow", "half the speeds of training", "test_slow"),
        Protocol("fast", "one and a half times the speeds of training", "test_fast"),
        Protocol("count", "four objects, one more than in training", "test_count"),
        Protocol("pairs", "pairs of hue and shape that training never shows", "test_pairs"),
    )
}
USUAL = ("short", "long")


def chosen(names: tuple[str, ...], clips: int | None = None) -> list[Protocol]:
    """The protocols of these names, each with ``clips`` clips in place of its own number.

    Raises UserError for an unknown name and for no clips.
    """
    for name in names:
        if name not in PROTOCOLS:
            raise UserError(f"there is no protocol '{name}'{nearest(name, PROTOCOLS)}")
    if clips is not None and clips < 1:
        raise UserError(f"{clips} clips cannot be evaluated; use 1 or more")
    found = [PROTOCOLS[name] for name in dict.fromkeys(names)]
    return [p if clips is None else replace(p, clips=clips) for p in found]
