"""How far the videos that models make are from true ones, as distributions: on features of the state encoder.

A clip is cut into windows of 17 frames that share their end frames: 0 to 16, 16 to 32, and so on, five in the short
protocol's 81 frames, so a window is a chunk of the student and the frame before it. Models are compared with true
clips that none of them was asked for; the truth of what they were asked for, compared with the same clips, stands
beside them: no model can be expected to come nearer.

Features are kept, frames are not: 512 short clips take 1.3 MB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from aad1.data.media import video_to_tensor
from aad1.data.world import FPS, SHORT_FRAMES, SIZE, Clip, make_clip
from aad1.errors import UserError
from aad1.evaluation.intervals import Interval
from aad1.evaluation.report import Column, Curves
from aad1.measures.distribution import Estimate, Features, frechet, mmd
from aad1.models.state_encoder import STEP, WINDOW, StateEncoder

CLIPS = 512  # on either side; with fewer the Frechet distance is mostly its bias, which is known but roughly
TRUTH = "truth"
WIDTH = 1.96  # standard errors on either side of a 95 % interval
MMD_SCALE = 1000

COLUMNS = (
    Column(
        "frechet",
        "FD",
        "0",
        "Frechet distance to true clips on features of a state encoder, mean over windows of 17 frames; its bias is "
        "taken away, but compare only values of as many clips",
    ),
    Column(
        "mmd",
        "MMD",
        "0",
        f"{MMD_SCALE} times the unbiased squared MMD (Gaussian kernel) to true clips on the same features",
    ),
)
NOTE = "FD and MMD: [95 % delete-a-group jackknife interval over clips]; features of the bundled state encoder."


def reference_clips(frames: int = SHORT_FRAMES, count: int = CLIPS, split: str = "test") -> Iterator[Clip]:
    """True clips that no model was asked for: those of the split after the first ``count``."""
    for index in range(count, 2 * count):
        yield make_clip(split, index, frames)


@dataclass
class FeatureBank:
    """The features of clips that come by one after the other; frames are not kept.

    Raises UserError for frames that are not uint8 [frames, 64, 64, 3], shorter than a window, or of another length
    than the first clip's.
    """

    encoder: StateEncoder
    _held: list[NDArray[np.float64]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._held)

    def add(self, frames: NDArray[np.uint8]) -> None:
        """Take in a clip."""
        windows = cut(frames)
        if self._held and len(windows) != len(self._held[0]):
            raise UserError(
                f"a clip of {len(windows)} windows follows clips of {len(self._held[0])}: "
                "evaluate clips of different lengths separately"
            )
        self._held.append(features_of(self.encoder, windows))

    @property
    def features(self) -> Features:
        """Everything so far, [clips, windows, dim]; raises UserError while there is nothing."""
        if not self._held:
            raise UserError("no clips to take features of; give at least 3, better 512")
        return np.stack(self._held)


def cut(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The windows of a clip, [windows, WINDOW, 64, 64, 3]; what is left after the last whole one is not looked at."""
    if frames.dtype != np.uint8 or frames.shape[1:] != (SIZE, SIZE, 3) or len(frames) < WINDOW:
        raise UserError(
            f"the state encoder reads uint8 frames [{WINDOW} or more, {SIZE}, {SIZE}, 3], "
            f"got {frames.dtype} {list(frames.shape)}; give clips of the embedded world"
        )
    return np.stack([frames[i : i + WINDOW] for i in range(0, len(frames) - WINDOW + 1, STEP)])


@torch.no_grad()
def features_of(encoder: StateEncoder, windows: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Features of windows, [windows, dim]."""
    found = encoder(video_to_tensor(windows).to(encoder.device))
    return np.asarray(found.double().cpu().numpy())


# --- rows --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Distribution:
    """What goes into a report: rows[model][measure], how many clips each is over, curves, notes and what is missing."""

    rows: dict[str, dict[str, Interval | None]]
    clips: dict[str, int]
    curves: Curves
    notes: tuple[str, ...]
    missing: tuple[str, ...]


def compare(banks: Mapping[str, FeatureBank], reference: FeatureBank) -> Distribution:
    """Distances of several banks to one; a bank that is too small to have a distribution is missing."""
    rows: dict[str, dict[str, Interval | None]] = {}
    lines: dict[str, list[tuple[float, float | None]]] = {}
    missing = []
    for name, bank in banks.items():
        rows[name] = dict.fromkeys(column.name for column in COLUMNS)
        try:
            features, true = bank.features, reference.features
            rows[name]["mmd"] = _interval(mmd(features, true), MMD_SCALE)
            far = _frechet(features, true)
            rows[name]["frechet"] = _interval(far)
            lines[name] = [((i + 1) * STEP / FPS, float(value)) for i, value in enumerate(far.windows)]
        except UserError as error:
            missing.append(f"{' and '.join(_unknown(rows[name]))} of {name}: {error}")
    curves = Curves("Distance to the truth over time", "seconds", "FD", lines)
    small = min((len(b) for b in (*banks.values(), reference)), default=0)
    notes = (NOTE, *((too_few(small),) if small < CLIPS else ()))
    return Distribution(rows, {name: len(bank) for name, bank in banks.items()}, curves, notes, tuple(missing))


def _frechet(features: Features, reference: Features) -> Estimate:
    """Raises UserError where either side has fewer clips than features: covariances are then singular, and the bias
    is most of the distance and not to be known.
    """
    count, least = min(len(features), len(reference)), features.shape[-1]
    if count < least:
        raise UserError(f"{count} clips have no covariance of {least} features; give at least {least}, better {CLIPS}")
    return frechet(features, reference)


def _unknown(row: Mapping[str, Interval | None]) -> list[str]:
    return [column.label for column in COLUMNS if row[column.name] is None]


def too_few(count: int) -> str:
    """What a reader must know of distances between fewer clips than CLIPS."""
    return (
        f"FD and MMD are over {count} clips ({CLIPS} are wanted on either side): trust their intervals, not small "
        "differences, and read them against the truth's own."
    )


def _interval(estimate: Estimate, scale: float = 1.0) -> Interval:
    value, reach = scale * estimate.value, scale * WIDTH * estimate.error
    return Interval(value, value - reach, value + reach)
