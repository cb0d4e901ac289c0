"""How the samples of a turn are dealt to the groups of a crew: the same batch, whoever works on which part of it."""

from __future__ import annotations

from typing import NamedTuple

from aad1.errors import UserError


class Piece(NamedTuple):
    """Samples ``first`` to ``first + size`` of micro-batch ``micro``."""

    micro: int
    first: int
    size: int


def pieces(batch: int, accumulate: int, group: int, groups: int) -> list[Piece]:
    """What one of ``groups`` groups does of a turn of ``accumulate`` micro-batches: as many equal pieces as any other.

    Several whole micro-batches, one, or an equal part of one.

    Raises:
        UserError: where they cannot be dealt so.
    """
    if not can_share(batch, accumulate, groups):
        fitting = [n for n in range(1, batch * accumulate + 1) if can_share(batch, accumulate, n)]
        raise UserError(
            f"a turn of {accumulate} micro-batches of {batch} cannot be dealt to {groups} groups of processes; "
            f"with these, {', '.join(map(str, fitting))} groups work: change batch, accumulate or compute.context"
        )
    own = batch * accumulate // groups
    size = min(own, batch)
    return [Piece(*divmod(first, batch), size) for first in range(group * own, (group + 1) * own, size)]


def can_share(batch: int, accumulate: int, groups: int) -> bool:
    """Whether each of so many groups gets equal pieces."""
    own, rest = divmod(batch * accumulate, groups)
    return not rest and own > 0 and (own % batch == 0 or batch % own == 0)
