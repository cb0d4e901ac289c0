"""What a command says last when it is one process of several."""

from __future__ import annotations

from aad1.cli.leaving import AskedToLeave
from aad1.data.team import Team
from aad1.errors import UserError
from aad1.parallel.crew import LostProcess, SharedError
from aad1.parallel.speaking import RUN, take_word, word_taken
from aad1.training.loop import Interrupted

# Seconds that a process leaves the one that knows why, before it speaks of a loss, and before it ends in silence: as
# soon as one has ended torchrun ends all.
FIRST_WORD, LAST_WORD = 0.5, 5.0


def is_to_say(error: BaseException, team: Team) -> bool:
    """Whether this process of ``team`` says why it ends; what all end for, one says."""
    if team.ranks == 1:
        return True
    if isinstance(error, LostProcess):
        return error.first and not word_taken(team, within=FIRST_WORD)
    first = take_word(team)
    for_all = isinstance(error, SharedError | Interrupted | AskedToLeave | KeyboardInterrupt)
    before_joining = isinstance(error, UserError) and RUN.get() is None  # what one was given wrong, all were as a rule
    if not for_all and not before_joining:
        return True
    if first is None:  # nobody can tell
        return team.leads or not for_all
    return first
