"""What a recipe needs, before anyone rents a machine for it: memory, time, disk; without weights and without a GPU."""

from aad1.planning.machine import GB, Machine, machine_of
from aad1.planning.plan import Costs, Plan, Remedy, Scenario, make_plan, parts_of, remedies
from aad1.planning.preparing import CAPTIONS
from aad1.planning.published import Configs, configs_of
from aad1.planning.spread import Memory, Section, Work

__all__ = [
    "CAPTIONS",
    "GB",
    "Configs",
    "Costs",
    "Machine",
    "Memory",
    "Plan",
    "Remedy",
    "Scenario",
    "Section",
    "Work",
    "configs_of",
    "machine_of",
    "make_plan",
    "parts_of",
    "remedies",
]
