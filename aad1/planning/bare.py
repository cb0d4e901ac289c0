"""An assembly whose models and stores have no contents: it builds the true stages, and nothing is read or computed.

To be used inside ``without_contents``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from aad1.assembly import Assembly
from aad1.data.latents import LatentStore
from aad1.errors import UserError
from aad1.models.checkpoint_io import Transformer, WanFolder, refuse_misfit
from aad1.models.text import MAX_PROMPT_TOKENS, TextEncoder
from aad1.models.vae import decode_video, geometry
from aad1.planning.ledger import recast
from aad1.planning.published import Configs
from aad1.recipe import Recipe
from aad1.stages.batches import Trajectories
from aad1.stages.ode_init import OdeInitStage
from aad1.stages.showing import Showing
from aad1.training.loop import Stage
from aad1.workspace import Workspace

NOWHERE = Path("plan")


@dataclass(frozen=True)
class BareFolder(WanFolder):
    """A Wan folder of which only the configs are known."""

    configs: Configs = field(kw_only=True)

    def vae(self) -> AutoencoderKLWan:
        """An autoencoder of that config, frozen."""
        return self._built(AutoencoderKLWan, self.configs.vae, "vae").requires_grad_(False)

    def text(self, cache_folder: Path | None = None) -> TextEncoder:
        """Embeddings as long as a prompt can be."""
        return cast(TextEncoder, BareText(int(self.configs.text_encoder["d_model"])))

    def text_encoder(self) -> UMT5EncoderModel:
        """A text encoder of that config, frozen."""
        encoder = UMT5EncoderModel(UMT5Config(**self.configs.text_encoder))
        recast(encoder, self.dtype)
        return encoder.eval().requires_grad_(False)

    def transformer(self, cls: type[Transformer], subfolder: str = "transformer", **config: Any) -> Transformer:
        """A transformer of that config with ``config`` over it."""
        refuse_misfit(self.path, self.configs.transformer, self.configs.vae, self.configs.text_encoder)
        return self._built(cls, {**self.configs.transformer, **config}, "transformer")

    def _built(self, cls: Any, config: Mapping[str, Any], part: str) -> Any:
        try:
            model = cls.from_config(dict(config))
        except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the config of the {part} makes no model ({reason}); mend its config.json") from error
        recast(model, self.dtype)
        return model.eval()


@dataclass(frozen=True)
class BareText:
    """A text encoder's embeddings, without contents."""

    dim: int
    length: int = MAX_PROMPT_TOKENS

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """[batch, length, dim]."""
        return torch.empty(len(prompts), self.length, self.dim)


@dataclass(frozen=True)
class BareStore:
    """A store of which only the shape of an item is known: as many as the recipe wants."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    count: int

    def __len__(self) -> int:
        return self.count

    def row(self, index: int) -> dict[str, str]:
        """A caption nobody will read."""
        return {"caption": "", "source": ""}

    def read(self, indices: Sequence[int]) -> tuple[dict[str, Tensor], list[dict[str, str]]]:
        """Tensors [batch, *shape] and their rows."""
        tensor = torch.empty(len(indices), *self.shape, dtype=self.dtype)
        return {self.name: tensor}, [self.row(index) for index in indices]

    @property
    def bytes(self) -> int:
        """What it takes on disk."""
        return self.count * torch.Size(self.shape).numel() * self.dtype.itemsize


class BareShowing(Showing):
    """Held-out samples are made and decoded, as in training, but there is nothing to measure."""

    def _measure(self, latents: Tensor, path: Path, image_given: bool, period: int) -> dict[str, float]:
        self._decode(latents)
        return {}

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> NDArray[Any]:
        frames = decode_video(self.vae, latents[:1])  # clips are decoded one after the other
        return cast(NDArray[Any], frames)


@dataclass
class BareAssembly(Assembly):
    """The assembly of a recipe without its folder's weights and its workspace's stores."""

    configs: Configs = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.levels = self.recipe.trajectories.stored_levels  # numbers, so not among what has no contents

    @cached_property
    def folder(self) -> WanFolder:
        """A folder of configs."""
        return BareFolder(Path(self.recipe.model), configs=self.configs)

    @property
    def bare_folder(self) -> BareFolder:
        """The same, as what it is."""
        return cast(BareFolder, self.folder)

    def student(self, stage: str) -> Any:
        """What a stage will have exported: a transformer like the teacher."""
        return self.teacher()

    @cached_property
    def clips(self) -> LatentStore:
        """As many training clips as the recipe wants."""
        return cast(LatentStore, self.store("latents", (), torch.float32, self.recipe.data.clips))

    @cached_property
    def validation(self) -> LatentStore:
        """As many held-out clips."""
        return cast(LatentStore, self.store("latents", (), torch.float32, self.recipe.data.validation))

    @property
    def trajectories(self) -> BareStore:
        """The teacher's trajectories: every stored level of a clip, in half precision."""
        return self.store("points", (len(self.levels),), torch.float16, self.recipe.trajectories.count)

    def store(self, name: str, before: tuple[int, ...], dtype: torch.dtype, count: int) -> BareStore:
        """A store of latent clips, each with axes ``before`` the clip's own."""
        return BareStore(name, (*before, *self.latent_shape), dtype, count)

    @cached_property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of a clip's latents; raises UserError when the clip does not fit."""
        shape, data = geometry(self.vae), self.recipe.data
        height, width = shape.latent_size(*data.size)
        _, rows, columns = self.configs.transformer.get("patch_size", (1, 2, 2))
        if height % rows or width % columns:
            raise UserError(
                f"a picture of {data.size[1]}x{data.size[0]} does not fit the transformer: width must be a multiple of "
                f"{columns * shape.spatial} and height of {rows * shape.spatial}"
            )
        return shape.channels, shape.latent_frames(data.frames), height, width

    @cached_property
    def showing(self) -> Showing:
        """Held-out samples, made and decoded."""
        recipe = self.recipe
        parts = (self.validation, self.vae, self.text, recipe.student.passes, recipe.negative_prompt, self.device)
        return BareShowing(recipe.showing, *parts)

    def _ode_init(self) -> Stage:
        data = Trajectories(cast(LatentStore, self.trajectories), self.text, self.device, len(self.trajectories))
        return OdeInitStage(self.recipe.ode_init, self.teacher(), data, self.levels, self.showing)


def bare_assembly(recipe: Recipe, configs: Configs) -> BareAssembly:
    """An assembly for ``recipe``, to be made outside ``without_contents`` and used inside, on the CPU as far as torch knows."""
    return BareAssembly(replace(recipe, device="cpu", threads=0), Workspace(NOWHERE), configs=configs)
