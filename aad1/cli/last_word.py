"""What a command says last when it is one process of several."""

from __future__ import annotations

import time

from aad1.cli.leaving import AskedToLeave
from aad1.cli.options import complain
from aad1.data.team import Team, torchrun_team
from aad1.parallel.crew import LostProcess, SharedError
from aad1.parallel.speaking import RUN, first_to_say, something_said
from aad1.training.loop import Interrupted

# Seconds that a process leaves the one that knows why, before it speaks of a loss, and before it ends in silence: as
# soon as one has ended torchrun ends all.
FIRST_WORD, LAST_WORD = 0.5, 5.0


def end_with(error: BaseException, line: str, code: int) -> None:
    """Say ``line``, why this process ends with exit code ``code``, or leave one of its team that says so the time."""
    if is_to_say(error, line, torchrun_team()):
        complain(line)
    elif code:  # torchrun waits for all that end with 0
        time.sleep(LAST_WORD)


def is_to_say(error: BaseException, line: str, team: Team) -> bool:
    """Whether this process of ``team`` says ``line``, why it ends; waits for those that may know better."""
    if team.ranks == 1:
        return True
    if isinstance(error, LostProcess):
        return error.first and not something_said(team, within=FIRST_WORD)
    first = first_to_say(line, team)
    if first is not None:
        return first
    if team.leads or isinstance(error, SharedError | Interrupted | AskedToLeave | KeyboardInterrupt):
        return team.leads
    if RUN.get() is None:  # what one was given wrong all were, as a rule: the leader says it, and all are ended
        time.sleep(LAST_WORD)
    return True
