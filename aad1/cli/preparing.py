"""The command that makes what the stages learn from: prepare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from aad1.assembly import Prepared, assembled
from aad1.cli.options import FINISHED, Out, RecipeName, at_least, keeping, out_of, recipe_of
from aad1.data.team import torchrun_team
from aad1.errors import UserError
from aad1.parallel.placement import ComputeConfig
from aad1.workspace import Workspace

PROCESSES = "how many work at once, each on a GPU of its own; on a CPU each has --threads threads"


@dataclass(frozen=True)
class Prepare:
    """Make what the stages learn from: latent clips with their captions, or the teacher's trajectories.

    Continues what is there, with any number of processes. Over several machines that share a disk, start it with
    torchrun instead of --processes.

    For example:
      aad1 prepare clips --recipe tiny -o runs/tiny
      aad1 prepare clips --recipe wan2.1-1.3b --model my_wan_folder --data.source my_videos/ -o runs/mine --processes 8
      torchrun --nproc-per-node 8 -m aad1 prepare trajectories --recipe wan2.1-14b -o runs/14b
    """

    what: Positional[Prepared]
    recipe: RecipeName = "tiny"
    out: Out = None
    processes: Annotated[int, arg(help=PROCESSES)] = 1

    def run(self, extra: Sequence[str]) -> None:
        """Encode clips or denoise trajectories."""
        at_least(1, processes=self.processes)
        team = torchrun_team()
        if team.ranks > 1 and self.processes > 1:
            raise UserError(f"--processes {self.processes}: torchrun has started {team.ranks} already; leave it out")
        recipe, workspace = recipe_of(self.recipe, extra, type(self)), Workspace(out_of(self.out, self.recipe))
        alike = ComputeConfig(timeout=recipe.compute.timeout)  # no grid: each process works on clips of its own
        with (
            keeping(FINISHED),
            assembled(recipe, workspace, {"command": f"prepare {self.what}"}, compute=alike) as assembly,
        ):
            prepare = assembly.prepare_clips if self.what == "clips" else assembly.prepare_trajectories
            prepare(self.processes)
