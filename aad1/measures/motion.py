"""Motion, brightness and seams of any frames, without ground truth.

The motion guard of training and the world's own measures both stand on these. Frames are uint8
[frames, height, width, 3]; brightness and colour are in [0, 1]; flow is in pixels per frame step.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aad1.data.motion import motion_energy
from aad1.errors import UserError

CHUNK_FRAMES = 16  # pixel frames a chunk: four latent frames of four
FLOW_SIDE = 256  # longer pictures are reduced to this short side before flow, as VBench's rule is scaled by it
FARNEBACK = (0.5, 3, 9, 3, 5, 1.1, 0)  # pyramid scale and levels, window, iterations, polynomial size and sigma, flags
STILL_ENERGY = 0.25 / 255  # mean absolute change of a pixel; one small slow shape on a still background is over it
STILL_FLOW = 1e-3  # px; what Farneback finds between equal pictures is below it
STILL_SHARE = 0.1  # of the reference's motion energy: the world's threshold of a static clip
SEAM_FLOOR = 0.1 / 255  # added to both sides of a seam ratio, so that rounding alone reads 1


@dataclass(frozen=True)
class MotionReport:
    """Motion of one clip: energy is the mean absolute change of a pixel per frame in [0, 1].

    flow is the mean Farneback magnitude in pixels per frame (None without OpenCV); motion is flow where there
    is one, else energy, first_quarter and last_quarter its means there; seam and luma_seam are change at
    chunk boundaries over change elsewhere (1 ideal); slopes are per 100 frames.
    """

    energy: float
    flow: float | None
    motion: float
    first_quarter: float
    last_quarter: float
    static: bool
    seam: float
    luma_seam: float
    luma_slope: float
    saturation_slope: float

    @property
    def retention(self) -> float:
        """Motion of the last quarter over that of the first; nan where the first has none."""
        return self.last_quarter / self.first_quarter if self.first_quarter > 0 else float("nan")


def measure_motion(
    frames: NDArray[np.uint8], chunk_frames: int = CHUNK_FRAMES, reference_energy: float | None = None
) -> MotionReport:
    """Measure one clip; ``reference_energy`` is the motion energy of real clips of the same kind.

    Raises UserError for frames of another shape or fewer than two.
    """
    check_frames(frames)
    energy = motion_energy(frames)
    flow = flow_magnitude(frames) if has_opencv() else None
    motion = energy if flow is None else flow
    quarter = max(1, len(motion) // 4)
    brightness = luma(frames)
    return MotionReport(
        energy=float(energy.mean()),
        flow=None if flow is None else float(flow.mean()),
        motion=float(motion.mean()),
        first_quarter=float(motion[:quarter].mean()),
        last_quarter=float(motion[-quarter:].mean()),
        static=is_static(energy, reference_energy),
        seam=seam_ratio(energy, chunk_frames),
        luma_seam=seam_ratio(np.abs(np.diff(brightness)), chunk_frames),
        luma_slope=slope_per_100(brightness),
        saturation_slope=slope_per_100(saturation(frames)),
    )


def check_frames(frames: NDArray[np.uint8]) -> None:
    """Raise UserError unless frames are uint8 [frames >= 2, height, width, 3]."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < 2:
        raise UserError(
            f"motion needs at least two uint8 frames [frames, height, width, 3], got {frames.dtype} "
            f"{list(frames.shape)}; convert pictures in [0, 1] with (255 * x).round().astype('uint8')"
        )


# --- brightness and colour -------------------------------------------------------------------


def luma(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean Rec. 709 luma of each frame, [frames] in [0, 1]."""
    means = np.stack([frames[..., i].mean(axis=(1, 2)) for i in range(3)], axis=-1)
    return np.asarray(means @ np.array([0.2126, 0.7152, 0.0722]) / 255)


def saturation(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean of max(R, G, B) - min(R, G, B) in each frame, [frames] in [0, 1]."""
    r, g, b = frames[..., 0], frames[..., 1], frames[..., 2]
    high, low = np.maximum(np.maximum(r, g), b), np.minimum(np.minimum(r, g), b)
    return np.asarray((high - low).mean(axis=(1, 2)) / 255)


def slope_per_100(values: NDArray[np.float64]) -> float:
    """Least-squares slope of a per-frame series, per 100 frames."""
    time = np.arange(len(values)) - (len(values) - 1) / 2
    return float(100 * (time @ values) / (time @ time))


# --- motion ----------------------------------------------------------------------------------


def is_static(energy: NDArray[np.float64], reference_energy: float | None = None) -> bool:
    """Whether a clip stands still: under a tenth of the reference's energy, or a quarter grey level.

    Without a reference the absolute floor alone decides, and slow motion on a large quiet background
    can fall under it: give the training clips' own mean energy where it is known.
    """
    floor = STILL_ENERGY if reference_energy is None else STILL_SHARE * reference_energy
    return bool(energy.mean() < floor)


def seam_ratio(change: NDArray[np.float64], chunk_frames: int = CHUNK_FRAMES) -> float:
    """Mean change at chunk boundaries over the mean elsewhere; ``change[i]`` is from frame i to i + 1."""
    at, elsewhere = seam_parts(change, chunk_frames)
    return at / elsewhere


def seam_parts(
    change: NDArray[np.float64], chunk_frames: int = CHUNK_FRAMES, floor: float = SEAM_FLOOR
) -> tuple[float, float]:
    """Mean change at the seams and elsewhere, each with a floor; nan where the clip has no such step.

    The first frame stands alone and chunk k begins at frame 1 + k chunk_frames, so the step from the
    given image to the first chunk is a seam too. Steps that are nan are left out of both.
    """
    at_seam = np.arange(len(change)) % chunk_frames == 0
    known = ~np.isnan(change)
    return _mean(change[at_seam & known]) + floor, _mean(change[~at_seam & known]) + floor


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else float("nan")


# --- optical flow (OpenCV, optional) ---------------------------------------------------------


@cache
def has_opencv() -> bool:
    """Whether OpenCV is installed; flow-based measures are N/A without it.

    It is imported here, once, so that threads which measure never see it half imported.
    """
    try:
        importlib.import_module("cv2")
    except ImportError:
        return False
    return True


def flow_fields(frames: NDArray[np.uint8], stride: int = 1) -> NDArray[np.float32]:
    """Farneback flow between frames ``stride`` apart, [pairs, height, width, 2] px of the (reduced) picture.

    Pictures with a short side over 256 px are reduced to it. Raises UserError without OpenCV.
    """
    if not has_opencv():
        raise UserError("optical flow needs OpenCV; install it with: pip install 'aad1[eval]'")
    import cv2

    greys = [_flow_picture(cv2, frame) for frame in frames[::stride]]
    flow: Any = cv2.calcOpticalFlowFarneback
    return np.stack([flow(a, b, None, *FARNEBACK) for a, b in pairwise(greys)])


def _flow_picture(cv2: Any, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frame in grey with its short side at most FLOW_SIDE."""
    grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    scale = FLOW_SIDE / min(grey.shape)
    size = (round(grey.shape[1] * scale), round(grey.shape[0] * scale))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA) if scale < 1 else grey)


def flow_magnitude(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean flow magnitude of each neighbouring pair, [frames - 1] in pixels of the (reduced) picture."""
    found = np.asarray(np.linalg.norm(flow_fields(frames), axis=-1).mean(axis=(1, 2)), np.float64)
    return np.where(found < STILL_FLOW, 0.0, found)


def dynamic_degree(frames: NDArray[np.uint8], fps: float = 16) -> bool:
    """VBench's dynamic-degree rule with Farneback flow in place of RAFT.

    Neighbours are taken at about 8 fps; a pair moves when the mean of its fastest 5 % of pixels is
    over 6 min(H, W) / 256; a clip of N sampled frames is dynamic when round(4 N / 16) pairs move.
    """
    flow = np.linalg.norm(flow_fields(frames, stride=max(1, round(fps / 8))), axis=-1)
    fastest = np.sort(flow.reshape(len(flow), -1), axis=1)
    top = max(1, int(0.05 * fastest.shape[1]))
    moving = fastest[:, -top:].mean(axis=1) > 6 * min(flow.shape[1:]) / 256
    return bool(moving.sum() >= round(4 * (len(flow) + 1) / 16))
