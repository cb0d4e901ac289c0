"""The speed protocol: that its rows are of what they say, not how fast this machine is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from aad1.cli import main
from aad1.data.world import make_clip
from aad1.evaluation.speed import OTHER, Speed, pass_levels, stream_speeds, to_markdown
from aad1.flow import are_pass_levels
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.streaming import Account, ChunkTime, load_student, load_teacher
from aad1.streaming.accounting import REMEMBERED
from aad1.teacher_sampling import TeacherSampling


def chunk(total: float, frames: int = 16) -> ChunkTime:
    return ChunkTime(frames, denoising=total / 4, decoding=total / 2, total=total)


# --- an account -------------------------------------------------------------------------------


def test_sustained_figures_are_medians_over_the_chunks_after_the_second() -> None:
    account = Account()
    assert account.fps is None
    for total in (100.0, 50.0, 1.0, 2.0, 4.0):
        account.add(chunk(total))
    report = account.report()
    assert (report["chunk_s"], report["denoising_s"], report["decoding_s"]) == (2.0, 0.5, 1.0)
    assert account.fps == 8.0
    assert (account.chunks, account.frames) == (5, 80)


def test_an_endless_session_keeps_its_latest_chunks_alone() -> None:
    account = Account()
    for _ in range(3 * REMEMBERED):
        account.add(chunk(1.0))
    assert (len(account.recent), len(account.settled()), account.chunks) == (REMEMBERED, REMEMBERED, 3 * REMEMBERED)


def test_the_first_frame_is_counted_from_the_opening_once() -> None:
    account = Account(opened=0.0)
    account.add(chunk(1.0))
    first = account.first_frame
    account.add(chunk(1.0))
    assert first is not None
    assert first > 0
    assert account.first_frame == first


# --- rows -------------------------------------------------------------------------------------


def test_pass_levels_are_the_shifted_grid() -> None:
    assert pass_levels(1) == (1.0,)
    assert pass_levels(2) == pytest.approx((1, 5 / 6))
    assert pass_levels(4) == pytest.approx((1, 15 / 16, 5 / 6, 5 / 8))
    assert all(are_pass_levels(pass_levels(n)) for n in range(1, 9))


def test_rows_of_the_students_passes_and_of_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, seen = load_student("tiny", device="cpu"), load_teacher("tiny", "cpu"), []
    forward = CausalWanTransformer3DModel.forward

    def watched(model: CausalWanTransformer3DModel, latents: torch.Tensor, *rest: object, **options: object) -> object:
        seen.append((model is teacher, latents.shape[2]))
        return forward(model, latents, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(CausalWanTransformer3DModel, "forward", watched)
    embedded, encode = list[str](), student.text._encode

    def encoded(texts: list[str]) -> object:
        embedded.extend(texts)
        return encode(texts)

    monkeypatch.setattr(student.text, "_encode", encoded)
    rows = stream_speeds(student, [pass_levels(1), pass_levels(2)], 5, lambda: teacher, TeacherSampling(steps=2))
    assert [(row.name, row.passes) for row in rows] == [("tiny/student", 1), ("tiny/student", 2), ("teacher", 2)]
    assert rows[-1].chunk is None
    assert all(min(row.first_frame, row.denoising, row.decoding, row.fps) > 0 for row in rows)
    assert rows[0].fps == pytest.approx(16 / (rows[0].chunk or 0))
    assert rows[2].fps == pytest.approx(81 / rows[2].first_frame)
    of_teacher, of_student = [n for t, n in seen if t], [n for t, n in seen if not t]
    assert of_teacher == [21] * 2 * 2 * 4  # two steps, guided, one clip before the three that count
    assert of_student == [4] * (4 + 5)  # the second passes: four chunks to warm up, then five
    table = to_markdown(rows)
    assert table.splitlines()[-1].startswith("| teacher | 2 |")
    assert re.search(r"\| 1\.0 \| \d+\.\d\d GiB \|$", table)
    captions = [make_clip("test", scene, 1).caption for scene in (OTHER, 0, 1)]
    assert [text for text in embedded if text] == captions  # each row's own, which no cache had


def test_bench_writes_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    assert main(["bench", "stream", "--chunks", "4", "--passes", "1", "--teacher_steps", "0", "-o", str(out)]) == 0
    [row] = json.loads(out.read_text())
    assert Speed(**row).name == "tiny/student"
    assert "| tiny/student | 1 |" in capsys.readouterr().out
    assert main(["bench", "stream", "--chunks", "1"]) == 2
    assert main(["bench", "steam"]) == 2
