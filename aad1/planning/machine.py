"""The machine that is planned for: how many GPUs of which kind, and how the work is spread over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aad1.errors import UserError, nearest
from aad1.planning.costs import Precision
from aad1.training.gpus import GPUS

GB = 10**9


@dataclass(frozen=True)
class Machine:
    """``gpus`` ranks; every ``context_parallel`` of them share one sample's tokens, the rest is data parallel.

    memory: bytes a GPU; rates: operations a second by precision; efficiency: the share of them that is reached.
    """

    gpus: int
    context_parallel: int
    memory: float
    rates: Mapping[Precision, float]
    efficiency: float

    @property
    def groups(self) -> int:
        """How many samples are worked on at a time."""
        return self.gpus // self.context_parallel

    def seconds(self, operations: float, precision: Precision, ranks: int) -> float:
        """How long so many operations take on so many ranks."""
        return operations / (ranks * self.rates[precision] * self.efficiency)


def machine_of(
    gpu: str,
    gpus: int,
    context_parallel: int,
    memory_gb: float | None,
    flops: float | None,
    efficiency: float,
) -> Machine:
    """A machine of a kind of GPU whose memory and rate may be given instead.

    Raises:
        UserError: for a kind that is not listed, numbers that mean nothing, or GPUs that do not divide.
    """
    if gpu not in GPUS:
        raise UserError(f"--gpu {gpu} is not listed{nearest(gpu, GPUS)}; or give --gpu-memory and --flops")
    kind = GPUS[gpu]
    memory = kind.memory if memory_gb is None else memory_gb
    if gpus < 1 or context_parallel < 1 or gpus % context_parallel:
        raise UserError(
            f"--gpus {gpus} do not divide into groups of --context-parallel {context_parallel}; "
            "give a number of GPUs that is a multiple of it, both 1 or more"
        )
    if not 0 < efficiency <= 1:
        raise UserError(f"--efficiency {efficiency:g}: a share of the GPU's rate, above 0 and at most 1; 0.4 is usual")
    if not memory > 0 or (flops is not None and not flops > 0):
        raise UserError("--gpu-memory (GB) and --flops (operations a second) must be above 0")
    rates = {"bfloat16": flops or kind.bfloat16, "float32": flops or kind.float32}
    return Machine(gpus, context_parallel, memory * GB, rates, efficiency)  # type: ignore[arg-type]


def divide_heads(machine: Machine, heads: int) -> None:
    """Raise UserError unless attention's heads can be spread over a context-parallel group."""
    if heads % machine.context_parallel:
        allowed = [n for n in range(1, heads + 1) if heads % n == 0 and machine.gpus % n == 0]
        raise UserError(
            f"--context-parallel {machine.context_parallel} does not divide the model's {heads} heads; "
            f"allowed with {machine.gpus} GPUs: {', '.join(map(str, allowed))}"
        )
