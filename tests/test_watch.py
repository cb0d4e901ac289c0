"""A run that hangs or loses a process: who says what about whom, and that nobody is ended without a reason."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from ranks import on_ranks
from test_loop import ToyStage

from aad1.cli import _verdict, last_word
from aad1.cli.last_word import is_to_say
from aad1.cli.leaving import AskedToLeave
from aad1.data.team import ALONE, Team
from aad1.errors import UserError
from aad1.parallel import launch, watch
from aad1.parallel.crew import Crew, LostProcess, SharedError
from aad1.parallel.meeting import meet
from aad1.parallel.speaking import RUN
from aad1.parallel.watch import BEATS, PATIENCE, Doing, Moment, Note, Whereabouts, verdict, watched
from aad1.training import metrics
from aad1.training.loop import LoopConfig, Run

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
TIMEOUT = 0.5
DATA, LOSS, NEXT = (
    Moment(7, "data", "dmd_warmup", 12, "generator"),
    Moment(8, "loss", "dmd_warmup", 12, "generator"),
    Moment(11, "update", "dmd_warmup", 13, "fake_score"),
)


@dataclass
class DictStore:
    """A store of this process; ``broken``: it answers nobody."""

    values: dict[str, str] = field(default_factory=dict)
    broken: bool = False

    def _used(self) -> None:
        if self.broken:
            raise dist.DistStoreError("the server is gone")

    def set(self, key: str, value: str) -> None:
        self._used()
        self.values[key] = value

    def get(self, key: str) -> bytes:
        self._used()
        return self.values[key].encode()

    def check(self, keys: list[str]) -> bool:
        self._used()
        return all(key in self.values for key in keys)

    def add(self, key: str, amount: int) -> int:
        self._used()
        self.values[key] = str(int(self.values.get(key, 0)) + amount)
        return int(self.values[key])


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit codes with which watches would have ended this process."""
    codes: list[int] = []

    def note(code: int) -> None:
        codes.append(code)
        raise SystemExit

    monkeypatch.setattr(watch.os, "_exit", note)
    monkeypatch.setattr(watch, "LAST_WORD", 0.3)
    monkeypatch.setattr(watch, "SURELY", 0.3)
    return codes


def keep_moving(here: Whereabouts, seconds: float, doing: Doing = "loss") -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        here.note(doing, "toy")
        time.sleep(0.01)


def wait_for(ended: list[int], count: int = 1) -> None:
    until = time.monotonic() + 20
    while len(ended) < count:
        assert time.monotonic() < until, "nobody noticed"
        time.sleep(0.01)


# --- what is said ----------------------------------------------------------------------------


def note_of(moment: Moment, idle: float = 1800.4, **more: object) -> Note:
    return Note(9, moment, idle, True, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("notes", "silent", "said"),
    [
        (
            {rank: note_of(DATA if rank == 3 else LOSS) for rank in range(8)},
            [],
            "rank 3 of 8 has not moved for 1800 s: dmd_warmup, step 12, generator's turn (data); ranks 0-2, 4-7 wait: "
            "dmd_warmup, step 12, generator's turn (loss); stopped, go on with --resume",
        ),
        (
            {0: note_of(LOSS), 1: note_of(DATA), 2: note_of(NEXT, line="training/loop.py:9"), 3: note_of(LOSS)},
            [],
            "ranks 0-1, 3 of 4 have not moved for 1800 s: ranks 0, 3 in dmd_warmup, step 12, generator's turn (loss), "
            "rank 1 in dmd_warmup, step 12, generator's turn (data); rank 2 waits: dmd_warmup, step 13, fake_score's "
            "turn (update) at training/loop.py:9; stopped",
        ),
        (
            {0: note_of(LOSS), 1: note_of(LOSS)},
            [0],
            "rank 0 of 2 does not answer (ended, stopped, or a machine is gone) since dmd_warmup, step 12, generator's "
            "turn (loss); rank 1 waits: dmd_warmup, step 12, generator's turn (loss)",
        ),
        (
            {0: note_of(LOSS, line="a.py:1"), 1: note_of(LOSS, line="b.py:2")},
            [],
            "no rank of 2 has moved for 1800 s: rank 0 in dmd_warmup, step 12, generator's turn (loss) at a.py:1, rank "
            "1 in dmd_warmup, step 12, generator's turn (loss) at b.py:2; stopped",
        ),
        (
            {0: note_of(Moment(9, "evaluate", "ode_init", 4)), 1: note_of(Moment(9), left=True)},
            [],
            "rank 1 of 2 has not moved for 1800 s: left after preparing; rank 0 waits: ode_init, step 4 (evaluate)",
        ),
        (
            {1: note_of(DATA)},
            [],
            "rank 1 of 8 has not moved for 1800 s: dmd_warmup, step 12, generator's turn (data); the others cannot",
        ),
    ],
    ids=["one behind", "several behind", "silent", "all at one place", "left", "store gone"],
)  # fmt: skip
def test_the_line_names_whom_the_others_wait_for(notes: dict[int, Note], silent: list[int], said: str) -> None:
    line = verdict(notes, silent, 8 if len(notes) in (1, 8) else len(notes))
    assert line.startswith(said)
    assert "\n" not in line


def test_a_note_survives_the_store() -> None:
    note = note_of(DATA, line="a.py:1")
    assert Note.read(json.dumps(asdict(note)).encode()) == note


# --- who is ended ----------------------------------------------------------------------------


def test_all_end_and_one_of_them_speaks(ended: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    store, places = DictStore(), [Whereabouts() for _ in range(3)]
    for rank, here in enumerate(places):
        here.note("data", "toy", 4, "one")
        if rank != 1:
            here.note("loss", "toy", 4, "one")
    with ExitStack() as stack:
        for rank, here in enumerate(places):
            stack.enter_context(watched(here, rank, 3, store, TIMEOUT))
        wait_for(ended, 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended == [1, 1, 1]
    assert line.startswith("aad1: rank 1 of 3 has not moved for 1 s: toy, step 4, one's turn (data)")
    assert "; ranks 0, 2 wait: toy, step 4, one's turn (loss)" in line


def test_a_process_that_does_not_answer_is_told_of_though_this_one_moves(
    ended: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    store, here = DictStore(), Whereabouts()
    store.set("1", json.dumps(asdict(Note(5, Moment(3, "prepare"), 0.0))))
    with watched(here, 0, 2, store, TIMEOUT):
        while not ended:
            keep_moving(here, 0.1)
    said = capsys.readouterr().err
    assert "rank 1 of 2 does not answer (ended, stopped, or a machine is gone) since preparing" in said


def test_one_that_has_left_is_not_missed(ended: list[int]) -> None:
    store, here = DictStore(), Whereabouts()
    with watched(Whereabouts(), 1, 2, store, TIMEOUT):
        pass
    with watched(here, 0, 2, store, TIMEOUT):
        keep_moving(here, 3 * TIMEOUT)
    assert not ended


def test_one_that_has_left_by_an_error_is_missed_also_where_others_may_wait_for_days(
    ended: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    store = DictStore()
    with suppress(KeyError), watched(Whereabouts(), 1, 2, store, TIMEOUT):
        raise KeyError
    with watched(Whereabouts(), 0, 2, store, TIMEOUT):
        wait_for(ended)
    assert "rank 1 of 2 does not answer" in capsys.readouterr().err


def test_without_a_store_a_process_is_ended_for_its_own_sake(
    ended: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    here = Whereabouts()
    here.note("loss", "toy", 2, "one")
    with watched(here, 1, 2, DictStore(broken=True), TIMEOUT):
        wait_for(ended)
    assert "rank 1 of 2 has not moved for 1 s: toy, step 2, one's turn (loss)" in capsys.readouterr().err


@pytest.mark.parametrize("broken", [False, True], ids=["store", "no store"])
def test_without_its_launcher_a_run_ends_and_says_so_once(
    ended: list[int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    parent = [os.getppid()]
    monkeypatch.setattr(watch.os, "getppid", lambda: parent[0])
    store = DictStore(broken=broken)
    with ExitStack() as stack:
        for rank in range(2):
            stack.enter_context(watched(Whereabouts(), rank, 2, store, TIMEOUT, parent[0]))
        time.sleep(TIMEOUT)
        assert not ended
        parent[0] = 1
        wait_for(ended, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "aad1: what started this run has ended, so the run ends too; go on with --resume"


@pytest.mark.parametrize("doing", ["prepare", "evaluate", "save"])
def test_what_one_does_for_all_may_last(ended: list[int], doing: Doing) -> None:
    places = [Whereabouts(), Whereabouts()]
    store = DictStore()
    with ExitStack() as stack:
        for rank, here in enumerate(places):
            here.note(doing, "toy")
            stack.enter_context(watched(here, rank, 2, store, TIMEOUT))
        time.sleep(2 * TIMEOUT)
        assert not ended
        if PATIENCE[doing] < 100:
            wait_for(ended)


def test_a_moving_run_goes_on_and_its_thread_ends_with_it(ended: list[int]) -> None:
    here = Whereabouts()
    with watched(here, 0, 1, DictStore(), TIMEOUT):
        keep_moving(here, 3 * TIMEOUT)
    assert not ended
    assert not [thread for thread in threading.enumerate() if thread.name == "watch"]


def test_a_suspended_job_has_not_hung(ended: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clock jumps by an hour, once."""
    here, jumps = Whereabouts(), [0.0]
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + jumps[0]))
    here.note("loss", "toy")
    with watched(here, 0, 1, DictStore(), 4.0):
        time.sleep(0.5)
        jumps[0] = 3600.0
        time.sleep(1.0)
        assert not ended


# --- on real processes -----------------------------------------------------------------------


def hang(folder: Path) -> tuple[str, list[int]]:
    """Rank 1 is stuck with its data; the others are inside a collective, whose wait nothing but a thread survives."""
    rank, ranks, here = dist.get_rank(), dist.get_world_size(), Whereabouts()
    codes: list[int] = []
    free = threading.Event()

    def end(code: int) -> None:
        codes.append(code)
        free.set()
        raise SystemExit

    watch.os._exit = end  # type: ignore[attr-defined]
    watch.LAST_WORD = 0.5
    sys.stderr = StringIO()
    with watched(here, rank, ranks, dist.FileStore(str(folder / "notes"), ranks), 1.0):  # type: ignore[attr-defined]
        here.note("data", "toy", 3, "one")
        if rank == 1:
            free.wait(60)
        else:
            here.note("loss", "toy", 3, "one")
        dist.barrier()
        free.wait(60)
    return sys.stderr.getvalue(), codes


def lose(folder: Path) -> tuple[str, bool]:
    """Rank 2 closes its connections; what the others see when they next wait for it."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    control = dist.new_group(backend="gloo")
    store = dist.FileStore(str(folder / "lost"), ranks)  # type: ignore[attr-defined]
    crew = Crew(rank, ranks, control=control)
    try:
        with launch._losses_told(store, rank):
            crew.meet()
            if rank == 2:
                dist.destroy_process_group(control)
            else:
                crew.gather(rank)
    except LostProcess as error:
        return str(error), error.first
    return "nothing", False


def hang_and_lose(folder: Path) -> tuple[tuple[str, list[int]], tuple[str, bool]]:
    return hang(folder), lose(folder)


def test_a_hung_collective_and_a_lost_process_are_told_of_once(tmp_path: Path) -> None:
    found = on_ranks(hang_and_lose, 3, tmp_path, tmp_path)
    said = [line for (text, _), _ in found for line in text.splitlines()]
    assert [codes for (_, codes), _ in found] == [[1], [1], [1]]
    assert len(said) == 1
    assert said[0].startswith("aad1: rank 1 of 3 has not moved for 1 s: toy, step 3, one's turn (data)")
    assert "; ranks 0, 2 wait: toy, step 3, one's turn (loss)" in said[0]
    lost = [seen for _, seen in found]
    assert [text.partition(" (")[0] for text, _ in lost] == [
        "another process of this run has ended",
        "another process of this run has ended",
        "nothing",
    ]
    assert sorted(first for _, first in lost) == [False, False, True]


def test_the_command_line_says_a_loss_once_and_calls_it_a_fault() -> None:
    code, line = _verdict(LostProcess(first=True, seen="gloo/pair.cc: closed"), goes_on=True)
    assert code == 1
    assert "internal error" not in line
    assert "--resume" in line


OWN, SHARED = UserError("no room"), SharedError("no grid")
SEEN, NOT_FIRST = LostProcess(first=True, seen="gloo/pair.cc: closed"), LostProcess(first=False, seen="")


@pytest.fixture
def in_run() -> Iterator[Callable[[DictStore | None], None]]:
    """Makes this process one of a run with this store."""
    token = RUN.set(None)

    def join(store: DictStore | None) -> None:
        RUN.set(store)

    yield join
    RUN.reset(token)


@pytest.mark.parametrize(
    ("store", "error", "saying"),
    [
        (DictStore(), SHARED, [1]),  # the first that asks
        (DictStore(), AskedToLeave(), [1]),
        (DictStore(), OWN, [1]),
        (DictStore(), ValueError(), [1]),
        (DictStore(broken=True), SHARED, [0]),  # nobody can tell: the leader
        (DictStore(broken=True), OWN, [1, 0]),
        (None, SHARED, [0]),
        (None, OWN, [1, 0]),
    ],
)
def test_what_several_would_say_one_says(
    in_run: Callable[[DictStore | None], None],
    monkeypatch: pytest.MonkeyPatch,
    store: DictStore | None,
    error: BaseException,
    saying: list[int],
) -> None:
    monkeypatch.setattr(last_word, "LAST_WORD", 0.0)
    in_run(store)
    assert [rank for rank in (1, 0) if is_to_say(error, str(error), Team(rank, 2))] == saying
    assert is_to_say(error, str(error), ALONE)


def test_each_says_what_nobody_else_does(in_run: Callable[[DictStore | None], None]) -> None:
    in_run(DictStore())
    assert [is_to_say(OWN, f"no room for {rank}", Team(rank, 2)) for rank in (0, 1)] == [True, True]


def test_a_loss_is_told_of_by_the_first_to_see_it_unless_the_lost_one_has_spoken(
    in_run: Callable[[DictStore | None], None],
) -> None:
    in_run(DictStore())
    assert [is_to_say(error, str(error), Team(1, 2)) for error in (SEEN, NOT_FIRST)] == [True, False]
    assert is_to_say(OWN, "no room", Team(0, 2))
    assert not is_to_say(SEEN, str(SEEN), Team(1, 2))


def test_what_one_is_asked_to_all_are(ended: list[int]) -> None:
    store, heard = DictStore(), list[int]()
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with watched(Whereabouts(), 0, 2, store, TIMEOUT):
            with suppress(KeyboardInterrupt), watched(Whereabouts(), 1, 2, store, TIMEOUT):
                raise KeyboardInterrupt
            wait_for(heard)
            time.sleep(3 * TIMEOUT / BEATS)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM], "once"


# --- who belongs together --------------------------------------------------------------------


def met(store: DictStore, ranks: Sequence[int], of: int, patience: float = 20.0) -> list[str]:
    """What these ranks of a start of a run agree on; those that are named but not there were killed before."""
    with ThreadPoolExecutor(len(ranks)) as threads:
        return list(threads.map(lambda rank: meet(store, rank, of, patience), ranks))


def test_each_start_of_a_run_has_a_name_of_its_own_whatever_earlier_ones_have_left() -> None:
    store = DictStore()
    first = met(store, [0, 1, 2], of=3)
    assert len(set(first)) == 1
    for there in ([0, 2], [1, 2], [0]):  # starts that are killed before all have come
        with pytest.raises(UserError, match=r"rank .* of 3 has not come within 0.3 s; look at its own messages"):
            met(store, there, of=3, patience=0.3)
    last = met(store, [2, 0, 1], of=3)
    assert len(set(last)) == 1
    assert last[0] != first[0]


# --- the loop's notes ------------------------------------------------------------------------


@dataclass
class Recorded(Whereabouts):
    """Keeps every note."""

    moments: list[Moment] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def note(self, doing: Doing, stage: str = "", step: int = 0, player: str = "") -> None:
        super().note(doing, stage, step, player)
        self.moments.append(self.moment)


def test_the_loop_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_tensorboard", lambda folder, step: None)
    where = Recorded()
    config = LoopConfig(steps=1, batch=2, accumulate=2)
    Run(ToyStage(), config, tmp_path, seed=0, crew=Crew(where=where)).train()
    turn = ["data", "loss", "data", "loss", "update"]
    assert [m.doing for m in where.moments] == [*turn, *turn, "evaluate", "save", "save", "prepare"]
    assert [m.player for m in where.moments[:10]] == ["one"] * 5 + ["two"] * 5
    assert [m.step for m in where.moments] == [0] * 10 + [1, 1, 1, 0]
    assert [m.moves for m in where.moments] == list(range(1, 15))
