"""aad1 convert: checkpoints of others into ours, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from aad1.cli.options import dtype_of, refuse, say
from aad1.errors import UserError
from aad1.files import write_errors
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import INDEX, our_window, read_json, refuse_misfit, whole_folder, write_json
from aad1.models.conversion import REPORT, Plan, Terms, plan, write_native_transformer, write_part
from aad1.models.hub import fetch_native_folder, is_hub_name
from aad1.models.native_folder import (
    TOKENIZER,
    is_native,
    plan_folder,
    plan_native,
    tokenizer_files,
    write_native_folder,
    write_wan_folder,
)
from aad1.models.released import GROUPS, KNOWN, STUDENTS
from aad1.models.weights import SUFFIXES, tensors_of
from aad1.progress import Progress
from aad1.streaming import check_passes
from aad1.workspace import model_path

Writer = Callable[[Path, Callable[[], None]], None]


@dataclass(frozen=True)
class Convert:
    """Turn checkpoints as others publish them into folders that aad1 and diffusers load, or back.

    A native Wan folder becomes a whole Wan folder. A single file becomes a transformer's folder, which every command
    takes as --student, or lies as one inside the Wan folder given with --base. Generators of Self Forcing and its
    relatives become students: say with --like whose it is, or give the four values. Low-rank adapters are merged.
    Files are read safely and one tensor at a time; a table says what matched, and so does conversion.json. Nothing is
    written unless all of it matches.

    For example:
      aad1 convert Wan2.1-T2V-1.3B -o models/wan-1.3b
      aad1 convert self_forcing_dmd.pt --like self-forcing --base models/wan-1.3b -o models/wan-1.3b/student
      aad1 convert base.pt --lora lora.pt --lora-alpha 256 --like reward-forcing --local-attn-size 12 -o student/
      aad1 convert models/wan-1.3b --to native -o native/
    """

    given: Annotated[
        Positional[str],
        arg(name="source", help="a Wan folder, native or not, a .pt, .pth or .safetensors file, or a native hub id"),
    ]
    out: Annotated[
        Path | None, arg(aliases=["-o"], help="the folder to make (default: BASE/student for a student)")
    ] = None
    base: Annotated[str | None, arg(help="the Wan folder it belongs to: checked, and asked for what is missing")] = None
    to: Annotated[Literal["diffusers", "native"], arg(help="the names and layout to write")] = "diffusers"
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, arg(help="cast the weights (default: as they are)")
    ] = None
    allow_partial: Annotated[bool, arg(help="leave out unexpected tensors, and take missing ones from --base")] = False
    which: Annotated[
        Literal["generator_ema", "generator"] | None, arg(help="of a file with both (default: generator_ema)")
    ] = None
    lora: Annotated[Path | None, arg(help="a file of low-rank adapters to merge into the weights")] = None
    lora_alpha: Annotated[float | None, arg(help="their alpha, where no file says it")] = None
    like: Annotated[
        Literal["aad1", "self-forcing", "causal-forcing", "reward-forcing", "causvid"] | None,
        arg(help="whose generator it is: sets the next four as that project publishes them"),
    ] = None
    num_frames_per_block: Annotated[int | None, arg(help="a student's latent frames a chunk")] = None
    local_attn_size: Annotated[int | None, arg(help="its window in latent frames, -1 for all")] = None
    sink_size: Annotated[int | None, arg(help="its first latent frames that are always seen")] = None
    passes: Annotated[tuple[float, ...] | None, arg(help="noise levels of its passes")] = None
    size: Annotated[tuple[int, int] | None, arg(help="the picture's height and width that it was made for")] = None
    head_dim: Annotated[int | None, arg(help="width of an attention head (default: 128, Wan's)")] = None
    shard_gb: Annotated[float, arg(help="largest file to write, in GB")] = 5.0
    overwrite: Annotated[bool, arg(help="replace what is at --out")] = False

    def run(self, extra: Sequence[str]) -> None:
        """Plan, say what matches, write."""
        refuse(extra, Convert)
        if self.shard_gb <= 0:
            raise UserError(f"--shard-gb {self.shard_gb}: use more than 0")
        plans, write = self._whole() if self._is_whole else self._alone()
        out = self._out()
        _show(plans)
        total = sum(len(one.tensors) for one in plans)
        with (
            write_errors(out),
            whole_folder(out) as fresh,
            Progress("converting", total, unit="tensor") as bar,
        ):
            write(fresh, bar.advance)
            write_json(fresh / REPORT, {"to": self.to, "parts": [one.report.as_json() for one in plans]})
        size = sum(one.report.bytes for one in plans) / 1e9
        say(f"{out}: {size:.2f} GB, and {REPORT} with every name that did not match")

    @cached_property
    def source(self) -> Path:
        """Where the weights lie; those of a name on the hub are fetched."""
        if Path(self.given).exists():
            return Path(self.given)
        if is_hub_name(self.given) and not self.given.endswith(SUFFIXES):
            return fetch_native_folder(self.given)
        raise UserError(f"there is no '{self.given}'; give a folder or file of weights, or OWNER/NAME on the hub")

    @property
    def _is_whole(self) -> bool:
        return self.source.is_dir() and ((self.source / INDEX).is_file() or is_native(self.source))

    @cached_property
    def _base(self) -> Path | None:
        """The Wan folder it belongs to; one with a name on the hub is fetched."""
        return model_path(self.base) if self.base is not None else None

    @property
    def _shard(self) -> int:
        return int(self.shard_gb * 1e9)

    @property
    def _terms(self) -> Terms:
        return Terms(
            dtype=dtype_of(self.dtype),
            allow_partial=self.allow_partial,
            head_dim=self._head_dim(),
            lora_alpha=self.lora_alpha,
        )

    def _head_dim(self) -> int | None:
        """As given, or the base's: a generator's weights do not tell how their width is cut into heads."""
        config = self._base / "transformer" / "config.json" if self._base is not None else None
        said = read_json(config).get("attention_head_dim") if config is not None and config.is_file() else None
        if self.head_dim is not None and said is not None and said != self.head_dim:
            raise UserError(
                f"--head_dim {self.head_dim}: the heads of --base {self.base} are {said} wide; leave it out"
            )
        return self.head_dim or said

    def _out(self) -> Path:
        """Where it goes; a UserError when that is not safe."""
        if self.out is None and (self.base is None or self._is_whole):
            raise UserError("say with -o which folder to make")
        out = self.out or (self._base or Path()) / "student"
        source, target = self.source.resolve(), out.resolve()
        if target == source or target in source.parents:
            raise UserError(f"'{out}' holds the source; give another folder with -o")
        if out.exists() and not (self.overwrite and out.is_dir()):
            raise UserError(f"'{out}' is there already; give another place with -o, or replace it with --overwrite")
        return out

    # --- a whole Wan folder ---

    def _whole(self) -> tuple[list[Plan], Writer]:
        given = [name for name in ("lora", "like", "which", "base") if getattr(self, name) is not None]
        if given:
            raise UserError(f"--{given[0]} is for a single transformer; '{self.source}' is a whole Wan folder")
        native = is_native(self.source)
        plans = (plan_native if native else plan_folder)(self.source, self._terms)
        tokenizer = tokenizer_files(self.source / (TOKENIZER if native else "tokenizer"))
        writer = write_native_folder if self.to == "native" else write_wan_folder
        return plans, lambda fresh, done: writer(plans, tokenizer, fresh, shard=self._shard, done=done)

    # --- a transformer alone ---

    def _alone(self) -> tuple[list[Plan], Writer]:
        base = self._base
        found = tensors_of(self.source, (self.which,) if self.which else GROUPS)
        if self.which and not any(stored.group for stored in found.values()):
            raise UserError(f"'{self.source}' has no entry '{self.which}'; leave --which out to take what there is")
        config = self.source / "config.json" if self.source.is_dir() else None
        one = plan(
            "transformer",
            found,
            self._terms,
            adapters=tensors_of(self.lora, GROUPS) if self.lora else None,
            base=tensors_of(base / "transformer") if base else None,
            config=config,
        )
        if base:
            parts = (read_json(base / part / "config.json") for part in ("vae", "text_encoder"))
            refuse_misfit(self.source, one.config, *parts)
        if self.to == "native":
            return [one], lambda fresh, done: write_native_transformer(one, fresh, shard=self._shard, done=done)
        settings = self._settings(any(stored.group in STUDENTS for stored in found.values()), config)
        cls = CausalWanTransformer3DModel if settings else None
        return [one], lambda fresh, done: write_part(
            one, fresh, cls=cls, settings=settings, shard=self._shard, done=done
        )

    def _settings(self, generator: bool, config: Path | None) -> dict[str, Any]:
        """A student's config keys, none for a bidirectional transformer."""
        keys = (*KNOWN["aad1"], "size")
        given = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        kept = {key: value for key, value in _student_config(config).items() if key in keys}
        settings = {**kept, **(KNOWN[self.like] if self.like else {}), **given}
        if not settings and not generator:
            return {}
        if lacking := [f"--{key.replace('_', '-')}" for key in KNOWN["aad1"] if key not in settings]:
            raise UserError(
                f"'{self.source}' is a student, and no file of weights says how it streams: give {', '.join(lacking)}, "
                f"or --like {', '.join(KNOWN)}"
            )
        check_passes(settings["passes"])
        return settings


def _student_config(config: Path | None) -> dict[str, Any]:
    held = read_json(config) if config is not None and config.is_file() else {}
    return {**held, **our_window(held)}


def _show(plans: Sequence[Plan]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("part", "matched", "missing", "unexpected", "adapters", "types", "GB"):
        table.add_column(column, justify="left" if column in ("part", "types") else "right")
    for report in (one.report for one in plans):
        types = [
            ", ".join(f"{count} {name}" for name, count in kinds.items()) for kinds in (report.found, report.written)
        ]
        counts = (report.matched, len(report.missing), len(report.unexpected), report.merged)
        shown = types[0] if types[0] == types[1] else " -> ".join(types)
        table.add_row(report.part, *map(str, counts), shown, f"{report.bytes / 1e9:.2f}")
    Console().print(table)
