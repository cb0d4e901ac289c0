"""From a recipe to running jobs: opens the Wan folder and the stores, and builds each stage from its parts."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from aad1.data.entries import ClipError, ClipFile
from aad1.data.filling import Summary, Work, fill, follow
from aad1.data.latents import LatentStore, require
from aad1.data.prepare import SourceClip, clip_work, file_clips, require_clips, world_clips
from aad1.data.selection import WHATEVER, Picked, Selection, Size
from aad1.data.sources import find_clips
from aad1.data.store import Manifest
from aad1.data.team import ALONE, Helpers, Team, torchrun_team
from aad1.data.world import FPS, SIZE, Track, vocabulary
from aad1.errors import UserError, nearest
from aad1.files import user_errors
from aad1.models.adapters import adapted, sharing
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import (
    ASSETS,
    WanFolder,
    folder_hash,
    open_folder,
    recast,
    save_pipeline_folder,
    whole_folder,
)
from aad1.models.critic import Critic
from aad1.models.state_encoder import StateEncoder
from aad1.models.text import TextEncoder, build_tiny_text, check_words
from aad1.models.vae import Geometry, encode_video, geometry
from aad1.parallel.launch import joined, require_alike, require_shared, software
from aad1.parallel.placement import HERE, ComputeConfig, Placement, Role
from aad1.parallel.ulysses import check_context_parallel
from aad1.progress import Progress
from aad1.recipe import Recipe, as_dict, without_defaults
from aad1.record import CLIPS, COUNT, Record, leaves
from aad1.rollout import ClipRollout, roll_clip, roll_clip_replayed
from aad1.runtime import pick_device
from aad1.stages.adversarial import AdversarialStage
from aad1.stages.batches import LatentClips, Stored, Trajectories, tokens_of
from aad1.stages.dmd_warmup import DmdWarmupStage, ScoreDistillation
from aad1.stages.joint import JointStage
from aad1.stages.ode_init import OdeInitStage, check_levels
from aad1.stages.showing import Showing
from aad1.stages.state_encoder import StateEncoderStage
from aad1.stages.teacher import TeacherStage
from aad1.stages.text import TextStage
from aad1.stages.trajectories import Denoising, manifest_for, origins_of, stored_indices, trajectory_work
from aad1.stages.vae import VaeStage, calm_residuals
from aad1.training.gpus import peak_rate
from aad1.training.loop import Run, Stage, has_run, refuse_run
from aad1.training.motion_guard import MotionGuard
from aad1.training.player import Player
from aad1.training.profiling import Window
from aad1.training.randomness import generator_for
from aad1.training.share import pieces
from aad1.training.speed import Scale
from aad1.workspace import DISTILLATION, Workspace, model_path

WORLD_SOURCES: dict[str, Track | None] = {"world": None, "world:determined": "determined", "world:free": "free"}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PARTS = {"text": "text_encoder", "vae": "vae", "teacher": "transformer", "state_encoder": "state_encoder"}
Phase = Callable[[str], AbstractContextManager[Any]]
CAPTIONS_AT_ONCE = 32
Prepared = Literal["clips", "trajectories"]
TITLES: dict[Prepared, str] = {"clips": "Encoding clips", "trajectories": "Denoising trajectories"}
MAKES_ITS_OWN = ("text", "vae", "state_encoder")  # stages that read no store


@user_errors()
def new_folder(recipe: Recipe, folder: Path) -> None:
    """Write a complete Wan folder with random weights, from the recipe's ``new`` section.

    Raises UserError when the recipe has no such section or the folder exists.
    """
    if recipe.new is None:
        raise UserError("this recipe has no 'new' section: it fine-tunes an existing folder, see its --model")
    if folder.exists():
        raise UserError(f"{folder} exists; give a folder that does not")
    torch.manual_seed(recipe.seed)
    vae = _build("vae", AutoencoderKLWan, recipe.new.vae)
    if vae.config.is_residual:
        calm_residuals(vae)
    transformer = _build("transformer", CausalWanTransformer3DModel, recipe.new.transformer)
    tokenizer, encoder = _build("text", partial(build_tiny_text, vocabulary(), seed=recipe.seed), recipe.new.text)
    save_pipeline_folder(
        folder,
        transformer=transformer,
        vae=vae,
        tokenizer=tokenizer,
        text_encoder=encoder,
        flow_shift=recipe.new.flow_shift,
    )


def _build(section: str, make: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """A part of a new folder; its own keys are refused when it does not have them."""
    names = list(inspect.signature(make).parameters)
    if unknown := [key for key in values if key not in names]:
        raise UserError(f"unknown recipe key 'new.{section}.{unknown[0]}'{nearest(str(unknown[0]), names)}")
    try:
        return make(**values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"the recipe's new.{section} cannot be built: {' '.join(str(error).split())}") from error


def _with_known_words(tokenizer: Any, clip: SourceClip) -> Picked:
    """Read a clip whose caption has only words that the text encoder knows; raises ClipError for another."""
    try:
        check_words(tokenizer, [clip.caption])
    except UserError as error:
        raise ClipError(Path(clip.source), str(error)) from None
    return clip.read()


def for_team(recipe: Recipe, team: Team) -> Recipe:
    """The recipe for one process of a team: a GPU of its own, or its part of the CPU's threads where none are given.

    A number of threads that is given stays, for a CPU's last bits depend on it. Raises UserError when there are not
    GPUs enough.
    """
    if team.ranks == 1:
        return recipe
    if recipe.device == "cpu" or not torch.cuda.is_available():
        return replace(recipe, threads=recipe.threads or max(1, (os.cpu_count() or 1) // team.local_ranks))
    gpus = torch.cuda.device_count()
    if recipe.device not in ("auto", "cuda") or team.local >= gpus:
        raise UserError(
            f"{team.local_ranks} processes on device {recipe.device}: each needs a GPU of its own, there are {gpus}; "
            "use device auto and no more processes than GPUs"
        )
    return replace(recipe, device=f"cuda:{team.local}")


def _help(recipe: Recipe, workspace: Workspace, what: Prepared, team: Team) -> None:
    """One helper's part of preparing ``what``."""
    Assembly(recipe, workspace, team).follow(what)


@contextmanager
def assembled(
    recipe: Recipe,
    workspace: Workspace,
    job: Mapping[str, str],
    profile: Window | None = None,
    compute: ComputeConfig | None = None,
) -> Iterator[Assembly]:
    """The assembly of a process that trains: alone, or one of those that torchrun has started.

    job: what is asked of it, for all of them must be asked the same; profile: steps of each of its stages that are
    looked into; compute: instead of the recipe's.

    Raises:
        UserError: when there are not GPUs enough, when the processes do not fill the grid that is wanted, differ in
            code, job or recipe, or do not share the workspace's folder.
    """
    team = torchrun_team()
    with joined(compute or recipe.compute, team, pick_device(for_team(recipe, team).device)) as placement:
        values = {key: leaf for name, part in as_dict(recipe).items() for key, leaf in leaves(part, name).items()}
        require_alike(placement.crew, {**software(), **job, **values})
        require_shared(placement.crew, workspace.root)
        team = replace(team, run=placement.crew.tell(team.run))  # machines begun anew count differently how often
        yield Assembly(recipe, workspace, team, placement, profile)


def student_config(recipe: Recipe) -> dict[str, Any]:
    """What a student's config says beyond its teacher's: chunk, window, sink, passes and size."""
    return {**as_dict(recipe)["student"], "size": list(recipe.data.size)}


def picture_latents(size: Size, shape: Geometry, patch: tuple[int, int]) -> Size:
    """Height and width of a picture's latents; raises UserError when it does not fit the VAE or the patches."""
    height, width = shape.latent_size(*size)
    if height % patch[0] or width % patch[1]:
        raise UserError(
            f"a picture of {size[1]}x{size[0]} does not fit the transformer: width must be a multiple of "
            f"{patch[1] * shape.spatial} and height of {patch[0] * shape.spatial}"
        )
    return height, width


@dataclass
class Assembly:
    """A recipe, the folder its results go to, and the parts that its jobs share (opened when first needed).

    placement: this process's in the crew that trains; by default it is alone and computes in float32.
    """

    recipe: Recipe
    workspace: Workspace
    team: Team = ALONE
    placement: Placement = HERE
    profile: Window | None = None

    def __post_init__(self) -> None:
        own = for_team(self.recipe, self.team)
        self.device = pick_device(own.device)
        if own.threads:
            torch.set_num_threads(own.threads)
        if self.placement is HERE:
            compute = replace(self.recipe.compute, replicate=1, shard=1, context=1, precision="float32")
            self.placement = Placement(compute, device=self.device)

    # --- parts ---------------------------------------------------------------------------------

    @cached_property
    def folder(self) -> WanFolder:
        """The Wan folder that everything starts from."""
        return open_folder(model_path(self.recipe.model), device=str(self.device))

    @cached_property
    def vae(self) -> AutoencoderKLWan:
        """The folder's autoencoder, frozen."""
        return self.folder.vae()

    @cached_property
    def text(self) -> TextEncoder:
        """The folder's text encoder, with a cache in the workspace."""
        return self.folder.text(self.workspace.text_cache)

    @property
    def encoder_hash(self) -> str:
        """Identifies the autoencoder that a store was made with."""
        return folder_hash(self.folder.path / "vae")

    def teacher(self, role: Role | None = None) -> CausalWanTransformer3DModel:
        """A fresh copy of the teacher, with the student's chunk, window, sink, passes and size in its config.

        With a ``role`` its blocks are split over the processes that train; ``placement.finish`` does the rest.
        """
        return self._folder_for(role).transformer(CausalWanTransformer3DModel, **self._student_config())

    def _folder_for(self, role: Role | None) -> WanFolder:
        if role is None:
            return self.folder
        folder = replace(self.folder, prepare=self.placement.split_blocks)
        frozen = role == "teacher"  # it needs no float32 masters
        return replace(folder, dtype=DTYPES[self.placement.config.precision]) if frozen else folder

    @cached_property
    def backbone(self) -> CausalWanTransformer3DModel:
        """The one frozen transformer under teacher, fake score and critic of a recipe with adapters."""
        assert self.recipe.lora is not None
        folder = replace(self.folder, dtype=DTYPES[self.recipe.lora.dtype])
        return folder.transformer(CausalWanTransformer3DModel, **self._student_config()).requires_grad_(False)

    def _frozen_teacher(self) -> CausalWanTransformer3DModel:
        if self.recipe.lora is not None:
            return self.placement.finish(sharing(self.backbone), "teacher", whole=True)
        return self.placement.finish(self.teacher("teacher").requires_grad_(False), "teacher")

    def _learning_teacher(self, role: Role) -> CausalWanTransformer3DModel:
        """What begins as the teacher and learns: a copy of it, or adapters around the shared backbone."""
        return self.teacher(role) if self.recipe.lora is None else adapted(self.backbone, self.recipe.lora)

    def _student_config(self) -> dict[str, Any]:
        return student_config(self.recipe)

    def student(self, stage: str, role: Role | None = None) -> CausalWanTransformer3DModel:
        """The student that ``stage`` exported, with this recipe's config; raises UserError when it has not run.

        ``role`` as for ``teacher``.
        """
        path = self._student_path(stage)
        folder = self._folder_for(role)
        return folder.transformer_at(CausalWanTransformer3DModel, path, **self._student_config())

    def _student_path(self, stage: str) -> Path:
        path = self.workspace.student(stage)
        if not path.is_dir():
            raise UserError(f"{path} is missing: run `aad1 train {stage}` (or `aad1 distill`) with this -o first")
        return path

    @cached_property
    def clips(self) -> LatentStore:
        """The training clips."""
        return self._open_store(self.workspace.clips)

    @cached_property
    def validation(self) -> LatentStore:
        """The held-out clips."""
        return self._open_store(self.workspace.validation)

    def _open_store(self, path: Path) -> LatentStore:
        store = LatentStore(path)
        data = self.recipe.data
        sizes = (data.buckets if path == self.workspace.clips else ()) or (data.size,)
        require(store, encoder=self.encoder_hash, frames=data.frames, size=data.size, fps=data.fps, buckets=sizes)
        return store

    @cached_property
    def showing(self) -> Showing:
        """Held-out samples during training."""
        return Showing(
            self.recipe.showing,
            self.validation,
            self.vae,
            self.text,
            self.recipe.student.passes,
            self.recipe.negative_prompt,
            self.device,
            self.placement.crew,
        )

    def prompt(self, prompt: str) -> Tensor:
        """One embedded prompt, [1, length, dim]."""
        return self.text.embed([prompt]).to(self.device)

    # --- data ----------------------------------------------------------------------------------

    @user_errors()
    def prepare_clips(self, processes: int = 1) -> None:
        """Encode training and held-out clips and all captions into the workspace, continuing what is there."""
        summaries = self._filled("clips", processes)
        if summaries is not None:
            for summary in summaries:
                require_clips(summary)
            self._embed_captions(self.clips, self.validation)

    @user_errors()
    def prepare_trajectories(self, processes: int = 1) -> None:
        """Denoise the teacher's trajectories into the workspace, continuing what is there."""
        stored_indices(self.recipe.trajectories)
        if self.team.leads:
            self._embed_captions(self.clips)
        self._filled("trajectories", processes)

    def _filled(self, what: Prepared, processes: int) -> list[Summary] | None:
        """Fill the stores of ``what`` as this process's place in the team has it; None where another one leads."""
        crew = self.placement.crew
        if not self.team.leads:
            crew.meet()
            self.follow(what)
            crew.meet()
            return None
        helpers = Helpers(partial(_help, self.recipe, self.workspace, what), processes) if processes > 1 else None
        if helpers:
            for_team(self.recipe, Team(0, processes, local=processes - 1, local_ranks=processes))  # GPUs enough?
        return fill(self.works(what), TITLES[what], team=self.team, helpers=helpers, meet=crew.meet)

    @user_errors()
    def follow(self, what: Prepared) -> None:
        """Make this process's share of what a team prepares that another process leads."""
        follow(self.works(what), self.team)

    def works(self, what: Prepared) -> list[Work]:
        """The stores of ``what`` and how to fill them."""
        if what == "trajectories":
            source = Denoising(
                self._denoiser,
                self.text,
                self.clips,
                self.recipe.trajectories,
                self.recipe.seed,
                self.recipe.negative_prompt,
            )
            return [trajectory_work(source, self.workspace.trajectories, self._denoiser_identity)]
        manifest, (training, held_out) = self._manifest(), self._sources()
        both = (
            (training, self.workspace.clips, manifest),
            (held_out, self.workspace.validation, replace(manifest, buckets=())),
        )
        return [clip_work(clips, path, self.encode, m, batch_size=self.recipe.data.batch) for clips, path, m in both]

    def _denoiser(self) -> CausalWanTransformer3DModel:
        """The teacher that trajectories come of, whole in this process and in the precision of the recipe's passes."""
        folder = replace(self.folder, dtype=DTYPES[self.recipe.compute.precision])
        return folder.transformer(CausalWanTransformer3DModel, **self._student_config()).eval()

    @property
    def _denoiser_identity(self) -> str:
        precision = self.recipe.compute.precision
        return folder_hash(self.folder.path / "transformer") + ("" if precision == "float32" else f" in {precision}")

    def _sources(self) -> tuple[list[SourceClip], list[SourceClip]]:
        data = self.recipe.data
        if data.source in WORLD_SOURCES:
            if (data.size, data.fps) != ((SIZE, SIZE), FPS):
                raise UserError(
                    f"the embedded world has size [{SIZE}, {SIZE}] and fps {FPS}, the recipe's data {list(data.size)} "
                    f"and {data.fps:g}; use the same, or give videos as data.source"
                )
            if data.selection != WHATEVER or data.buckets:
                raise UserError(
                    "data.selection and data.buckets are for videos and the embedded world has none; "
                    "leave them out, or give videos as data.source"
                )
            track = WORLD_SOURCES[data.source]
            wanted = (("train", data.clips), ("val", data.validation))
            training, held_out = (world_clips(split, count, data.frames, track) for split, count in wanted)
            return training, held_out
        files = find_clips(data.source)
        if len(files) <= data.validation:
            raise UserError(
                f"{data.source} has {len(files)} clips and data.validation holds out {data.validation}; "
                "give more clips or hold out fewer"
            )
        # A list that grows keeps its split. Of a held-out video one clip is enough.
        ours, held_out_files = files[data.validation :][: data.clips], files[: data.validation]
        once = replace(data.selection, clips_per_video=1, stride=None)
        training = self._files(ours, data.buckets or (data.size,), data.selection)[: data.clips]
        return training, self._files(held_out_files, (data.size,), once)

    def _files(self, files: Sequence[ClipFile], sizes: Sequence[Size], selection: Selection) -> list[SourceClip]:
        """A user's clips; one whose caption the text encoder would lose words of is refused when it is read."""
        data = self.recipe.data
        clips = file_clips(files, sizes=sizes, fps=data.fps, frames=data.frames, selection=selection)
        return [replace(clip, read=partial(_with_known_words, self.text.tokenizer, clip)) for clip in clips]

    def _manifest(self) -> Manifest:
        data = self.recipe.data
        shape = geometry(self.vae)
        shape.latent_frames(data.frames)
        config = CausalWanTransformer3DModel.load_config(self.folder.path, subfolder="transformer")
        _, rows, columns = config["patch_size"]
        for size in data.buckets or (data.size,):
            picture_latents(size, shape, (rows, columns))
        # A store keeps what its clips were chosen by, so that nobody continues it with another choice.
        asked = without_defaults(self.recipe)["data"].get("selection", {})
        chosen = {f"selection.{name}": value for name, value in asked.items()}
        return Manifest("latents", self.encoder_hash, data.fps, data.size, data.frames, data.buckets, chosen)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Frames [batch, 3, frames, height, width] in [-1, 1] -> normalised latents."""
        return encode_video(self.vae, frames.to(self.device))

    # --- stages --------------------------------------------------------------------------------

    def stage(self, name: str) -> Stage:
        """Build a stage; raises UserError when the recipe has no such section or its inputs are missing."""
        builders: dict[str, Callable[[], Stage]] = {
            "text": self._text_stage,
            "vae": self._vae_stage,
            "teacher": self._teacher_stage,
            "state_encoder": self._state_encoder_stage,
            "ode_init": self._ode_init,
            "dmd_warmup": self._dmd_warmup,
            "adversarial": self._adversarial,
        }
        torch.manual_seed(int(generator_for(self.recipe.seed, name).initial_seed()))
        return builders[name]()

    def _section(self, name: str) -> Any:
        section = vars(self.recipe)[name]
        if section is None:
            raise UserError(f"this recipe has no section '{name}': it starts from an existing folder's {PARTS[name]}")
        return section

    def _text_stage(self) -> Stage:
        return TextStage(self._section("text"), self.text.tokenizer, self.text.encoder)

    def _vae_stage(self) -> Stage:
        config, vae = self._section("vae"), self.folder.vae()
        geometry(vae).latent_frames(config.frames)
        geometry(vae).latent_size(config.window, config.window)
        return VaeStage(config, vae)

    def _teacher_stage(self) -> Stage:
        data = LatentClips(self.clips, self.text, self.device)
        teacher = self.placement.finish(self.teacher("generator"), "generator")
        return TeacherStage(self._section("teacher"), teacher, data, self.prompt(""), self.showing)

    def _state_encoder_stage(self) -> Stage:
        config = self._section("state_encoder")
        encoder = StateEncoder(config.channels, config.hidden, config.features).to(self.device)
        return StateEncoderStage(config, encoder)

    def _ode_init(self) -> Stage:
        store, wanted = LatentStore(self.workspace.trajectories), self.recipe.trajectories
        if self.placement.crew.leads:
            self._check_trajectories(store)
        data = Trajectories(store, self.text, self.device, wanted.count)
        generator = self.placement.finish(self.teacher("generator"), "generator")
        levels = store.manifest.extra["stored_levels"]
        return OdeInitStage(self.recipe.ode_init, generator, data, levels, self.showing)

    def _check_trajectories(self, store: LatentStore) -> None:
        """Raise UserError unless these are the recipe's trajectories, of this teacher and these clips."""
        wanted = self.recipe.trajectories
        check_levels(store.manifest.extra["stored_levels"], (*wanted.stored_levels, *self.recipe.student.passes))
        if len(store) < wanted.count:
            raise UserError(
                f"{store.folder} holds {len(store)} trajectories, the recipe wants {wanted.count}: run "
                "`aad1 prepare trajectories` with this -o to make the others, or lower trajectories.count"
            )
        expected = manifest_for(
            wanted, self.clips, self._denoiser_identity, self.recipe.seed, self.recipe.negative_prompt
        )
        shape = {name: vars(expected)[name] for name in ("encoder", "frames", "size", "buckets", "fps")}
        require(store, **shape, **expected.extra)
        if [store.row(i) for i in range(wanted.count)] != origins_of(self.clips, wanted.count):
            raise UserError(
                f"{store.folder} was made from other clips than {self.clips.folder} holds now: "
                "delete it and run `aad1 prepare trajectories` again, or put those clips back"
            )

    def _dmd_warmup(self) -> Stage:
        return DmdWarmupStage(
            self.recipe.dmd_warmup,
            self._generator(self._before("dmd_warmup")),
            self._scores(),
            LatentClips(self.clips, self.text, self.device),
            self.recipe.student.passes,
            self.showing,
            MotionGuard(self.recipe.guard),
            roll=self._roll,
        )

    def _adversarial(self) -> Stage:
        config, before = self.recipe.adversarial, self._before("adversarial")
        generator = self._generator(before)
        # A causal critic starts from the student, a bidirectional one from the teacher.
        causal = config.critic.visibility == "block_causal"
        backbone = self.student(before, "critic") if causal else self._learning_teacher("critic")
        game = AdversarialStage(
            config,
            generator,
            self.placement.finish(self._critic(backbone).to(self.device), "critic"),
            LatentClips(self.clips, self.text, self.device),
            self.recipe.student.passes,
            self.showing,
            roll=self._roll,
        )
        return JointStage(game, self._scores()) if config.dmd_weight else game

    def _scores(self) -> ScoreDistillation:
        """Fake score and teacher, both the folder's transformer to begin with."""
        negative = self.prompt(self.recipe.negative_prompt)
        fake_score = self.placement.finish(self._learning_teacher("fake_score"), "fake_score")
        return ScoreDistillation(self.recipe.dmd_warmup, fake_score, self._frozen_teacher(), negative)

    def _generator(self, before: str) -> CausalWanTransformer3DModel:
        """The student that goes on learning, as the stage ``before`` exported it."""
        return self.placement.finish(self.student(before, "generator"), "generator")

    @property
    def _roll(self) -> ClipRollout:
        return roll_clip_replayed if self.placement.config.replay else roll_clip

    def _before(self, name: str) -> str:
        """The stage whose student ``name`` begins with."""
        return {"dmd_warmup": "ode_init", "adversarial": self.recipe.adversarial.begins_with}[name]

    @property
    def way(self) -> tuple[str, ...]:
        """The stages of this recipe's distillation, in order: without a warm-up where stage III begins with stage I."""
        skipped = self.recipe.adversarial.begins_with == "ode_init"
        return tuple(name for name in DISTILLATION if not (skipped and name == "dmd_warmup"))

    def _critic(self, backbone: CausalWanTransformer3DModel) -> Critic:
        try:
            return Critic(backbone, **vars(self.recipe.adversarial.critic))
        except IndexError as error:
            raise UserError(f"{error}; choose among them in adversarial.critic.layers") from error

    # --- jobs ----------------------------------------------------------------------------------

    @user_errors()
    def train(self, name: str, resume: bool) -> Path:
        """Run one stage to its end, with all processes of the crew; returns what it exported.

        Raises:
            UserError: when the run in the workspace may not go on; as SharedError where there is a crew.
        """
        folder, config, crew = self.workspace.run(name), self._section(name), self.placement.crew
        begun = crew.tell(has_run(folder))  # one that was stopped before its first checkpoint counts for nothing
        crew.agree(partial(self._ready, name, folder, begun and not resume))
        crew.where.note("load", name)
        stage = crew.agree(partial(self.stage, name))
        crew.agree(partial(self._admit, name, folder, begun, stage))
        return Run(stage, config, folder, self.recipe.seed, resume, crew, self._scale(name), self.profile).train()

    def _scale(self, name: str) -> Scale:
        """What a stage's speed is told in; one precision has one peak, so two have none."""
        recipe = self.recipe
        precision = recipe.compute.precision
        alike = recipe.lora is None or recipe.lora.dtype == precision
        peak = peak_rate(self.device, precision) if alike else None
        if name in MAKES_ITS_OWN:
            return Scale(peak)
        config = CausalWanTransformer3DModel.load_config(self.folder.path, subfolder="transformer")
        return Scale(peak, partial(tokens_of, config["patch_size"]))

    def _ready(self, name: str, folder: Path, refused: bool) -> None:
        """Before a stage is built: the leader refuses what may not go on and embeds what the stage will ask for."""
        crew = self.placement.crew
        if crew.ranks > 1 and name in MAKES_ITS_OWN:
            raise UserError(f"{name} trains on one process, not {crew.ranks}: start it without torchrun")
        if name not in MAKES_ITS_OWN:
            self._check_spread(name)
        if self.profile is not None:
            self.profile.require_within(name, self._section(name).steps)
        if not crew.leads:
            return
        if refused:
            refuse_run(folder)
        if has_run(folder):
            self._check_run(folder, name, resume=True)
        if name in ("dmd_warmup", "adversarial"):
            self._student_path(self._before(name))  # what is missing first, is said first
        if name not in MAKES_ITS_OWN:
            store = LatentStore(self.workspace.trajectories) if name == "ode_init" else self.clips
            self._embed_captions(store, self.validation)

    def _check_spread(self, *stages: str) -> None:
        """Raise UserError unless these stages' samples can be dealt to the groups, and heads and tokens within one."""
        crew = self.placement.crew
        for section in map(self._section, stages):
            pieces(section.batch, section.accumulate, crew.group, crew.groups)
        config = CausalWanTransformer3DModel.load_config(self.folder.path, subfolder="transformer")
        data, shape, (_, rows, columns) = self.recipe.data, geometry(self.vae), config["patch_size"]
        for height, width in (picture_latents(size, shape, (rows, columns)) for size in data.buckets or (data.size,)):
            tokens = (height // rows) * (width // columns)
            check_context_parallel(config["num_attention_heads"], tokens, self.placement.config.context)

    def _admit(self, name: str, folder: Path, begun: bool, stage: Stage) -> None:
        """Before a stage runs: the leader holds it against what an earlier run was begun with, or writes that down."""
        if self.placement.crew.leads:
            if begun:
                Record(folder).require_clips(partial(_data, stage))
            else:
                Record(folder).write(as_dict(self.recipe), self._inputs(name) | _data(stage))

    def _embed_captions(self, *stores: LatentStore) -> None:
        """Embed what a stage will ask for, once, and drop the encoder: it can be larger than what trains."""
        captions = {store.row(index)["caption"] for store in stores for index in range(len(store))}
        missing = sorted(self.text.missing([*captions, self.recipe.negative_prompt, ""]))
        with Progress("Embedding captions", len(missing), unit="caption") as bar:
            for start in range(0, len(missing), CAPTIONS_AT_ONCE):
                part = missing[start : start + CAPTIONS_AT_ONCE]
                self.text.embed(part)
                bar.advance(len(part))
        self.text.release()

    def distill(self, resume: bool, phase: Phase = nullcontext) -> Path:
        """Clips, trajectories and the three stages, skipping what is finished; returns the student's folder.

        Each runs inside ``phase(its name)``.
        """
        self.placement.crew.agree(partial(self.preflight, resume))
        for name, prepare in (("clips", self.prepare_clips), ("trajectories", self.prepare_trajectories)):
            with phase(name):
                prepare()
        for name in self.way:
            with phase(name):
                self.train(name, resume)
        return self.workspace.student(DISTILLATION[-1])

    @user_errors()
    def preflight(self, resume: bool) -> None:
        """Refuse at once what a later stage would refuse after hours: its run, critic layers, rates of no parameter."""
        for name in DISTILLATION if self.placement.crew.leads else ():  # it hashes the whole Wan folder
            if has_run(folder := self.workspace.run(name)):
                self._check_run(folder, name, resume)
        self._sources()
        self._check_spread(*self.way)
        if self.profile is not None:
            for name in self.way:
                self.profile.require_within(name, self._section(name).steps)
        recipe = self.recipe
        stored_indices(recipe.trajectories)
        check_levels(recipe.trajectories.stored_levels, recipe.student.passes)
        if recipe.lora is not None and recipe.adversarial.critic.visibility != "full":
            raise UserError(
                "with `lora` the critic shares the teacher's backbone, so adversarial.critic.visibility must be full, "
                f"not {recipe.adversarial.critic.visibility}; leave out `lora` for a causal critic"
            )
        with torch.device("meta"):  # names and shapes alone
            config = CausalWanTransformer3DModel.load_config(self.folder.path, subfolder="transformer")
            model = CausalWanTransformer3DModel.from_config(config)
            Player("generator", model, recipe.ode_init.optimizer)
            Player("generator", model, recipe.dmd_warmup.generator_optimizer)
            Player("generator", model, recipe.adversarial.generator_optimizer)
            learning = model if recipe.lora is None else adapted(model, recipe.lora)
            Player("fake_score", learning, recipe.dmd_warmup.fake_score_optimizer)
            Player("critic", self._critic(learning), recipe.adversarial.critic_optimizer)

    def refuse_install(self) -> None:
        """Raise UserError when trained parts cannot be put into the Wan folder: said before they are trained."""
        if self.folder.path.is_relative_to(ASSETS):
            raise UserError(
                f"'{self.folder.path}' comes with the package and is not written to; "
                "copy it (or make one with `aad1 new`) and give the copy as --model"
            )

    @user_errors()
    def install(self, name: str) -> None:
        """Put a trained part into the Wan folder it was trained from."""
        part = PARTS.get(name, "student")
        self.refuse_install()
        with whole_folder(self.folder.path / part) as fresh:
            shutil.copytree(self.workspace.run(name) / "final" / part, fresh, dirs_exist_ok=True)
            if self.recipe.new is not None:
                recast(fresh, DTYPES[self.recipe.new.dtype])

    def _check_run(self, folder: Path, name: str, resume: bool) -> None:
        """Raise UserError unless the run in ``folder`` may go on, with its inputs and its recipe."""
        if not resume:
            refuse_run(folder)
        Record(folder).require_alike(as_dict(self.recipe), self._inputs(name), name)

    def _inputs(self, name: str) -> dict[str, str]:
        """Hashes of what a run of this stage does not change; the part it trains is in its checkpoints."""
        if name in MAKES_ITS_OWN:
            return {}
        parts = ("vae", "text_encoder", "tokenizer", *(("transformer",) if name in DISTILLATION else ()))
        paths = {part: self.folder.path / part for part in parts}
        if name in ("dmd_warmup", "adversarial"):
            before = self._before(name)
            paths[f"student of {before}"] = self._student_path(before)
        return {what: folder_hash(path) for what, path in paths.items()}


def _data(stage: Stage, count: int | None = None) -> dict[str, Any]:
    """Which clips a stage learns from: how many, and a hash of what they are; nothing where it makes its own."""
    if not isinstance(stage.dataset, Stored):
        return {}
    count = count or len(stage.dataset)
    return {COUNT: count, CLIPS: stage.dataset.store.fingerprint(count)}
