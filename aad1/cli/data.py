"""Commands about data: what is in a source of videos, or in a store made of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tyro.conf import Positional, arg

from aad1.cli.options import Device, RecipeName, at_least, recipe_of, say
from aad1.data.clips import read_clip
from aad1.data.entries import ClipError
from aad1.data.latents import LatentStore
from aad1.data.media import tensor_to_video
from aad1.data.sources import find_clips
from aad1.data.store import MANIFEST
from aad1.errors import UserError
from aad1.inspection.findings import Findings
from aad1.inspection.looking import Frames, FramesOf, Look, look_at_source, look_at_store
from aad1.inspection.writing import page_path, table, write
from aad1.models.checkpoint_io import open_folder
from aad1.models.vae import decode_video
from aad1.recipe import Recipe, without_defaults
from aad1.runtime import pick_device
from aad1.workspace import Workspace, model_path


@dataclass(frozen=True)
class DataCommand:
    """Look at videos before you train on them: random clips as a model would see them, histograms, what is left out.

    Of a source (a folder, a .csv, .jsonl or .parquet list, WebDataset tars, hf:owner/name) a random sample is read as
    `aad1 prepare clips` would with this recipe: its size, frame rate and length, and what data.selection wants. Of a
    store that is prepared, or the folder it is in, all rows are taken. Writes the page and, beside it, its numbers as
    JSON.

    For example:
      aad1 data inspect my_videos/ --recipe wan2.1-1.3b -o runs/mine/page.html
      aad1 data inspect my_videos/ --data.selection.min_motion 0.002 --data.selection.max_jump 8 -o runs/mine/page.html
      aad1 data inspect runs/tiny --model tiny -o runs/tiny/page.html
    """

    what: Positional[Literal["inspect"]]
    source: Positional[Annotated[str, arg(metavar="SOURCE_OR_STORE")]]
    recipe: RecipeName = "tiny"
    out: Annotated[Path, arg(aliases=["-o"], help="the page (.html), or a folder for it")] = Path("runs/data")
    sample: Annotated[int, arg(help="clips of a source that are read")] = 200
    clips: Annotated[int, arg(help="clips that are shown as films")] = 12
    seed: Annotated[int, arg(help="of the choice of clips")] = 0
    model: Annotated[
        str | None, arg(help="a Wan folder, or the name of a bundled one, that decodes a store's clips for their films")
    ] = None
    device: Device = "auto"

    def run(self, extra: Sequence[str]) -> None:
        """Look, write, and say what was found."""
        at_least(1, sample=self.sample)
        at_least(0, clips=self.clips, seed=self.seed)
        page, recipe = page_path(self.out), recipe_of(self.recipe, extra, type(self))
        findings = self._findings(recipe)
        numbers = write(findings, page)
        say(f"{table(findings)}\nopen {page.resolve()} in a browser\nthe numbers are in {numbers}")

    def _findings(self, recipe: Recipe) -> Findings:
        data = recipe.data
        look = Look(
            sizes=data.buckets or (data.size,),
            fps=data.fps,
            frames=data.frames,
            selection=data.selection,
            sample=self.sample,
            shown=self.clips,
            seed=self.seed,
        )
        asked = {"recipe": self.recipe, "seed": str(self.seed)}
        if store := _store_of(Path(self.source)):
            return look_at_store(store, self._frames_of(store, recipe), look, asked)
        if self.model:
            raise UserError(f"--model decodes the clips of a prepared store, and {self.source} is none; leave it out")
        wanted = without_defaults(recipe)["data"]
        values = {"size": list(data.size), "fps": data.fps, "frames": data.frames, **_under(wanted, "selection")}
        asked |= {f"data.{name}": str(value) for name, value in values.items()}
        return look_at_source(Path(self.source).name, find_clips(self.source), look, asked)

    def _frames_of(self, store: LatentStore, recipe: Recipe) -> FramesOf:
        """How a store's clips are shown: decoded by the model, or read again from the recipe's source."""
        if self.model:
            return self._decoded(store, self.model)
        return _read_again(store, recipe)

    def _decoded(self, store: LatentStore, model: str) -> FramesOf:
        folder = open_folder(model_path(model), device=str(pick_device(self.device)))
        vae = folder.vae()

        @torch.no_grad()
        def frames(index: int) -> Frames:
            latents = store.read([index])[0]["latents"].to(vae.device, vae.dtype)
            return tensor_to_video(decode_video(vae, latents))[0]

        return frames


def _under(values: Mapping[str, Any], section: str) -> dict[str, Any]:
    """The values of a section of a recipe, by their names within it; none where it is not there."""
    return {f"{section}.{name}": value for name, value in values.get(section, {}).items()}


def _store_of(path: Path) -> LatentStore | None:
    """The store at a path, or the training clips of the workspace there."""
    places = (path, Workspace(path).clips)
    return next((LatentStore(place, unfinished=True) for place in places if (place / MANIFEST).is_file()), None)


def _read_again(store: LatentStore, recipe: Recipe) -> FramesOf:
    """Frames of clips that are still in the recipe's source; None of others."""
    data, found = recipe.data, {}
    sizes = data.buckets or (data.size,)
    try:
        found = {clip.name: clip for clip in find_clips(data.source)}
    except UserError:
        say(f"films need --model, or the videos themselves as --data.source (now '{data.source}')")

    def frames(index: int) -> Frames | None:
        clip = found.get(store.row(index)["source"])
        if clip is None:
            return None
        try:
            return read_clip(clip, sizes=sizes, fps=data.fps, frames=data.frames, selection=data.selection).frames
        except ClipError:
            return None

    return frames
