"""Commands that make models: new, train, distill, demo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from aad1.assembly import Assembly, assembled, new_folder
from aad1.cli.options import Install, Out, RecipeName, ResumeFlag, out_of, recipe_of, say
from aad1.data.team import restarted, torchrun_team
from aad1.demo import Demo, DemoConfig
from aad1.parallel.agent_store import begun_by_it
from aad1.parallel.crew import Crew
from aad1.training.loop import has_run
from aad1.training.profiling import window_of
from aad1.workspace import DISTILLATION, Workspace

Profile = Annotated[
    str | None, arg(metavar="FIRST:LAST", help="steps of each stage to look into with torch's profiler, on rank 0")
]


@dataclass(frozen=True)
class New:
    """Write a Wan folder with random weights, to train from nothing.

    For example:
      aad1 new runs/model --recipe tiny
    """

    folder: Positional[Path]
    recipe: RecipeName = "tiny"

    def run(self, extra: Sequence[str]) -> None:
        """Write the folder."""
        new_folder(recipe_of(self.recipe, extra, type(self)), self.folder)
        say(f"wrote {self.folder}; train its parts with aad1 train text|vae|teacher --model {self.folder} --install")


@dataclass(frozen=True)
class Train:
    """Run one training stage.

    text, vae and teacher make the parts of a Wan folder, state_encoder what distances between distributions of
    videos are measured with; ode_init, dmd_warmup and adversarial are the method's stages I, II and III.

    On several GPUs or machines start it with torchrun; the recipe's section `compute` says what each of them does.

    For example:
      aad1 train ode_init --recipe tiny -o runs/tiny --ode_init.steps 50
      torchrun --nproc-per-node 8 -m aad1 train dmd_warmup --recipe wan2.1-1.3b -o runs/1.3b
    """

    stage: Positional[Literal["text", "vae", "teacher", "state_encoder", "ode_init", "dmd_warmup", "adversarial"]]
    recipe: RecipeName = "tiny"
    out: Out = None
    resume: ResumeFlag = False
    install: Install = False
    profile: Profile = None

    def run(self, extra: Sequence[str]) -> None:
        """Train, and say where the result is."""
        recipe, workspace = recipe_of(self.recipe, extra, type(self)), Workspace(out_of(self.out, self.recipe))
        job, begun = _job(f"train {self.stage}", self), _begun_by_torchrun(workspace, self.stage)
        with assembled(recipe, workspace, job, window_of(self.profile) if self.profile else None) as assembly:
            if self.install:
                assembly.refuse_install()
            made = assembly.train(self.stage, _goes_on(assembly.placement.crew, self.resume, begun))
            _conclude(assembly, made, self.stage if self.install else None)


@dataclass(frozen=True)
class Distill:
    """Distil a bidirectional teacher into a one-step causal student: clips, trajectories, stages I to III.

    On several GPUs or machines start it with torchrun; the recipe's section `compute` says what each of them does.

    For example:
      aad1 distill --recipe tiny -o runs/tiny
      torchrun --nproc-per-node 8 --max-restarts 3 -m aad1 distill --recipe wan2.1-1.3b -o runs/1.3b
    """

    recipe: RecipeName = "tiny"
    out: Out = None
    resume: ResumeFlag = False
    install: Install = False
    profile: Profile = None

    def run(self, extra: Sequence[str]) -> None:
        """Run every step that is not finished."""
        recipe, workspace = recipe_of(self.recipe, extra, type(self)), Workspace(out_of(self.out, self.recipe))
        job, begun = _job("distill", self), _begun_by_torchrun(workspace, *DISTILLATION)
        with assembled(recipe, workspace, job, window_of(self.profile) if self.profile else None) as assembly:
            if self.install:
                assembly.refuse_install()
            made = assembly.distill(_goes_on(assembly.placement.crew, self.resume, begun))
            _conclude(assembly, made, "adversarial" if self.install else None)


def _job(command: str, given: Train | Distill) -> dict[str, str]:
    """What all processes must be asked for alike, beside the recipe."""
    return {"command": command, "--profile": str(given.profile), "--install": str(given.install)}


def _begun_by_torchrun(workspace: Workspace, *stages: str) -> bool | None:
    """Whether the runs that are there were begun by the torchrun that starts this, by its leader's eyes.

    Asked before all else, for the first start is to note what was there before it. None where nobody can tell.
    """
    found = any(has_run(workspace.run(stage)) for stage in stages)
    runs = f"{' '.join(stages)} in {workspace.root.resolve()}"
    return begun_by_it(runs, found, restarted()) if torchrun_team().leads else None


def _goes_on(crew: Crew, resume: bool, begun: bool | None) -> bool:
    """Whether what an earlier start has done is gone on with: asked for, or begun by the torchrun that restarts this.

    A run that was there before torchrun began is refused at every start: a restart does not stand for --resume.
    """
    asked, again, told = crew.any(resume), crew.any(restarted()), crew.tell(begun)
    return asked or (again if told is None else told)


def _conclude(assembly: Assembly, made: Path, installed: str | None) -> None:
    """The leader says where the result is, and puts it into the Wan folder where that was asked for."""
    if not assembly.team.leads:
        return
    say(f"wrote {made}")
    if installed is not None:
        assembly.install(installed)
        say(f"installed in {assembly.folder.path}")


@dataclass(frozen=True)
class DemoCommand:
    """See the whole method work: distil the bundled teacher in minutes, score every stage, and look at it.

    For example:
      aad1 demo -o runs/demo
    """

    recipe: RecipeName = "demo"
    out: Out = None
    resume: ResumeFlag = False
    clips: Annotated[int, arg(help="test clips that every row of the table is measured on")] = 16
    shown: Annotated[int, arg(help="how many of them are on the page")] = 4

    def run(self, extra: Sequence[str]) -> None:
        """Run, and say where to look."""
        config = DemoConfig(self.clips, self.shown)
        page = Demo(recipe_of(self.recipe, extra, type(self)), out_of(self.out, self.recipe), config, self.resume).run()
        say(f"open {page.resolve()} in a browser\nthe table is in {page.parent / 'evaluation' / 'report.md'}")
