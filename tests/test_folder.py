"""Videos without a truth: what each corruption moves, what is N/A, what is named, what is used again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import corruptions
import numpy as np
import pytest
from conftest import with_student
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from aad1.cli import folder as command
from aad1.cli.folder import EvaluateFolder
from aad1.data.clips import read_whole
from aad1.data.entries import ClipError
from aad1.data.media import VideoWriter, open_image
from aad1.data.world import Clip, make_clip
from aad1.errors import UserError
from aad1.evaluation import folder as evaluation
from aad1.evaluation.folder import MOST_KINDS, FolderEvaluation, find_videos, pooled
from aad1.evaluation.publishing import publish
from aad1.evaluation.report import Report, read_report, to_markdown, write_report
from aad1.measures import motion, video
from aad1.measures.appearance import flicker, grid_peak, sharpness, similarity
from aad1.measures.video import MEASURES, OF_ANY_KIND, STANDS_STILL, VideoMeasures, measure_video
from aad1.streaming import load_student

Frames = NDArray[np.uint8]
needs_opencv = pytest.mark.skipif(not motion.has_opencv(), reason="optical flow needs OpenCV (the eval extra)")
CHUNK, FPS = corruptions.CHUNK, 16
STATIC = {"dynamic": 0.0, "motion": 0.0, "static": 1.0}


# --- corruptions that the world's own measures have no need of --------------------------------


def flickers(clip: Clip) -> Frames:
    """Brightness alternates by 3 grey levels."""
    sign = np.where(np.arange(len(clip.frames)) % 2, -3.0, 3.0)
    return np.clip(clip.frames + sign[:, None, None, None], 0, 255).astype(np.uint8)


def grid(clip: Clip) -> Frames:
    """Each token is off by about 2 grey levels of its own."""
    tokens = np.random.default_rng(0).normal(0, 2, (4, 4)).repeat(16, 0).repeat(16, 1)
    return np.clip(np.round(clip.frames + tokens[None, :, :, None]), 0, 255).astype(np.uint8)


def becomes_another(clip: Clip) -> Frames:
    """Another scene from the middle on."""
    half, other = len(clip.frames) // 2, make_clip("test", 7, len(clip.frames))
    return np.concatenate([clip.frames[:half], other.frames[half:]])


def still_but_brighter(clip: Clip) -> Frames:
    """A frozen picture that grows brighter by a quarter of full scale."""
    ramp = np.linspace(0, 60, len(clip.frames))[:, None, None, None]
    return np.clip(clip.frames[:1] + ramp, 0, 255).astype(np.uint8)


# What true clips read, pooled: (lowest, highest).
CALM = {
    "dynamic": (1, 1),
    "motion": (5, 6.6),
    "retention": (0.75, 1.25),
    "static": (0, 0),
    "luma_slope": (-0.01, 0.01),
    "saturation_slope": (-0.01, 0.01),
    "sharpness_slope": (-0.3, 0.3),
    "flicker": (0, 0.12),
    "seam": (0.85, 1.2),
    "seam_luma": (0.75, 1.4),
    "similarity": (0.2, 0.45),
    "grid_peak": (0.9, 1.2),
}
# Of each corruption its own measures, as (lowest, highest), and those that it moves because they mean it too.
EFFECTS: dict[str, tuple[Callable[[Clip], Frames], dict[str, tuple[float, float]], set[str]]] = {
    "truth": (lambda clip: clip.frames, {}, set()),
    "frozen second half": (corruptions.frozen_second_half, {"retention": (0, 0.02)}, {"motion", "seam"}),
    "half speed": (corruptions.half_speed, {"motion": (2.4, 3.4)}, {"dynamic"}),
    "decaying speed": (corruptions.decaying_speed, {"retention": (0.15, 0.35)}, {"motion", "seam"}),
    "over-exposure": (
        corruptions.over_exposure,
        {"luma_slope": (0.4, 0.65)},
        {"saturation_slope", "flicker", "seam_luma"},
    ),
    "desaturation": (corruptions.desaturation, {"saturation_slope": (-0.15, -0.04)}, set()),
    "blur": (corruptions.blur, {"sharpness_slope": (-2.6, -1.5)}, set()),
    "flicker": (flickers, {"flicker": (2.9, 3.1)}, set()),
    "jumps at seams": (corruptions.jumps_at_seams, {"seam": (2, 5)}, {"motion", "seam_luma"}),
    "brightness at seams": (corruptions.brightness_at_seams, {"seam_luma": (20, 60)}, {"seam", "flicker"}),
    "grid": (grid, {"grid_peak": (2, 6)}, set()),
    "another scene": (becomes_another, {"similarity": (-0.3, 0.15)}, set(CALM) - {"static", "grid_peak"}),
}


@cache
def clips() -> tuple[Clip, ...]:
    return tuple(make_clip("test", index, 49) for index in range(4))


def measured(corrupt: Callable[[Clip], Frames]) -> list[VideoMeasures]:
    return [measure_video(corrupt(clip), FPS, CHUNK) for clip in clips()]


@needs_opencv
@pytest.mark.parametrize("name", EFFECTS)
def test_a_corruption_moves_its_own_measure_and_leaves_the_others_alone(name: str) -> None:
    corrupt, moves, means_it_too = EFFECTS[name]
    found = pooled(measured(corrupt), list(CALM))
    for measure, calm in CALM.items():
        low, high = moves.get(measure, calm)
        value = found[measure]
        if measure in moves or measure not in means_it_too:
            assert value is not None, measure
            assert low <= value.mean <= high, f"{measure} {value.mean}"


@needs_opencv
@pytest.mark.parametrize("corrupt", [corruptions.frozen, still_but_brighter])
def test_a_clip_that_stands_still_has_motion_alone(corrupt: Callable[[Clip], Frames]) -> None:
    for found in measured(corrupt):
        assert {name: round(found.value(name) or 0, 2) for name in STATIC} == pytest.approx(STATIC, abs=0.2)
        assert found.value("grid_peak") is not None
        others = {m.name for m in MEASURES} - STATIC.keys() - {"grid_peak"}
        assert set(found.gaps) == others
        assert set(found.gaps.values()) == {STANDS_STILL}
        assert all(under == 0 for name in ("sharpness", "similarity", "luma") for _, under in found.curves[name])


@needs_opencv
def test_a_small_shape_on_a_large_still_picture_is_motion_and_grain_is_none() -> None:
    random = np.random.default_rng(0)
    soft = Image.fromarray(random.integers(60, 200, (24, 40, 3)).astype(np.uint8)).resize((400, 240))
    still = np.repeat(np.asarray(soft)[None], 9, 0)
    shape = still.copy()
    for i, frame in enumerate(shape):
        frame[100:130, 100 + 3 * i : 130 + 3 * i] = 250
    grain = np.clip(still + random.normal(0, 2, still.shape), 0, 255).astype(np.uint8)
    assert not video.movement(shape, FPS).static
    assert video.movement(grain, FPS).static


def test_curves_are_by_chunk_or_by_second() -> None:
    found = measure_video(clips()[0].frames, FPS, CHUNK)
    assert [len(curve) for curve in found.curves.values()] == [3] * 5
    assert measure_video(clips()[0].frames, 24).part == 24
    retention = [over / under for over, under in found.curves["retention"]]
    assert np.mean(retention) == pytest.approx(1, abs=0.4)


@pytest.mark.parametrize(("size", "value"), [((64, 64), 1.0), ((40, 64), 1.0), ((63, 63), np.nan), ((20, 20), np.nan)])
def test_a_grid_needs_four_periods_of_one_side(size: tuple[int, int], value: float) -> None:
    plain = np.full((2, *size, 3), 90, np.uint8)
    assert grid_peak(plain) == pytest.approx(value, nan_ok=True)
    assert grid_peak(plain, 8) == pytest.approx(
        value if min(size) > 31 or not np.isnan(value) else np.nan, nan_ok=True
    ) or (size == (63, 63))


def test_the_grid_is_found_at_its_own_period() -> None:
    random = np.random.default_rng(1)
    picture = 128 + 300 * ndimage.gaussian_filter(random.normal(0, 1, (240, 240, 3)), (4, 4, 0))
    tokens = random.normal(0, 3, (24, 24, 1)).repeat(10, 0).repeat(10, 1)
    plain, gridded = (np.clip(np.round(p), 0, 255).astype(np.uint8)[None] for p in (picture, picture + tokens))
    assert grid_peak(gridded, 10) > 2
    for frames, period in ((plain, 10), (plain, 16), (gridded, 16)):
        assert 0.7 < grid_peak(frames, period) < 1.3


def test_what_shows_nothing_has_no_sharpness_and_no_similarity() -> None:
    plain = np.full((9, 16, 16, 3), 90, np.uint8)
    assert np.isnan(sharpness(plain)).all()
    assert np.isnan(similarity(plain)).all()
    assert not flicker(plain).any()
    seen = np.concatenate([clips()[0].frames[:3], np.full((2, 64, 64, 3), 9, np.uint8)])
    assert similarity(seen)[0] == pytest.approx(1)
    assert not similarity(seen)[3:].any()


def test_short_clips_have_gaps_and_no_numbers() -> None:
    found = measure_video(clips()[0].frames[:5], FPS, CHUNK)
    assert found.gaps["retention"] == found.gaps["luma_slope"] == video.TOO_SHORT
    assert found.gaps["seam"] == video.ONE_CHUNK
    assert measure_video(clips()[0].frames, FPS).gaps["seam"] == video.NO_CHUNKS
    if motion.has_opencv():
        assert found.gaps["dynamic"] == video.TOO_SHORT_FOR_VBENCH


def test_without_opencv_flow_is_missing_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "has_opencv", lambda: False)
    found = measure_video(clips()[0].frames, FPS, CHUNK)
    assert found.gaps == dict.fromkeys(("dynamic", "motion"), video.NO_OPENCV)
    assert found.value("retention") == pytest.approx(1, abs=0.4)
    assert measure_video(corruptions.frozen(clips()[0]), FPS).value("static") == 1


# --- folders ----------------------------------------------------------------------------------


def write(path: Path, frames: Frames, fps: float = FPS) -> Path:
    with VideoWriter(path, fps=fps) as out:
        out.write(frames)
    return path


def evaluate(out: Path, *folders: Path) -> Report:
    report = FolderEvaluation(out).run([find_videos(folder.name, folder) for folder in folders], "test")
    write_report(report, out)
    return read_report(out)


@pytest.fixture(scope="module")
def true(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two true clips, one of them with a caption."""
    folder = tmp_path_factory.mktemp("videos") / "true"
    for index, clip in enumerate(clips()[:2]):
        write(folder / f"{index}.mkv", clip.frames)
    (folder / "0.txt").write_text("a caption\n")
    return folder


@pytest.fixture(scope="module")
def once(true: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("once")
    evaluate(out, true)
    return out


def test_a_report_has_tables_curves_and_clips(once: Path, true: Path) -> None:
    report = read_report(once)
    assert [table.title for table in report.tables] == ["49 frames of 64x64 at 16 a second"]
    assert report.tables[0].clips == {"true": 2}
    assert len(report.curves) == (5 if motion.has_opencv() else 4)
    assert [clip.caption for clip in report.clips] == ["a caption", ""]
    assert all((once / clip.video).resolve() == true / f"{clip.name}.mkv" for clip in report.clips)
    assert "not VBench numbers" in to_markdown(report)
    assert report.missing == [f"true: seam, seam-luma: N/A for 2 of 2 clips: {video.NO_CHUNKS}"]


def test_the_same_videos_give_the_same_numbers(once: Path, true: Path, tmp_path: Path) -> None:
    again = evaluate(tmp_path, true)
    assert (again.tables, again.curves) == (read_report(once).tables, read_report(once).curves)


def test_only_what_is_new_or_changed_is_measured(
    once: Path, true: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(once, tmp_path / "out")
    shutil.copytree(true, tmp_path / "true")
    first, read = evaluate(tmp_path / "out", tmp_path / "true"), list[str]()

    def watched(path: Path) -> tuple[Frames, float]:
        read.append(path.name)
        return read_whole(path)

    monkeypatch.setattr(evaluation, "read_whole", watched)
    assert evaluate(tmp_path / "out", tmp_path / "true") == first
    assert read == []
    os.utime(tmp_path / "true" / "1.mkv", (1, 1))
    assert evaluate(tmp_path / "out", tmp_path / "true") == first
    assert read == ["1.mkv"]
    (tmp_path / "out" / "measured" / "true.json").write_text("{torn")
    assert evaluate(tmp_path / "out", tmp_path / "true") == first
    assert sorted(read) == ["0.mkv", "1.mkv", "1.mkv"]


def test_what_was_measured_before_an_interruption_is_kept(
    true: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path) -> tuple[Frames, float]:
        if path.name == "1.mkv":
            raise KeyboardInterrupt
        return read_whole(path)

    monkeypatch.setattr(evaluation, "read_whole", interrupted)
    with pytest.raises(KeyboardInterrupt):
        FolderEvaluation(tmp_path, workers=1).run([find_videos("true", true)], "test")
    assert list(json.loads((tmp_path / "measured" / "true.json").read_text())["clips"]) == ["0"]


def test_what_cannot_be_measured_is_named_and_the_rest_goes_on(true: Path, tmp_path: Path) -> None:
    mine, empty = tmp_path / "mine", tmp_path / "empty"
    shutil.copytree(true, mine)
    empty.mkdir()
    (mine / "torn.mp4").write_bytes((mine / "0.mkv").read_bytes()[:300])
    (mine / "nothing.mp4").touch()
    (mine / "notes.pdf").write_bytes(b"no video")
    write(mine / "one.mkv", clips()[0].frames[:1])
    report = evaluate(tmp_path / "out", mine, empty)
    assert report.tables[0].clips == {"mine": 2}
    words = ("1 files in", "nothing.mp4: it cannot be", "one.mkv: it has one frame", "torn.mp4: it", "holds no videos")
    for word in words:
        assert sum(word in line for line in report.missing) == 1, report.missing
    assert "notes.pdf" in report.missing[0]
    assert len(report.missing) == len(words) + 1
    assert evaluate(tmp_path / "out", mine, empty) == report


def test_a_file_that_is_cut_off_is_no_shorter_clip(tmp_path: Path) -> None:
    """A Matroska file whose end is lost decodes without a word."""
    rng = np.random.default_rng(0)  # noise, so that its frames lie all over the file
    whole = write(tmp_path / "whole.mkv", rng.integers(0, 255, (49, 64, 64, 3), np.uint8))
    assert len(read_whole(whole)[0]) == 49
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ClipError, match=r"it is cut off: \d\.\d s of the 3\.1 s that its header promises"):
        read_whole(cut)


def test_frames_that_are_not_evenly_spaced_are_refused(tmp_path: Path) -> None:
    """Frames that were lost in the middle, or a variable rate: measures take one step of time for all."""
    with av.open(str(tmp_path / "hole.mp4"), "w") as out:
        stream = out.add_stream("h264", rate=16)
        stream.width = stream.height = 64
        for index in (*range(10), *range(20, 30)):
            frame = av.VideoFrame.from_ndarray(clips()[0].frames[index])
            frame.pts, frame.time_base = index, Fraction(1, 16)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(ClipError, match=r"two frames are 0\.69 s apart where 0\.06 s is usual"):
        read_whole(tmp_path / "hole.mp4")


def test_one_clip_has_no_interval_and_that_is_said(true: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(true / "0.mkv", alone)
    publish(evaluate(tmp_path / "out", alone), tmp_path / "out")
    assert "alone: one clip, so the brackets hold no interval" in (tmp_path / "out" / "report.md").read_text()


def test_a_clip_that_stops_early_retains_nothing() -> None:
    frames = clips()[0].frames
    still = np.concatenate([frames[:13], np.repeat(frames[12:13], 36, axis=0)])
    found = measure_video(still, FPS, CHUNK)
    assert found.value("retention") == pytest.approx(0, abs=0.01)


def test_a_fault_in_one_clip_costs_that_clip(true: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(path: Path) -> tuple[Frames, float]:
        if path.name == "1.mkv":
            raise MemoryError
        return read_whole(path)

    monkeypatch.setattr(evaluation, "read_whole", faulty)
    report = evaluate(tmp_path, true)
    assert report.tables[0].clips == {"true": 1}
    assert "1.mkv: MemoryError()" in report.missing[0]
    monkeypatch.setattr(evaluation, "MOST_HELD", 1000)
    with pytest.raises(UserError, match=r"nothing could be measured; .*its frames take"):
        evaluate(tmp_path / "again", true)


def test_unequal_clips_are_not_averaged_together(tmp_path: Path) -> None:
    frames = clips()[0].frames
    for length in range(9, 9 + MOST_KINDS):
        write(tmp_path / "a" / f"{length}.mkv", frames[:length])
    write(tmp_path / "a" / "rate.mkv", frames[:9], 8)
    write(tmp_path / "b" / "9.mp4", frames[:9])
    report = evaluate(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    together, first, *others = report.tables
    assert set(together.rows["a"]) == set(OF_ANY_KIND)
    assert together.clips == {"a": MOST_KINDS + 1, "b": 1}
    assert first.clips == {"a": 1, "b": 1}
    assert first.title == "9 frames of 64x64 at 16 a second"
    assert len(others) == MOST_KINDS - 1
    assert any("1 more kinds (1 clips: 14 frames" in line for line in report.missing)
    assert any(f"{MOST_KINDS} clips are not in every folder" in line for line in report.notes)
    assert len(report.clips) == MOST_KINDS + 2


def test_names_of_clips_pair_across_suffixes_and_stay_apart_within_a_folder(tmp_path: Path) -> None:
    for name in ("a.mkv", "b.mkv", "b.mp4"):
        write(tmp_path / name, clips()[0].frames[:2])
    assert [clip.name for clip in find_videos("x", tmp_path).clips] == ["a", "b.mkv", "b.mp4"]


def test_a_grid_is_looked_for_where_enlarged_pixels_have_it(tmp_path: Path) -> None:
    frames = grid(clips()[0])[:3]
    with VideoWriter(tmp_path / "a" / "x.mkv", fps=FPS, scale=3, metadata={"aad1": "1", "size": [64, 64]}) as out:
        out.write(frames)
    values = evaluate(tmp_path / "out", tmp_path / "a").clips[0].values
    assert (values["grid_peak"] or 0) > 1.5


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Report]:
    """The reports that commands finish with, instead of pages."""
    found = list[Report]()
    monkeypatch.setattr(command, "finish", lambda report, folder, shown: found.append(report))
    return found


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_student(tiny_folder, tmp_path_factory.mktemp("folder") / "wan", size=(32, 32))


def test_a_model_is_measured_as_its_saved_videos_are(
    model: Path, true: Path, tmp_path: Path, reports: list[Report]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index, clip in enumerate(clips()[:2]):
        Image.fromarray(clip.frames[0]).save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text("a red disc moves left slowly")
    (pictures / "2.png").write_bytes(b"no picture")
    Image.fromarray(clips()[2].frames[0]).save(pictures / "3.png")
    (pictures / "2.txt").write_text("a red disc")
    asked = EvaluateFolder((f"t={true}",), str(model), images=pictures, seconds=1, out=tmp_path / "out", device="cpu")
    asked.run([])
    report = reports[0]
    assert report.models == ["t", "wan"]
    assert report.tables[1].clips == {"wan": 2}
    assert report.tables[1].title == "17 frames of 32x32 at 16 a second"
    assert [line.partition(":")[0] for line in report.missing[:2]] == ["wan", "wan"]
    assert "2.png cannot be read" in report.missing[0]
    assert "3.png has no prompt" in report.missing[1]

    saved = tmp_path / "out" / "videos" / "wan"
    live = load_student(model, device="cpu").session(open_image(pictures / "0.png"), "a red disc moves left slowly")
    assert np.array_equal(np.concatenate(list(live.frames(17))), read_whole(saved / "0.mkv")[0])
    EvaluateFolder((str(saved),), chunk_frames=16, out=tmp_path / "again").run([])
    assert [clip.values for clip in reports[1].clips] == [c.values for c in report.clips if c.model == "wan"]

    made = {path: path.stat().st_mtime_ns for path in saved.glob("*.mkv")}
    asked.run([])
    assert made == {path: path.stat().st_mtime_ns for path in saved.glob("*.mkv")}
    assert reports[2].tables == report.tables


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to evaluate"),
        ({"model": "tiny"}, "--images is missing"),
        ({"images": Path("x"), "videos": (".",)}, "--model is missing"),
        ({"videos": (".",), "prompt": "x"}, "are for what a student makes"),
        ({"videos": (".",), "chunk_frames": 1}, "--chunk_frames 1; use 2"),
        ({"videos": (".",), "grid_period": 2}, "--grid_period 2; use 3"),
        ({"videos": ("nowhere",)}, "nowhere is no folder"),
        ({"videos": (".x=.",)}, "'.x' is no name for a row"),
        ({"videos": ("a=tests", "a=tests")}, "two folders are named a"),
    ],
)
def test_mistakes_are_said_before_anything_is_made(
    options: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        EvaluateFolder(**{"out": tmp_path / "out", **options}).run([])  # type: ignore[arg-type]
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_pictures_that_cannot_be_animated_are_a_mistake(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has nothing to animate"):
        EvaluateFolder(model=str(model), images=tmp_path, out=tmp_path / "out", device="cpu").run([])
    with pytest.raises(UserError, match="does not exist"):
        EvaluateFolder(model=str(model), images=tmp_path / "no", out=tmp_path / "out", device="cpu").run([])
