"""The machine that is planned for: how many GPUs of which kind, and how the work is spread over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aad1.errors import UserError, nearest
from aad1.parallel.placement import ComputeConfig, grid_of
from aad1.planning.costs import Precision
from aad1.training.gpus import GPUS

GB = 10**9


@dataclass(frozen=True)
class Machine:
    """``gpus`` ranks; every ``context_parallel`` of them share one sample's tokens, the rest is data parallel.

    replicate: how many copies there are of what is split; memory: bytes a GPU; rates: operations a second by precision;
    efficiency: the share of them that is reached.
    """

    gpus: int
    context_parallel: int
    memory: float
    rates: Mapping[Precision, float]
    efficiency: float
    replicate: int = 1

    @property
    def shards(self) -> int:
        """Into how many parts weights, gradients and optimizer states are split."""
        return self.gpus // self.replicate

    @property
    def groups(self) -> int:
        """How many samples are worked on at a time."""
        return self.gpus // self.context_parallel

    def seconds(self, operations: float, precision: Precision, ranks: int) -> float:
        """How long so many operations take on so many ranks."""
        return operations / (ranks * self.rates[precision] * self.efficiency)


def machine_of(
    gpu: str,
    gpus: int | None,
    compute: ComputeConfig,
    memory_gb: float | None,
    flops: float | None,
    efficiency: float,
) -> Machine:
    """A machine of a kind of GPU whose memory and rate may be given instead; gpus None: as few as ``compute`` allows.

    Raises:
        UserError: for a kind that is not listed, numbers that mean nothing, or GPUs that do not divide.
    """
    if gpu not in GPUS:
        raise UserError(f"--gpu {gpu} is not listed{nearest(gpu, GPUS)}; or give --gpu-memory and --flops")
    kind = GPUS[gpu]
    memory = kind.memory if memory_gb is None else memory_gb
    if gpus is not None and gpus < 1:
        raise UserError(f"--gpus {gpus}: give 1 or more")
    gpus = gpus or compute.replicate * max(1, compute.shard) * compute.context
    grid_of(compute, gpus)
    if not 0 < efficiency <= 1:
        raise UserError(f"--efficiency {efficiency:g}: a share of the GPU's rate, above 0 and at most 1; 0.4 is usual")
    if not memory > 0 or (flops is not None and not flops > 0):
        raise UserError("--gpu-memory (GB) and --flops (operations a second) must be above 0")
    rates = {"bfloat16": flops or kind.bfloat16, "float32": flops or kind.float32}
    return Machine(gpus, compute.context, memory * GB, rates, efficiency, compute.replicate)  # type: ignore[arg-type]
