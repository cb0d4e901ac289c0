"""What an export is made of: a Wan folder and a student, checked before anything is written, copied file by file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import safe_open

from aad1.errors import UserError
from aad1.evaluation.report import Report, read_report
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import WanFolder, open_folder, recast, write_json
from aad1.models.loading import reading
from aad1.streaming.student import student_folder
from aad1.workspace import model_path

TRANSFORMER = "transformer"
WEIGHTS = "*.safetensors"
INDEXES = "*.safetensors.index.json"
BLOCK = 2**24  # bytes copied at a time


@dataclass(frozen=True)
class ExportSource:
    """A student, and the Wan folder whose VAE and text encoder it was made for.

    student: its own folder. dtype: of the weights of transformer and text encoder in the export, None to keep theirs;
    the VAE keeps its own, for half precision shows in its colours. report: an evaluation's ``report.json``. base: hub
    id of the model that was distilled. advance: told how many bytes were copied.
    """

    folder: WanFolder
    student: Path
    dtype: torch.dtype | None = None
    report: Path | None = None
    base: str | None = None
    advance: Callable[[int], object] = field(default=lambda count: None, compare=False)

    def load_generator(self) -> CausalWanTransformer3DModel:
        """The student with its weights, as ``dtype`` if given, else as they are stored."""
        dtype = self.dtype or self.stored_dtype
        return replace(self.folder, dtype=dtype).transformer_at(CausalWanTransformer3DModel, self.student)

    @cached_property
    def skeleton(self) -> CausalWanTransformer3DModel:
        """The student without weights (on the meta device): its whole config, names and shapes."""
        config = CausalWanTransformer3DModel.load_config(self.student, local_files_only=True)
        with torch.device("meta"):
            model = CausalWanTransformer3DModel.from_config(config)
        assert isinstance(model, CausalWanTransformer3DModel)
        return model

    @property
    def stored_dtype(self) -> torch.dtype:
        """Of the student's weights on disk: that of the largest in its first file."""
        with safe_open(_weights(self.student)[0], framework="pt") as file:
            largest = max(file.keys(), key=lambda name: math.prod(file.get_slice(name).get_shape()))
            return file.get_slice(largest)[:1].dtype

    @property
    def evaluation(self) -> Report | None:
        """What the report holds; raises UserError when it is none."""
        return read_report(self.report) if self.report else None

    @property
    def bytes(self) -> int:
        """Of everything that an export with all parts copies."""
        parts = [self.student, *(self.folder.path / part for part in ("vae", "text_encoder", "tokenizer", "scheduler"))]
        return sum(file.stat().st_size for part in parts for file in part.rglob("*") if file.is_file())

    # --- copying ------------------------------------------------------------------------------

    def copy_part(self, name: str, target: Path) -> None:
        """Copy ``vae``, ``text_encoder``, ``tokenizer`` or ``scheduler`` as folder ``target``; the encoder is cast."""
        self._copy(self.folder.path / name, target)
        if name == "text_encoder":
            self._cast(target)

    def copy_student(self, target: Path) -> None:
        """Copy the student's weights as folder ``target``, cast, and write the whole config of our class."""
        self._copy(self.student, target)
        self._cast(target)
        self.skeleton.save_config(target)
        forget_origin(target / "config.json")

    def _copy(self, part: Path, target: Path) -> None:
        for file in sorted(part.rglob("*")):
            if file.is_file() and not file.name.startswith("."):
                copy = target / file.relative_to(part)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy_file(file, copy, self.advance)
        forget_origin(target / "config.json")

    def _cast(self, target: Path) -> None:
        """Shard by shard, and what an index says of their size."""
        if self.dtype is None:
            return
        recast(target, self.dtype)
        for index in target.glob(INDEXES):
            held = json.loads(index.read_text(encoding="utf-8"))
            held["metadata"] = {
                **held.get("metadata", {}),
                "total_size": sum(_tensor_bytes(f) for f in _weights(target)),
            }
            write_json(index, held)


def open_source(
    model: str,
    student: str,
    *,
    dtype: torch.dtype | None = None,
    report: Path | None = None,
    base: str | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> ExportSource:
    """Open a student for export and check everything that can be checked without reading weights.

    model: a Wan folder or the name of a bundled one; student: as for ``load_student``.

    Raises:
        UserError: for a student that is not there or whose weights do not fit its config, weights that are no
            safetensors, a report that is none, a malformed hub id.
    """
    if base is not None:
        check_repo(base)
    folder = open_folder(model_path(model))
    source = ExportSource(folder, student_folder(folder, student), dtype, report, base, advance)
    for part in (source.student, folder.path / "vae", folder.path / "text_encoder"):
        _weights(part)
    folder.check_fit(source.student)
    _check_weights(source)
    _ = source.evaluation
    return source


def check_repo(name: str) -> str:
    """Return a hub id such as ``user/model``; UserError for a malformed one."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"'{name}' is no id of a model on the hub: {' '.join(str(error).split())[:300]}") from None
    return name


def copy_file(source: Path, target: Path, advance: Callable[[int], object] = lambda count: None) -> None:
    """Copy a file block by block; ``advance`` is told of each. The copy may be read by whoever reads its folder."""
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(BLOCK):
            writer.write(block)
            advance(len(block))


def forget_origin(config: Path) -> None:
    """Take out of a config.json, if there is one, where a library had read it: a path of somebody's machine."""
    if config.is_file():
        held = json.loads(config.read_text(encoding="utf-8"))
        if held.pop("_name_or_path", None) is not None:
            write_json(config, held)


def _weights(part: Path) -> list[Path]:
    """The safetensors files of a part; UserError where there is none."""
    found = sorted(part.glob(WEIGHTS))
    if not found:
        raise UserError(f"'{part}' has no .safetensors file: save it with save_pretrained first, which writes them")
    return found


def _tensor_bytes(file: Path) -> int:
    """Of a safetensors file's values, without its header."""
    with file.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    return file.stat().st_size - 8 - header


def _check_weights(source: ExportSource) -> None:
    """Raise UserError where the student's files lack a weight, hold another or one of another shape."""
    with reading(source.student):
        wanted = {name: tuple(value.shape) for name, value in source.skeleton.state_dict().items()}
        found = dict[str, tuple[int, ...]]()
        for path in _weights(source.student):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    if name in found:
                        raise ValueError(f"two of its files hold {name}")
                    found[name] = tuple(file.get_slice(name).get_shape())
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise ValueError(
                    f"{name}: its config.json asks for {wanted.get(name)}, its weights are {found.get(name)}"
                )
