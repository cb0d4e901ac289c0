"""Sessions: deterministic, of constant memory, equal to the rollout they stand for; and the generate command."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import build_tiny_transformer, with_student
from numpy.typing import NDArray
from PIL import Image

from aad1.cli import main
from aad1.data.media import fit_image, open_image, read_frames, read_metadata, tensor_to_video, video_to_tensor
from aad1.data.world import make_clip
from aad1.errors import UserError
from aad1.evaluation.models import student_samples, teacher_samples, vae_samples
from aad1.evaluation.world import evaluate, protocol_clips
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.vae import decode_video, encode_image
from aad1.rollout import roll_clip
from aad1.streaming import (
    StreamNoise,
    Student,
    check_passes,
    enlargement,
    frame_count,
    load_student,
    picture_size,
    record,
)
from aad1.teacher_sampling import TeacherSampling

CLIP = make_clip("test", 0, 17)
SMALL = (32, 32)


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_student(tiny_folder, tmp_path_factory.mktemp("streaming") / "wan", size=(64, 64))


@pytest.fixture(scope="module")
def student(folder: Path) -> Student:
    return load_student(folder, device="cpu")


@pytest.fixture
def held(student: Student, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of the context that each chunk was made over, in latent frames; it grows with the chunks."""
    lengths: list[int] = []
    advance = student.generator.advance

    def watched(context: Any, *rest: Any) -> Any:
        lengths.append(context.frames)
        return advance(context, *rest)

    monkeypatch.setattr(student.generator, "advance", watched)
    return lengths


def video(student: Student, total: int, **options: Any) -> NDArray[np.uint8]:
    session = student.session(CLIP.frames[0], CLIP.caption, size=SMALL, **options)
    return np.concatenate(list(session.frames(total)))


def close(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Equal but for rounding: another batch or grouping changes a float's last bits."""
    return one.shape == other.shape and int(np.abs(one.astype(int) - other.astype(int)).max()) <= 1


# --- sessions ---------------------------------------------------------------------------------


def test_a_short_video_is_the_beginning_of_a_long_one(student: Student) -> None:
    short, long = video(student, 32, seed=5), video(student, 80, seed=5)
    assert short.shape == (32, *SMALL, 3)
    np.testing.assert_array_equal(short, long[:32])


def test_the_seed_decides(student: Student) -> None:
    assert (video(student, 33, seed=1) != video(student, 33, seed=2)).any()


def test_chunks_are_the_image_and_sixteen_frames_then_sixteen_each(student: Student) -> None:
    chunks = student.session(CLIP.frames[0], CLIP.caption, size=SMALL).chunks()
    assert [len(frames) for frames in islice(chunks, 3)] == [17, 16, 16]


@pytest.mark.parametrize("passes", [(1.0,), (1.0, 0.8333)])
def test_streaming_equals_rolling_out_and_decoding_the_same_noise(student: Student, passes: tuple[float, ...]) -> None:
    generator, vae = student.generator, student.vae
    with torch.no_grad():
        image = encode_image(vae, video_to_tensor(fit_image(CLIP.frames[0], SMALL)[None, None]))
        chunks = torch.cat(list(islice(StreamNoise([7], image, 4), 3)), dim=2)
        again: Iterator[StreamNoise] = (noise for noise in _noises(7, image))
        text = student.text.embed([CLIP.caption])
        renoise = (lambda like: next(again).again(like)) if len(passes) > 1 else torch.randn_like
        latents = roll_clip(generator, image, text, chunks, levels=passes, renoise=renoise)
        whole = tensor_to_video(decode_video(vae, latents, frames_per_call=None))[0]
    assert close(video(student, 49, seed=7, passes=passes), whole)


def _noises(seed: int, like: torch.Tensor) -> Iterator[StreamNoise]:
    """A stream standing at chunk 0, then one at chunk 1, and so on."""
    for chunk in count():
        noise = StreamNoise([seed], like, 4)
        for _ in islice(noise, chunk + 1):
            pass
        yield noise


def test_the_context_does_not_grow(student: Student, held: list[int]) -> None:
    list(student.session(CLIP.frames[0], CLIP.caption, size=SMALL).frames(17 + 16 * 6))
    span = student.generator.span
    assert max(held) == held[-1] == span.sink + span.window - span.chunk


def test_gradients_stay_as_the_consumer_has_them(student: Student) -> None:
    modes = []
    for _ in islice(student.session(CLIP.frames[0], CLIP.caption, size=SMALL).chunks(), 2):
        modes.append(torch.is_grad_enabled())
    assert modes == [True, True]
    samples = student_samples(student.generator, student.vae, student.text, [CLIP])
    assert [torch.is_grad_enabled() for _ in samples] == [True]


def test_a_new_prompt_changes_what_comes_after_it(student: Student) -> None:
    session = student.session(CLIP.frames[0], CLIP.caption, size=SMALL)
    chunks = session.chunks()
    first = next(chunks)
    session.switch("a blue square moves left fast")
    rest = next(chunks)
    plain = video(student, 33)
    np.testing.assert_array_equal(first, plain[:17])
    assert (rest != plain[17:]).any()


def test_a_session_is_cancelled_before_its_first_chunk_and_after(student: Student, tmp_path: Path) -> None:
    session = student.session(CLIP.frames[0], CLIP.caption, size=SMALL)
    chunks = session.chunks()
    session.cancel()
    assert list(chunks) == []
    made = record(session, 160, tmp_path / "a.mp4", advance=lambda frames: session.cancel())
    assert made.frames == len(read_frames(made.path, 1000)) == 17


@pytest.mark.parametrize("overlap", [False, True])
def test_each_chunk_says_its_own_prompt(student: Student, overlap: bool) -> None:
    session = replace(student, overlap=overlap).session(CLIP.frames[0], CLIP.caption, size=SMALL)
    assert session.switch("a red disc") == 0
    plain, switched, shown = student.session(CLIP.frames[0], "a red disc", size=SMALL), -1, []
    for index, (frames, same) in enumerate(zip(session.chunks(), plain.chunks(), strict=True)):
        shown.append(session.shown)
        assert (shown[-1] == "a red disc") == (index < switched or switched < 0)
        assert (shown[-1] == "a red disc") == bool((frames == same).all())
        if index == 2:
            switched = session.switch("a blue square moves left fast")
            assert session.prompt == "a blue square moves left fast"
        if index == 5:
            break
    assert switched == (4 if overlap else 3)


def test_any_picture_is_cut_to_the_video(student: Student) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (91, 150, 3), dtype=np.uint8)
    session = student.session(picture, "a red disc", size=(32, 48))
    np.testing.assert_array_equal(session.image, fit_image(picture, (32, 48)))
    assert next(session.chunks()).shape == (17, 32, 48, 3)


def test_the_size_is_the_students_own_else_the_images(student: Student) -> None:
    unsized = build_tiny_transformer(CausalWanTransformer3DModel)
    assert picture_size(student.generator, student.vae, (200, 300)) == (64, 64)
    assert picture_size(unsized, student.vae, (200, 300)) == (192, 288)
    assert picture_size(unsized, student.vae, (5, 300)) == (16, 288)
    assert picture_size(unsized, student.vae, (3000, 300)) == (1024, 288)  # 64 rotary positions
    with pytest.raises(UserError, match="multiple of 16"):
        picture_size(student.generator, student.vae, (64, 64), (64, 72))


@pytest.mark.parametrize("passes", [(), (0.9,), (1.0, 1.0), (1.0, 0.5, 0.6), (1.0, 0.0)])
def test_passes_fall_from_one(passes: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="begin at 1"):
        check_passes(passes)


def test_lengths_and_enlargements() -> None:
    assert [frame_count(2, 16), frame_count(0.001, 16), frame_count(1.03, 30)] == [32, 1, 31]
    assert [enlargement((64, 64)), enlargement((480, 832))] == [6, 1]


def test_a_student_is_found_in_the_folder_or_by_path(folder: Path) -> None:
    by_path = load_student(folder, student=str(folder / "student"), device="cpu", dtype=torch.bfloat16)
    assert by_path.generator.dtype == torch.bfloat16
    assert next(by_path.session(CLIP.frames[0], CLIP.caption).chunks()).shape == (17, 64, 64, 3)
    with pytest.raises(UserError, match="no student 'pupil': distil one"):
        load_student(folder, student="pupil", device="cpu")


def test_warming_up_sees_every_length_of_the_context(student: Student, held: list[int]) -> None:
    student.warm_up()
    lengths, warm = set(held), len(held)
    assert warm == student.warming
    list(student.session(CLIP.frames[0], CLIP.caption).frames(17 + 16 * 6))
    assert set(held[warm:]) == lengths


def test_a_compiled_student_makes_the_same_video_and_is_compiled_when_it_is_warm(folder: Path) -> None:
    plain, compiled = (load_student(folder, device="cpu") for _ in range(2))
    graphs = 0

    def counting(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    compiled.generator.compile_blocks(backend=counting)  # type: ignore[arg-type]
    compiled.warm_up(SMALL)
    warm = graphs
    assert 0 < warm <= compiled.warming  # one for each length of the context, whatever the number of blocks
    assert close(video(compiled, 81), video(plain, 81))
    assert graphs == warm


def test_a_compiler_that_is_not_there_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nonexistent"))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    student = load_student(folder, device="cpu", compiled=True)
    with pytest.raises(UserError, match=r"torch.compile does not work here \(.*compiler"):
        student.warm_up(SMALL)


# --- rows of evaluation -----------------------------------------------------------------------


def test_student_rows_do_not_depend_on_the_batch_and_are_what_sessions_stream(student: Student) -> None:
    clips = list(protocol_clips(21, 3))
    parts = student.generator, student.vae, student.text
    together, alone = (list(student_samples(*parts, clips, batch=size)) for size in (3, 1))
    for a, b, clip in zip(together, alone, clips, strict=True):
        assert close(a.frames, b.frames)
        assert a.truth is clip.truth
        assert a.image_given
    session = student.session(clips[2].frames[0], clips[2].caption, seed=2)
    assert close(together[2][0], np.concatenate(list(session.frames(21))))


def test_long_clips_by_the_same_function(student: Student) -> None:
    [(frames, truth, _)] = student_samples(student.generator, student.vae, student.text, protocol_clips(97, 1))
    assert len(frames) == 97 == truth.positions.shape[1]


def test_teacher_and_truth_through_the_vae(folder: Path, student: Student) -> None:
    clips, parts = list(protocol_clips(17, 3)), (student.generator, student.vae, student.text)
    sampling = TeacherSampling(steps=3, shift=5.0, guidance=3.0, churn=0.5)
    together, alone = (list(teacher_samples(*parts, clips, sampling, batch=size)) for size in (2, 1))
    assert all(close(a.frames, b.frames) for a, b in zip(together, alone, strict=True))
    assert not any(sample.image_given for sample in together)
    through = list(vae_samples(student.vae, clips))
    assert not close(together[0][0][:1], through[0][0][:1])  # it drew its own first frame
    given = list(teacher_samples(*parts, clips, replace(sampling, clean_image=True)))
    assert all(close(a.frames[:1], b.frames[:1]) and a.image_given for a, b in zip(given, through, strict=True))
    assert evaluate("truth_vae", through, with_flow=False).clips["all"] == 3


# --- the command line -------------------------------------------------------------------------


@pytest.fixture
def still(tmp_path: Path) -> Path:
    Image.fromarray(CLIP.frames[0]).save(tmp_path / "still.png")
    return tmp_path / "still.png"


def generate(folder: Path, still: Path, out: Path, *options: str) -> int:
    words = ["generate", "--model", str(folder), "--image", str(still), "--prompt", CLIP.caption, "-o", str(out)]
    return main([*words, "--device", "cpu", "--seconds", "1.5", *options])


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.webp", "frames"])
def test_generate_writes_every_format(
    folder: Path, still: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / name
    assert generate(folder, still, out, "--seed", "4", "--scale", "2") == 0
    assert _frames(out) == (24, (128, 128))
    held = read_metadata(out)
    assert (held["prompt"], held["seed"], held["size"]) == (CLIP.caption, 4, [64, 64])
    said = capsys.readouterr().out
    assert f"wrote {out}: 24 frames, 1.5 s" in said
    assert "first frame after" in said


def _frames(path: Path) -> tuple[int, tuple[int, int]]:
    if path.is_dir():
        files = sorted(path.glob("*.png"))
        return len(files), Image.open(files[0]).size
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            pictures = list(container.decode(video=0))
            return len(pictures), (pictures[0].width, pictures[0].height)
    with Image.open(path) as picture:
        return getattr(picture, "n_frames", 1), picture.size


def test_small_pictures_are_enlarged_by_default(folder: Path, still: Path, tmp_path: Path) -> None:
    assert generate(folder, still, tmp_path / "a.mp4") == 0
    assert _frames(tmp_path / "a.mp4")[1] == (384, 384)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seconds", "0"], "above 0"),
        (["--seconds", "nan"], "above 0"),
        (["--seconds", "inf"], "above 0"),
        (["--seconds", "1e30"], "up to 62500000"),
        (["--seconds", "1e308"], "up to 62500000"),
        (["--seconds", "4000", "-o", "clip.gif"], "64000 frames of clip.gif are 26.4 GiB"),
        (["--device", "meta"], "not available"),
        (["--fps", "0"], "fps 0"),
        (["--prompt", "a red elephant"], "elephant"),
        (["--image", "nowhere.png"], "does not exist"),
        (["--size", "60", "64"], "multiple of 16"),
        (["--size", "32768", "64"], "too large for this model: at most 1024x1024"),
        (["--scale", "10000"], "use at most 255"),
        (["--passes", "0.5"], "begin at 1"),
        (["--seed", "-1"], "negative"),
        (["--scale", "0"], "scale 0"),
        (["--student", "pupil"], "no student"),
        (["--device", "abacus"], "not available"),
        (["--sed", "1"], "did you mean '--seed'"),
        (["-o", "clip.avi"], ".mp4"),
        (["-o", "/proc/nowhere/clip.mp4"], "cannot write"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, still: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(folder, still, tmp_path / "clip.mp4", *options) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not list(tmp_path.glob("*.mp4"))


def test_without_an_image_it_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "a red disc"]) == 2
    assert "aad1 world-image 7" in capsys.readouterr().err


def test_world_image_writes_a_still_and_its_caption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a" / "x.png"
    assert main(["world-image", "7", "-o", str(out)]) == 0
    clip = make_clip("test", 7, 1)
    np.testing.assert_array_equal(open_image(out), clip.frames[0])
    assert clip.caption in capsys.readouterr().out
    for words in (["--", "-1"], ["7", "--split", "tst"], ["7", "-o", str(tmp_path / "x.nothing")]):
        assert main(["world-image", *words]) == 2
