"""What only a GPU can show: streams, events, and half precision."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from aad1.data.world import make_clip
from aad1.streaming import Session, load_student

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none"),
]
CLIP, CHUNKS = make_clip("test", 0, 1), 6


def played(**options: object) -> tuple[NDArray[np.uint8], Session]:
    student = load_student("tiny", device="cuda", **options)  # type: ignore[arg-type]
    student.warm_up()
    session = student.session(CLIP.frames[0], CLIP.caption, seed=3)
    return np.concatenate(list(islice(session.chunks(), CHUNKS))), session


def test_overlapped_decoding_is_the_same_video_and_its_times_are_apart() -> None:
    plain, _ = played(dtype=torch.float32, overlap=False)
    overlapped, session = played(dtype=torch.float32, overlap=True)
    assert np.abs(plain.astype(int) - overlapped).max() <= 1
    assert all(time.decoding > 0 and time.denoising > 0 for time in session.account.recent)
    assert session.account.median("decoding") < 2 * session.account.median("total")


def test_a_gpu_makes_the_video_of_a_cpu() -> None:
    student = load_student("tiny", device="cpu")
    chunks = student.session(CLIP.frames[0], CLIP.caption, seed=3).chunks()
    ours = np.concatenate(list(islice(chunks, CHUNKS)))
    assert np.abs(ours.astype(int) - played(dtype=torch.float32)[0]).mean() < 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_begins_like_full_precision(dtype: torch.dtype) -> None:
    full, half = played(dtype=torch.float32)[0], played(dtype=dtype)[0]
    assert np.abs(full[:17].astype(int) - half[:17]).mean() < 4


def test_a_compiled_student_makes_the_same_video() -> None:
    plain, compiled = (played(dtype=torch.float32, compiled=compiled)[0] for compiled in (False, True))
    assert np.abs(plain.astype(int) - compiled).mean() < 2
