"""Pictures of every kind come in upright and in sRGB; videos go out whole or not at all."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from aad1.data import media
from aad1.data.clips import read_clip
from aad1.data.entries import ClipFile
from aad1.data.media import (
    VideoWriter,
    fit_image,
    open_image,
    read_frames,
    read_metadata,
    tensor_to_video,
    video_to_tensor,
)
from aad1.errors import UserError

NOTE = {"prompt": 'a réd disc, "fast"', "seed": 3}


def ramp(frames: int = 5, height: int = 32, width: int = 48) -> NDArray[np.uint8]:
    """A smooth video that brightens over time, [frames, height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    t = np.arange(frames)[:, None, None]
    planes = [60 + 2 * y + 0 * t, 40 + 2 * x + 0 * t, 80 + 10 * t + 0 * x]
    return np.stack(np.broadcast_arrays(*planes), axis=-1).astype(np.uint8)


def corners(image: NDArray[np.uint8]) -> list[int]:
    return [int(image[0, 0, 0]), int(image[0, -1, 0]), int(image[-1, 0, 0]), int(image[-1, -1, 0])]


# --- pictures ---------------------------------------------------------------------------------


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[:8, :12] = 250  # top left as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    shown = open_image(tmp_path / "a.png")
    assert shown.shape == (24, 16, 3)
    assert corners(shown) == [0, 250, 0, 0]


def test_alpha_lies_over_neutral_grey(tmp_path: Path) -> None:
    picture = np.zeros((4, 4, 4), np.uint8)
    picture[:2] = (255, 0, 0, 255)
    Image.fromarray(picture).save(tmp_path / "a.png")
    shown = open_image(tmp_path / "a.png")
    assert shown[0, 0].tolist() == [255, 0, 0]
    assert shown[3, 3].tolist() == list(media.NEUTRAL)


def test_transparent_palette_lies_over_neutral_grey(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.gif", transparency=0)
    shown = open_image(tmp_path / "a.gif")
    assert shown[0, 0].tolist() == list(media.NEUTRAL)
    assert shown[2, 2].tolist() == [200, 10, 10]


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "CMYK", "RGBA", "HSV", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    suffix = {"CMYK": ".tif", "HSV": ".tif", "YCbCr": ".tif"}.get(mode, ".png")
    picture = (
        Image.new("RGB", (6, 4), (255, 255, 255)).convert(mode) if mode != "HSV" else Image.new("RGB", (6, 4), "white")
    )
    picture.save(tmp_path / f"a{suffix}")
    shown = open_image(tmp_path / f"a{suffix}")
    assert (shown.shape, shown.dtype) == ((4, 6, 3), np.uint8)
    assert shown.min() >= 254


def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png")[0, :, 1].tolist() == [0, 128, 255]


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (v, 0, 0)) for v in (10, 200)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert open_image(tmp_path / "a.webp")[0, 0].tolist() == [10, 0, 0]


def test_unreadable_pictures_are_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(
        tmp_path / "whole.png"
    )
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    for name in ("text.png", "torn.png", "missing.png", "."):
        with pytest.raises(UserError, match="image"):
            open_image(tmp_path / name)


@pytest.mark.parametrize("error", [RuntimeError("missing item"), KeyError(7), MemoryError()])
def test_whatever_a_decoder_raises_is_the_pictures_fault(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(UserError, match=r"cannot be read|does not fit into memory"):
        open_image(tmp_path / "a.png")


def test_an_open_file_works_as_well(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("rb") as file:
        assert open_image(file)[0, 0].tolist() == [1, 2, 3]


def test_a_picture_with_damaged_exif_data_is_taken_as_it_stands(tmp_path: Path) -> None:
    text_for_width, turned = struct.pack(">HHI4s", 0x0100, 2, 3, b"hi"), struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + text_for_width + turned + bytes(4)
    Image.fromarray(ramp(1, 8, 6)[0]).save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").shape == (8, 6, 3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 1200), st.integers(1, 1200))
def test_every_size_fits(height: int, width: int) -> None:
    assert fit_image(np.zeros((height, width, 3), np.uint8), (480, 832)).shape == (480, 832, 3)


def test_sizes_whose_crop_rounds_below_zero_fit() -> None:
    assert fit_image(np.zeros((500, 860, 3), np.uint8), (480, 832)).shape == (480, 832, 3)


def test_fit_crops_the_centre() -> None:
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 20:40] = 200
    fitted = fit_image(picture, (10, 10))
    assert fitted.shape == (10, 10, 3)
    assert fitted[:, 2:8].min() == 200  # the ends feel the resize, nothing else
    assert fit_image(picture, (20, 60)) is picture
    assert fit_image(picture[:1, :1], (8, 6)).shape == (8, 6, 3)


def test_tensors_and_frames_are_inverse() -> None:
    frames = np.arange(256 * 3, dtype=np.uint8).reshape(2, 8, 16, 3)
    tensor = video_to_tensor(frames)
    assert tensor.shape == (3, 2, 8, 16)
    assert float(tensor.min()) == -1
    assert float(tensor.max()) == 1
    np.testing.assert_array_equal(tensor_to_video(tensor[None])[0], frames)
    assert tensor_to_video(torch.full((3, 1, 1, 1), 7.0)).max() == 255


# --- videos -----------------------------------------------------------------------------------


def decode(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24", interpolation=media.EXACT) for f in container.decode(video=0)])


def test_mp4_keeps_brightness_and_rate(tmp_path: Path) -> None:
    frames = ramp()
    with VideoWriter(tmp_path / "new" / "a.mp4", fps=24, metadata=NOTE) as writer:
        writer.write(frames[:2])
        writer.write(frames[2:])
    shown = decode(writer.path).astype(int)
    assert abs((shown - frames).mean(axis=(0, 1, 2))).max() < 0.5
    assert abs(shown - frames).mean() < 2
    assert read_metadata(writer.path) == NOTE
    with av.open(str(writer.path)) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.frames, stream.pix_fmt) == (24, 5, "yuv420p")
        assert stream.codec_context.colorspace == media.BT709
    assert sorted(p.name for p in writer.path.parent.iterdir()) == ["a.mp4"]


def test_odd_sizes_are_padded(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", fps=8) as writer:
        writer.write(ramp(3, 31, 47))
    assert decode(writer.path).shape == (3, 32, 48, 3)


@pytest.mark.parametrize("shape", [(9, 64, 64, 3), (3, 31, 47, 3)], ids=["even", "odd"])
def test_mkv_keeps_every_pixel(shape: tuple[int, ...], tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with VideoWriter(tmp_path / "a.mkv", fps=16, metadata=NOTE) as writer:
        writer.write(frames)
    clip = ClipFile(writer.path, "words", "a")
    shown = read_clip(clip, sizes=[(shape[1], shape[2])], fps=16, frames=shape[0]).frames
    assert np.array_equal(shown, frames)
    assert np.array_equal(read_frames(writer.path, 3), frames[[0, len(frames) // 2, -1]])
    assert read_metadata(writer.path) == NOTE


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_animations_keep_frames_and_mean_rate(name: str, tmp_path: Path) -> None:
    frames = ramp(16)
    with VideoWriter(tmp_path / name, fps=16, metadata=NOTE) as writer:
        writer.write(frames)
    assert read_metadata(writer.path) == NOTE
    with Image.open(writer.path) as image:
        total = 0
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            total += image.info["duration"]
            assert abs(np.asarray(image.convert("RGB")).astype(int) - frames[index]).mean() < 8  # a GIF has 256 colours
        assert (index + 1, total) == (16, 1000)


def test_folder_of_frames_is_exact(tmp_path: Path) -> None:
    frames = ramp(3)
    with VideoWriter(tmp_path / "out", fps=16, metadata=NOTE) as writer:
        writer.write(frames)
    files = sorted((tmp_path / "out").iterdir())
    assert [p.name for p in files] == ["00000.png", "00001.png", "00002.png"]
    np.testing.assert_array_equal(np.stack([open_image(p) for p in files]), frames)
    assert read_metadata(writer.path) == NOTE
    with pytest.raises(UserError, match="not an empty folder"):
        VideoWriter(tmp_path / "out", fps=16)


def test_scale_repeats_pixels(tmp_path: Path) -> None:
    frames = ramp(1, 3, 4)
    with VideoWriter(tmp_path / "out", fps=16, scale=3) as writer:
        writer.write(frames)
    shown = open_image(tmp_path / "out" / "00000.png")
    assert shown.shape == (9, 12, 3)
    np.testing.assert_array_equal(shown[1::3, 1::3], frames[0])


@pytest.mark.parametrize(
    "name",
    [
        "a.avi",
        "a.mp5",
        "file.txt/a.mp4",
        "file.txt/new/a.mp4",
        "folder.gif",
        "/dev/null",
        "x" * 300 + ".mp4",
        "y" * 249 + ".mp4",
    ],
)
def test_impossible_outputs_are_refused_up_front(name: str, tmp_path: Path) -> None:
    (tmp_path / "file.txt").touch()
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        VideoWriter(tmp_path / name, fps=16)


def test_a_place_that_may_not_be_looked_into_is_refused_up_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", forbidden)
    with pytest.raises(UserError, match=r"cannot write .*: Permission denied; choose a place you can write to"):
        VideoWriter(tmp_path / "a.mp4", fps=16)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.gif", "a.webp", "frames"])
def test_an_unwritable_place_shows_before_the_first_frame(name: str) -> None:
    with pytest.raises(UserError, match="cannot write"), VideoWriter(Path("/proc") / name, fps=16):
        pytest.fail("it was opened")


def test_a_video_needs_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is no name for a video"):
        VideoWriter(".", fps=16)


def test_the_folder_of_a_video_is_made_when_writing_begins(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "new" / "sub" / "a.mp4", fps=16)
    assert not (tmp_path / "new").exists()
    with writer:
        writer.write(ramp(1))
    assert writer.path.is_file()


@pytest.mark.parametrize(("fps", "scale"), [(0, 1), (-1, 1), (1e6, 1), (float("nan"), 1), (16, 0)])
def test_impossible_settings_are_refused(fps: float, scale: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="use"):
        VideoWriter(tmp_path / "a.mp4", fps=fps, scale=scale)


def write_and_fail(path: Path) -> None:
    with VideoWriter(path, fps=16) as writer:
        writer.write(ramp(2))
        raise RuntimeError("the model failed")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.gif", "a.webp", "frames"])
def test_nothing_is_left_after_a_failure(name: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="model"):
        write_and_fail(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="model"):
        write_and_fail(path)
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.gif", "frames"])
def test_no_frames_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no frames"), VideoWriter(tmp_path / name, fps=16):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "sink"), [("a.mp4", "_Mp4"), ("a.mkv", "_Mkv"), ("a.gif", "_Gif"), ("frames", "_Frames")]
)
@pytest.mark.parametrize("step", ["add", "close"])
def test_a_full_disk_is_said_plainly(
    name: str, sink: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, *args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(getattr(media, sink), step, full)
    with pytest.raises(UserError, match="disk is full"), VideoWriter(tmp_path / name, fps=16) as writer:
        writer.write(ramp(2))
    assert list(tmp_path.iterdir()) == []


def test_wrong_frames_are_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uint8"), VideoWriter(tmp_path / "a.mp4", fps=16) as writer:
        writer.write(ramp(2).astype(np.float32))  # type: ignore[arg-type]
    with VideoWriter(tmp_path / "a.mp4", fps=16) as writer:
        writer.write(ramp(2))
        with pytest.raises(ValueError, match="after frames"):
            writer.write(ramp(2, 16, 16))
    (tmp_path / "a.mp4").unlink()
    assert list(tmp_path.iterdir()) == []
