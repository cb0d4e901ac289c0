"""Pictures in, pictures and videos out.

Frames are uint8 RGB, [height, width, 3] for one and [frames, height, width, 3] for a video; models
see float [batch, 3, frames, height, width] in [-1, 1].
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from aad1.errors import UserError

NEUTRAL = (128, 128, 128)  # what shows through transparent pixels
BT709 = 1  # the colour matrix, primaries and transfer every player assumes for modern video
LIMITED_RANGE = 1
MAX_FPS = 240
EXIF_DESCRIPTION = 0x010E
WRITABLE = (".mp4", ".mkv", ".gif", ".webp")
CONTAINERS = (".mp4", ".mkv")  # that PyAV writes and reads
HELD_IN_MEMORY = (".gif", ".webp")  # until the last frame has come
# The default conversion to and from YUV darkens pictures by a level; these flags keep the mean within 0.2.
EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
PALETTE_SAMPLE, PALETTE_SIDE = 16, 256  # frames, and pixels along a side, looked at for a GIF's one palette


# --- tensors ----------------------------------------------------------------------------------


def video_to_tensor(frames: NDArray[np.uint8]) -> Tensor:
    """Uint8 [..., frames, height, width, 3] -> float32 [..., 3, frames, height, width] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -4))).float() / 127.5 - 1


def tensor_to_video(video: Tensor) -> NDArray[np.uint8]:
    """Float [..., 3, frames, height, width] in [-1, 1] -> uint8 [..., frames, height, width, 3]; clips."""
    pixels = ((video.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.movedim(-4, -1).contiguous().cpu().numpy()


# --- reading pictures -------------------------------------------------------------------------


def open_image(
    source: str | Path | BinaryIO, *, kinds: tuple[str, ...] | None = None, most_pixels: int | None = None
) -> NDArray[np.uint8]:
    """Read any picture as uint8 RGB [height, width, 3].

    Turns it upright, converts its colours to sRGB, lays transparency over neutral grey and takes the
    first frame of an animation. kinds: the formats that are accepted, told by the picture's bytes ("PNG", ...).
    most_pixels: larger pictures are refused before they are decoded. Raises UserError when it cannot be read.
    """
    name = f"image {source}" if isinstance(source, str | Path) else "the image"
    try:
        with Image.open(source, formats=kinds) as image:
            _refuse_pixels(name, image.size, most_pixels)
            image.load()
            return pixels_of(image)
    except FileNotFoundError:
        raise UserError(f"{name} does not exist; give the path of a picture (PNG, JPEG, WebP, ...)") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} is too large ({error}); give a smaller copy") from None
    except UserError:
        raise
    except UnidentifiedImageError:
        wanted = " or ".join(kinds or ("PNG", "JPEG"))
        raise UserError(
            f"{name} cannot be read (its bytes are no picture's); save it as {wanted} and try again"
        ) from None
    except MemoryError:
        raise UserError(f"{name} does not fit into memory; give a smaller copy") from None
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
        raise UserError(f"{name} cannot be read ({error}); save it as PNG or JPEG and try again") from None


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """A picture that is open as uint8 RGB [height, width, 3]: upright, in sRGB, over neutral grey."""
    return np.asarray(_to_rgb(_upright(image)))


def _refuse_pixels(name: str, size: tuple[int, int], most: int | None) -> None:
    if most is not None and size[0] * size[1] > most:
        raise UserError(f"{name} has {size[0]}x{size[1]} pixels; at most {most} are allowed: give a smaller copy")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data says; a picture whose EXIF data is damaged is taken as it stands."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's parser lets through whatever its bytes lead to
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to 8-bit sRGB without transparency."""
    if image.mode.startswith(("I", "F")):
        return _deep_grey(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        backdrop = Image.new("RGBA", rgba.size, (*NEUTRAL, 255))
        return Image.alpha_composite(backdrop, rgba).convert("RGB")
    return _colour_managed(image)


def _deep_grey(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and floating-point grey to 8 bits; the range is judged by what the mode can hold."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        top = 1.0 if values.max(initial=0) <= 1 else 255.0
    else:
        top = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
    return Image.fromarray(np.round(np.clip(values / top, 0, 1) * 255).astype(np.uint8))


def _colour_managed(image: Image.Image) -> Image.Image:
    """Apply an embedded colour profile (phones write Display P3, print files CMYK); a broken one is ignored."""
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        with suppress(ImageCms.PyCMSError, OSError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
    return image.convert("RGB")


def fit_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Centre-crop [height, width, 3] to the aspect of ``size`` (height, width) and resize it, anti-aliased."""
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    scale = min(height / size[0], width / size[1])
    crop_height, crop_width = size[0] * scale, size[1] * scale
    top, left = max(0.0, (height - crop_height) / 2), max(0.0, (width - crop_width) / 2)  # rounding may go below
    box = (left, top, min(left + crop_width, width), min(top + crop_height, height))
    fitted = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    return np.asarray(fitted)


# --- writing videos ---------------------------------------------------------------------------


class VideoWriter:
    """Write frames as they arrive to .mp4, .mkv, .gif, .webp or, without a suffix, a folder of PNG frames.

    A context manager. Everything goes to a hidden name beside the target, which takes its place only
    when all has been written; after an error nothing is left. ``scale`` enlarges pixels by nearest
    neighbour, for small videos that players would blur. ``metadata`` is stored in the file as JSON
    (``read_metadata`` gives it back). MP4, MKV and PNG use constant memory; GIF and WebP hold all frames. MKV
    (lossless H.264 in RGB) and PNG keep every pixel as it is. Raises UserError for an output that cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: float,
        scale: int = 1,
        metadata: Mapping[str, Any] | None = None,
        crf: int = 16,
        pixel_format: str = "yuv420p",
    ) -> None:
        self.path = Path(path)
        if not self.path.name:
            raise UserError(f"'{path}' is no name for a video; give a file ({', '.join(WRITABLE)}) or a new folder")
        if self.path.suffix.lower() not in (*WRITABLE, ""):
            kinds = ", ".join(WRITABLE)
            raise UserError(
                f"cannot write {self.path}: suffix {self.path.suffix!r}; use {kinds} or none for PNG frames"
            )
        if not 0 < fps <= MAX_FPS:
            raise UserError(f"fps {fps} for {self.path}; use a number above 0 and up to {MAX_FPS}")
        if scale < 1:
            raise UserError(f"scale {scale} for {self.path}; use 1 or a larger whole number")
        self.temporary = self.path.with_name(f".{self.path.name}.tmp")
        self.scale, self.frames = scale, 0
        self._shape: tuple[int, ...] | None = None
        note = json.dumps(dict(metadata), sort_keys=True) if metadata else ""
        self._sink = _sink_for(self.path.suffix.lower(), fps, note, crf, pixel_format)
        self._check_target()

    def _check_target(self) -> None:
        """Refuse a target that is something else already, or that no file or folder can be made for."""
        try:
            self._check_place()
        except OSError as error:  # one may not even look, or the name is too long
            raise self._user_error(error) from None

    def _check_place(self) -> None:
        self.temporary.exists()  # has the longest name
        nearest = next(folder for folder in self.path.absolute().parents if folder.exists())
        if not nearest.is_dir():
            raise UserError(f"cannot write {self.path}: {nearest} is a file; choose another place")
        if not os.access(nearest, os.W_OK):
            raise UserError(f"cannot write {self.path}: {nearest} may not be written to; choose another place")
        if self.path.suffix and self.path.is_dir():
            raise UserError(f"cannot write {self.path}: it is a folder; give a file name")
        if not self.path.suffix and self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise UserError(f"cannot write frames to {self.path}: it exists and is not an empty folder; give a new one")

    def __enter__(self) -> VideoWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _remove(self.temporary)
            self._sink.open(self.temporary)
        except (OSError, av.FFmpegError) as error:
            raise self._user_error(error) from None
        return self

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append uint8 [frames, height, width, 3]; every call must bring the same height and width."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"frames are {frames.dtype} {frames.shape}; expected uint8 [frames, height, width, 3]")
        if self._shape not in (None, frames.shape[1:]):
            raise ValueError(f"frames of {frames.shape[1:]} after frames of {self._shape}")
        self._shape = frames.shape[1:]
        try:
            for frame in frames:
                self._sink.add(enlarge(frame, self.scale))
                self.frames += 1
        except (OSError, av.FFmpegError) as error:
            raise self._user_error(error) from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None and not self.frames:
                raise UserError(f"no frames were given for {self.path}; nothing was written")
            with suppress(*(() if kind is None else (Exception,))):  # the first error is the one to show
                self._sink.close(finish=kind is None)
            if kind is None:
                os.replace(self.temporary, self.path)
        except (OSError, av.FFmpegError) as failure:
            raise self._user_error(failure) from None
        finally:
            _remove(self.temporary)

    def _user_error(self, error: Exception) -> UserError:
        if getattr(error, "errno", None) == errno.ENOSPC:
            return UserError(f"cannot write {self.path}: the disk is full; free some space or choose another place")
        reason = getattr(error, "strerror", None) or str(error)
        return UserError(f"cannot write {self.path}: {reason}; choose a place you can write to")


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata that VideoWriter put into a video or a folder of frames; empty when there is none."""
    path = Path(path)
    if path.is_dir():
        path = min(path.glob("*.png"))
    if path.suffix.lower() in CONTAINERS:
        with av.open(str(path)) as container:
            held = {key.lower(): value for key, value in container.metadata.items()}  # Matroska shouts its tags
            note = held.get("comment", "")
    else:
        with Image.open(path) as image:
            note = image.info.get("comment", "") or image.getexif().get(EXIF_DESCRIPTION, "")
    note = note.decode() if isinstance(note, bytes) else note
    return dict(json.loads(note)) if note else {}


def read_frames(path: str | Path, count: int) -> NDArray[np.uint8]:
    """At most ``count`` evenly spaced frames, first and last among them, of what VideoWriter wrote.

    Returns uint8 [frames, height, width, 3]; memory is that of these frames alone. Raises UserError for a file that
    is damaged or gone.
    """
    path = Path(path)
    try:
        return np.stack(list(_read_frames(path, count)))
    except (OSError, ValueError, av.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read back ({reason}); delete it and make it again") from None


def _read_frames(path: Path, count: int) -> Iterator[NDArray[np.uint8]]:
    if path.is_dir():
        files = sorted(path.glob("*.png"), key=lambda file: (len(file.name), file.name))
        yield from (open_image(files[index]) for index in evenly_spaced(len(files), count))
    elif path.suffix.lower() in CONTAINERS:
        with av.open(str(path)) as container:
            wanted = set(evenly_spaced(_frame_count(path, container), count))
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    yield frame.to_ndarray(format="rgb24", interpolation=EXACT)
    else:
        with Image.open(path) as image:
            for index in evenly_spaced(getattr(image, "n_frames", 1), count):
                image.seek(index)
                yield np.asarray(image.convert("RGB"))


def _frame_count(path: Path, container: av.container.InputContainer) -> int:
    """How many frames a video has; Matroska does not say, but every packet of ours holds one."""
    if (said := container.streams.video[0].frames) > 0:
        return said
    with av.open(str(path)) as counted:
        return sum(packet.size > 0 for packet in counted.demux(video=0))


def evenly_spaced(total: int, count: int) -> list[int]:
    """Indices of at most ``count`` among ``total`` frames, first and last among them."""
    return [int(index) for index in np.linspace(0, total - 1, min(count, total)).round()]


def enlarge(frames: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Every pixel of [..., height, width, 3] as ``scale`` x ``scale`` pixels."""
    return frames.repeat(scale, axis=-3).repeat(scale, axis=-2)


def even_sides(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As 4:2:0 needs it: the last row and column of [..., height, width, 3] once more where a side is odd."""
    odd = [(0, 0)] * (frames.ndim - 3) + [(0, side % 2) for side in frames.shape[-3:-1]] + [(0, 0)]
    return np.pad(frames, odd, mode="edge")


def say_colours(codec: Any) -> None:
    """Write BT.709 and limited range into a video's header, so that no player has to guess."""
    codec.colorspace = codec.color_primaries = codec.color_trc = BT709
    codec.color_range = LIMITED_RANGE


def to_yuv(frame: NDArray[np.uint8], pixel_format: str) -> av.VideoFrame:
    """Uint8 [height, width, 3] in the colours that ``say_colours`` names."""
    picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
    return picture.reformat(
        format=pixel_format, dst_colorspace=BT709, dst_color_range=LIMITED_RANGE, interpolation=EXACT
    )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # a parent that is no folder: opening the file will say so
            path.unlink(missing_ok=True)


class _Sink(ABC):
    """Where frames go: one subclass a format. ``add`` takes uint8 [height, width, 3]."""

    def __init__(self, fps: float, note: str) -> None:
        self.fps, self.note = fps, note

    @abstractmethod
    def open(self, path: Path) -> None: ...

    @abstractmethod
    def add(self, frame: NDArray[np.uint8]) -> None: ...

    @abstractmethod
    def close(self, finish: bool) -> None: ...


def _sink_for(suffix: str, fps: float, note: str, crf: int, pixel_format: str) -> _Sink:
    if suffix == ".mp4":
        return _Mp4(fps, note, crf, pixel_format)
    kinds: dict[str, Callable[[float, str], _Sink]] = {".mkv": _Mkv, ".gif": _Gif, ".webp": _WebP, "": _Frames}
    return kinds[suffix](fps, note)


class _Container(_Sink):
    """Formats that PyAV writes, with one video stream."""

    kind: str
    codec: str
    pixel_format: str

    def __init__(self, fps: float, note: str) -> None:
        super().__init__(fps, note)
        self.stream: Any = None
        self.options: dict[str, str] = {}

    def open(self, path: Path) -> None:
        path.touch()  # PyAV opens it at the first packet only, after much of the work
        # The index goes in front (faststart), so that a browser can start before the end has arrived.
        options = {"movflags": "faststart"} if self.kind == "mp4" else {}
        self.container = av.open(str(path), "w", format=self.kind, options=options)
        if self.note:
            self.container.metadata["comment"] = self.note

    def add_stream(self, height: int, width: int) -> None:
        rate = Fraction(self.fps).limit_denominator(1001)
        self.stream = self.container.add_stream(self.codec, rate=rate, options=self.options)
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, self.pixel_format

    def close(self, finish: bool) -> None:
        try:
            if finish:
                self.container.mux(self.stream.encode())
        finally:
            self.container.close()


class _Mp4(_Container):
    """H.264 with BT.709 colours said aloud, so that no player has to guess them."""

    kind, codec = "mp4", "libx264"

    def __init__(self, fps: float, note: str, crf: int, pixel_format: str) -> None:
        super().__init__(fps, note)
        self.pixel_format, self.options = pixel_format, {"crf": str(crf), "preset": "medium"}

    def add_stream(self, height: int, width: int) -> None:
        super().add_stream(height, width)
        say_colours(self.stream.codec_context)

    def add(self, frame: NDArray[np.uint8]) -> None:
        frame = even_sides(frame)
        if self.stream is None:
            self.add_stream(*frame.shape[:2])
        self.container.mux(self.stream.encode(to_yuv(frame, self.pixel_format)))


class _Mkv(_Container):
    """Lossless H.264 in RGB: every pixel comes back; a still background takes a quarter of what it does in FFV1."""

    kind, codec, pixel_format = "matroska", "libx264rgb", "rgb24"

    def __init__(self, fps: float, note: str) -> None:
        super().__init__(fps, note)
        self.options = {"qp": "0", "preset": "veryfast"}

    def add(self, frame: NDArray[np.uint8]) -> None:
        if self.stream is None:
            self.add_stream(*frame.shape[:2])
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=self.pixel_format)
        self.container.mux(self.stream.encode(picture))


class _Frames(_Sink):
    """A folder of PNG files, 00000.png onwards."""

    def open(self, path: Path) -> None:
        path.mkdir()
        self.folder, self.count = path, 0

    def add(self, frame: NDArray[np.uint8]) -> None:
        info = PngImagePlugin.PngInfo()
        if self.note and not self.count:
            info.add_text("comment", self.note)
        Image.fromarray(frame).save(self.folder / f"{self.count:05d}.png", pnginfo=info)
        self.count += 1

    def close(self, finish: bool) -> None:
        """Every frame is on disk already."""


class _Animation(_Sink):
    """Formats that Pillow writes in one go at the end."""

    def open(self, path: Path) -> None:
        path.touch()  # an unwritable place shows now, not after minutes of generation
        self.path, self.pictures = path, list[Image.Image]()

    def add(self, frame: NDArray[np.uint8]) -> None:
        self.pictures.append(Image.fromarray(frame))

    def durations(self, tick: int) -> list[int]:
        """Milliseconds each frame is shown, in multiples of ``tick``, true to the frame rate on average."""
        ends = np.round(np.arange(len(self.pictures) + 1) * 1000 / self.fps / tick).astype(int) * tick
        return [max(tick, int(d)) for d in np.diff(ends)]

    def close(self, finish: bool) -> None:
        if finish:
            self.save()

    @abstractmethod
    def save(self) -> None: ...


class _Gif(_Animation):
    def save(self) -> None:
        """One palette for all frames and no dither: otherwise a still background would seem to flicker."""
        chosen = self.pictures[:: max(1, len(self.pictures) // PALETTE_SAMPLE)]
        step = max(1, max(chosen[0].size) // PALETTE_SIDE)
        mosaic = Image.fromarray(np.concatenate([np.asarray(p)[::step, ::step] for p in chosen]))
        palette = mosaic.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        first, *rest = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in self.pictures]
        first.save(
            self.path,
            "GIF",
            save_all=True,
            append_images=rest,
            palette=bytes(palette.getpalette() or ()),  # else Pillow stores one a frame, at four times the size
            duration=self.durations(10),
            loop=0,
            comment=self.note,
        )


class _WebP(_Animation):
    def save(self) -> None:
        exif = Image.Exif()
        if self.note:
            exif[EXIF_DESCRIPTION] = self.note
        first, *rest = self.pictures
        first.save(
            self.path,
            "WEBP",
            save_all=True,
            append_images=rest,
            duration=self.durations(1),
            loop=0,
            quality=92,
            exif=exif,
        )
