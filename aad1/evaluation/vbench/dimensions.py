"""VBench-I2V's dimensions: how each is normalised and weighted, over which images it goes, and what it needs.

Normalisation and weights are those of VBench's own score script for I2V; facts of VBench's git HEAD and of PyPI's
vbench 0.1.5. Nothing here is VBench's code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from aad1.errors import UserError, nearest

SAMPLES = 5  # videos of each image and prompt
OFFICIAL_IMAGES = 355  # of the official suite: 246 with a subject, 109 backgrounds
RATIOS = ("1-1", "8-5", "7-4", "16-9")  # of the official image suite; 832x480 is 7-4
DEFAULT_RATIO = "7-4"

Images = Literal["subject", "background", "both", "none"]
Score = Literal["quality", "i2v", "none"]


@dataclass(frozen=True)
class Weights:
    """A weight file, by any one of its places: each place is the files that must all be there.

    Paths begin with {cache} ($VBENCH_CACHE_DIR or ~/.cache/vbench), {hub} (torch.hub's folder), {home}, or {cwd}
    (where VBench runs: the clone).
    """

    name: str
    places: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Dimension:
    """One column of VBench-I2V.

    low, high: what its mean is normalised with; weight: in the score it belongs to; images: those of the official
    suite that it goes over; per_video: what a video's own value is divided by to be in [0, 1]; over_frames: VBench
    takes the mean over frames, not videos; packages: importable names it needs beside the common ones.
    """

    name: str
    label: str
    legend: str
    score: Score
    images: Images
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0
    per_video: float = 1.0
    over_frames: bool = False
    packages: tuple[str, ...] = ()
    weights: tuple[Weights, ...] = ()

    def normalised(self, mean: float) -> float:
        """What enters the weighted mean of its score."""
        return (mean - self.low) / (self.high - self.low)


DINO = Weights(
    "DINO ViT-B/16",
    (
        ("{cache}/dino_model/dino_vitbase16_pretrain.pth", "{cache}/dino_model/facebookresearch_dino_main"),
        ("{hub}/checkpoints/dino_vitbase16_pretrain.pth", "{hub}/facebookresearch_dino_main"),
    ),
)
CLIP_B = Weights("CLIP ViT-B/32", (("{cache}/clip_model/ViT-B-32.pt",), ("{home}/.cache/clip/ViT-B-32.pt",)))
CLIP_L = Weights("CLIP ViT-L/14", (("{cache}/clip_model/ViT-L-14.pt",), ("{home}/.cache/clip/ViT-L-14.pt",)))
LAION = Weights("LAION aesthetic", (("{cache}/aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",),))
MUSIQ = Weights("MUSIQ-SPAQ", (("{cache}/pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",),))
AMT = Weights("AMT-S", (("{cache}/amt_model/amt-s.pth",),))
RAFT = Weights("RAFT-things", (("{cache}/raft_model/models/raft-things.pth",),))
DREAMSIM = Weights(
    "DreamSim ensemble",
    (
        (
            "{cwd}/models/ensemble_lora",
            "{cwd}/models/dino_vitb16_pretrain.pth",
            "{cwd}/models/clip_vitb16_pretrain.pth.tar",
            "{cwd}/models/open_clip_vitb16_pretrain.pth.tar",
        ),
    ),
)
COTRACKER = Weights("CoTracker 2", (("{hub}/checkpoints/cotracker2.pth", "{hub}/facebookresearch_co-tracker_main"),))

CAMERA = "camera_motion"
ALL = (
    Dimension(
        "subject_consistency",
        "subject",
        "likeness of the subject between frames (DINO)",
        "quality",
        "subject",
        low=0.1462,
        over_frames=True,
        weights=(DINO,),
    ),
    Dimension(
        "background_consistency",
        "background",
        "likeness of the background between frames (CLIP)",
        "quality",
        "background",
        low=0.2615,
        over_frames=True,
        packages=("clip",),
        weights=(CLIP_B,),
    ),
    Dimension(
        "motion_smoothness",
        "smoothness",
        "how well a frame is interpolated from its neighbours (AMT)",
        "quality",
        "subject",
        low=0.706,
        high=0.9975,
        packages=("omegaconf",),
        weights=(AMT,),
    ),
    Dimension(
        "dynamic_degree",
        "dynamic degree",
        "share of videos that move (RAFT flow, top 5 %)",
        "quality",
        "subject",
        weight=0.5,
        packages=("easydict",),
        weights=(RAFT,),
    ),
    Dimension(
        "aesthetic_quality",
        "aesthetic",
        "LAION's aesthetic predictor on CLIP features",
        "quality",
        "both",
        packages=("clip",),
        weights=(CLIP_L, LAION),
    ),
    Dimension(
        "imaging_quality",
        "imaging",
        "picture quality by MUSIQ",
        "quality",
        "both",
        per_video=100.0,
        packages=("pyiqa", "timm"),
        weights=(MUSIQ,),
    ),
    Dimension(
        "i2v_subject",
        "i2v subject",
        "likeness of the subject to the given image (DINO)",
        "i2v",
        "subject",
        low=0.1462,
        weights=(DINO,),
    ),
    Dimension(
        "i2v_background",
        "i2v background",
        "likeness of the background to the given image (DreamSim)",
        "i2v",
        "background",
        low=0.2615,
        packages=("dreamsim", "peft", "timm", "transformers"),
        weights=(DREAMSIM,),
    ),
    Dimension(
        CAMERA,
        "camera",
        "share of videos that follow the caption's camera motion (CoTracker); AAD-1 does not report it",
        "i2v",
        "none",
        weight=0.1,
        weights=(COTRACKER,),
    ),
    Dimension(
        "temporal_flickering",
        "flicker",
        "1 - mean absolute difference of neighbouring frames / 255; not part of the I2V scores",
        "none",
        "none",
        low=0.6293,
    ),
)
DIMENSIONS: Mapping[str, Dimension] = {dimension.name: dimension for dimension in ALL}
REPORTED = tuple(d.name for d in ALL if d.score != "none" and d.name != CAMERA)  # the paper's eight
COMMON = ("numpy", "torch", "torchvision", "cv2", "PIL", "decord", "tqdm")  # VBench imports them for every dimension
WANTED: Mapping[str, str] = {  # versions that VBench-I2V is known to work with
    "numpy": "<2",
    "setuptools": "<81",
    "transformers": "==4.33.2",
    "timm": "<=1.0.12",
    "dreamsim": "==0.2.1",
    "peft": "==0.10.0",
}
DISTRIBUTIONS: Mapping[str, str] = {  # what is installed for an importable name, where the two differ
    "cv2": "opencv-python",
    "PIL": "pillow",
    "clip": "openai-clip",
}
PACKAGES = tuple(dict.fromkeys([*COMMON, *(p for d in ALL for p in d.packages), *WANTED]))


def chosen(names: Sequence[str]) -> list[Dimension]:
    """The dimensions of these names, each once; raises UserError for a name that is none."""
    for name in names:
        if name not in DIMENSIONS:
            raise UserError(f"there is no VBench-I2V dimension '{name}'{nearest(name, DIMENSIONS)}")
    return [DIMENSIONS[name] for name in dict.fromkeys(names)]
