"""What an export is made of: a Wan folder and a student, checked before anything is written, copied file by file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from aad1.errors import UserError
from aad1.evaluation.report import Report, read_report
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import WanFolder, open_folder, our_window, read_json, recast, write_json
from aad1.models.conversion import REPORT
from aad1.models.loading import reading, refuse_other_weights
from aad1.models.weights import SUFFIXES, Stored, tensors_of
from aad1.streaming.student import student_folder
from aad1.workspace import model_path

TRANSFORMER = "transformer"
COMPONENTS = ("vae", "text_encoder", "tokenizer")  # of a pipeline, besides the transformer
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
            model = CausalWanTransformer3DModel.from_config(config, **our_window(config))
        assert isinstance(model, CausalWanTransformer3DModel)
        return model

    @cached_property
    def stored(self) -> dict[str, Stored]:
        """The student's weights on disk: names, shapes and types."""
        return tensors_of(self.student)

    @property
    def stored_dtype(self) -> torch.dtype:
        """Of the student's weights on disk: that of the largest."""
        return max(self.stored.values(), key=lambda one: one.bytes).dtype

    @property
    def evaluation(self) -> Report | None:
        """What the report holds; raises UserError when it is none."""
        return read_report(self.report) if self.report else None

    @property
    def bytes(self) -> int:
        """Of everything that an export with all parts copies."""
        parts = [self.student, *(self.folder.path / part for part in (*COMPONENTS, "scheduler"))]
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
        spare = _spare(part)
        for file in sorted(part.rglob("*")):
            if file.is_file() and not file.name.startswith(".") and file not in spare:
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
            held, size = read_json(index), sum(one.bytes for one in tensors_of(target).values())
            write_json(index, {**held, "metadata": {**held.get("metadata", {}), "total_size": size}})


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
        _refuse_pickles(part)
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
        held = read_json(config)
        if held.pop("_name_or_path", None) is not None:
            write_json(config, held)


def _refuse_pickles(part: Path) -> None:
    """Raise UserError for a part without safetensors: others shall not be asked to unpickle what we give them."""
    if not any(part.glob("*.safetensors")):
        raise UserError(f"'{part}' has no .safetensors file: save it with save_pretrained first, which writes them")


def _spare(part: Path) -> set[Path]:
    """Files that are no part of the model: weights that its index does not name, and what a conversion said."""
    weights = {file for file in part.iterdir() if file.suffix in SUFFIXES}
    used = {one.file for one in tensors_of(part).values()} if weights else set()
    return (weights - used) | {part / REPORT}


def _check_weights(source: ExportSource) -> None:
    """Raise UserError where the student's files lack a weight, hold another or one of another shape."""
    with reading(source.student):
        refuse_other_weights(source.skeleton, source.stored)
