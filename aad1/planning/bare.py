"""An assembly whose models and stores have no contents: it builds the true stages, and nothing is read or computed."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from aad1.assembly import Assembly, picture_latents
from aad1.data.latents import LatentStore
from aad1.errors import UserError
from aad1.models.checkpoint_io import Transformer, WanFolder, refuse_misfit
from aad1.models.text import TextEncoder
from aad1.models.vae import decode_video, geometry
from aad1.parallel.placement import Placement, Role
from aad1.planning.ledger import META, cast
from aad1.planning.published import Configs
from aad1.stages.batches import Trajectories
from aad1.stages.ode_init import OdeInitStage
from aad1.stages.showing import Showing
from aad1.training.loop import Stage


@dataclass(frozen=True)
class BareFolder(WanFolder):
    """A Wan folder of which only the configs are known."""

    configs: Configs = field(kw_only=True)

    def vae(self) -> AutoencoderKLWan:
        """An autoencoder of that config, frozen."""
        return self._built(AutoencoderKLWan, self.configs.vae, "vae").requires_grad_(False)

    def text(self, cache_folder: Path | None = None) -> TextEncoder:
        """Embeddings of the length that every prompt is padded to."""
        return typing.cast(TextEncoder, BareText(int(self.configs.text_encoder["d_model"]), self.configs.prompt_tokens))

    def text_encoder(self) -> UMT5EncoderModel:
        """A text encoder of that config, frozen."""
        with META:
            encoder = UMT5EncoderModel(UMT5Config(**self.configs.text_encoder))
        cast(encoder, self.dtype)
        return encoder.eval().requires_grad_(False)

    def transformer(self, cls: type[Transformer], subfolder: str = "transformer", **config: Any) -> Transformer:
        """A transformer of that config with ``config`` over it."""
        refuse_misfit(self.path, self.configs.transformer, self.configs.vae, self.configs.text_encoder)
        return self._built(cls, {**self.configs.transformer, **config}, "transformer")

    def _built(self, cls: Any, config: Mapping[str, Any], part: str) -> Any:
        try:
            with META:
                model = cls.from_config(dict(config))
        except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the config of the {part} makes no model ({reason}); mend its config.json") from error
        cast(model, self.dtype)
        return model.eval()


@dataclass(frozen=True)
class BareText:
    """A text encoder's embeddings, without contents."""

    dim: int
    length: int

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """[batch, length, dim]."""
        return torch.empty(len(prompts), self.length, self.dim, device=META)


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
        tensor = torch.empty(len(indices), *self.shape, dtype=self.dtype, device=META)
        return {self.name: tensor}, [self.row(index) for index in indices]

    @property
    def bytes(self) -> int:
        """What it takes on disk."""
        return self.count * torch.Size(self.shape).numel() * self.dtype.itemsize


class BareShowing(Showing):
    """Held-out samples are made, as in training, and kept to be decoded; there is nothing to measure."""

    made: Tensor

    def _measure(self, latents: Tensor, path: Path, image_given: bool, period: int) -> dict[str, float]:
        self.made = latents
        return {}

    @torch.no_grad()
    def decode(self) -> None:
        """Decode one of the samples: clips are decoded one after the other."""
        decode_video(self.vae, self.made[:1])


@dataclass
class BareAssembly(Assembly):
    """The assembly of a recipe without its folder's weights and its workspace's stores."""

    configs: Configs = field(kw_only=True)

    def __post_init__(self) -> None:
        self.device = META
        compute = replace(self.recipe.compute, replicate=1, shard=1, context=1, checkpointing=(), compile=())
        self.placement = Placement(compute, device=META)  # what the plan spreads and checkpoints itself is left out

    @cached_property
    def folder(self) -> WanFolder:
        """A folder of configs."""
        return BareFolder(Path(self.recipe.model), configs=self.configs)

    @property
    def bare_folder(self) -> BareFolder:
        """The same, as what it is."""
        return typing.cast(BareFolder, self.folder)

    def student(self, stage: str, role: Role | None = None) -> Any:
        """What a stage will have exported: a transformer like the teacher."""
        return self.teacher(role)

    @cached_property
    def clips(self) -> LatentStore:
        """As many training clips as the recipe wants."""
        return typing.cast(LatentStore, self.store("latents", (), torch.float32, self.recipe.data.clips))

    @cached_property
    def validation(self) -> LatentStore:
        """As many held-out clips."""
        return typing.cast(LatentStore, self.store("latents", (), torch.float32, self.recipe.data.validation))

    @property
    def trajectories(self) -> BareStore:
        """The teacher's trajectories: every stored level of a clip, in half precision."""
        return self.store(
            "points", (len(self.recipe.trajectories.stored_levels),), torch.float16, self.recipe.trajectories.count
        )

    def store(self, name: str, before: tuple[int, ...], dtype: torch.dtype, count: int) -> BareStore:
        """A store of latent clips, each with axes ``before`` the clip's own."""
        return BareStore(name, (*before, *self.latent_shape), dtype, count)

    @cached_property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of a clip's latents; raises UserError when the clip does not fit."""
        shape, data = geometry(self.vae), self.recipe.data
        _, rows, columns = self.configs.transformer.get("patch_size", (1, 2, 2))
        height, width = picture_latents(data.size, shape, (rows, columns))
        return shape.channels, shape.latent_frames(data.frames), height, width

    @cached_property
    def showing(self) -> BareShowing:
        """Held-out samples, made and decoded."""
        recipe = self.recipe
        parts = (self.validation, self.vae, self.text, recipe.student.passes, recipe.negative_prompt, self.device)
        return BareShowing(recipe.showing, *parts)

    def _ode_init(self) -> Stage:
        data = Trajectories(typing.cast(LatentStore, self.trajectories), self.text, self.device, len(self.trajectories))
        levels = self.recipe.trajectories.stored_levels
        return OdeInitStage(self.recipe.ode_init, self.teacher(), data, levels, self.showing)
