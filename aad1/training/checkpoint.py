"""Checkpoints that survive a kill at any moment: written beside, synced, renamed; a torn one is skipped.

A checkpoint is a folder ``step-00000100`` with the tensors of all processes (``tensor_files``) and ``meta.json``: step,
format, every plain value of the state, size and digest of every file. The rename is the last thing that happens. Any
number of processes reads what any number wrote.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from aad1.errors import UserError
from aad1.files import sync, write_atomic
from aad1.parallel.crew import ALONE, Crew
from aad1.stopwatch import unwatched
from aad1.training.tensor_files import HostCopies, first_misfit, kinds_in, parted, read_into, rejoined, write_spread

FORMAT = 4
NAME = re.compile(r"step-[0-9]{8,}")
META, BEST = "meta.json", "best.json"
WRITING = ".writing-"
LONGEST_WRITING = timedelta(days=1)  # that processes wait for the slowest disk among them


@dataclass(frozen=True)
class Best:
    """The evaluation with the highest merit so far."""

    step: int
    merit: float
    measured: Mapping[str, float]


@dataclass(frozen=True)
class Found:
    """A checkpoint whose files are what they were when it was written; values: its state without tensors."""

    path: Path
    step: int
    values: dict[str, Any]
    crew: Crew = ALONE

    def into(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Fill the tensors of ``state`` in place, on all processes; returns it with the values of the checkpoint.

        Raises UserError when its tensors are not those of the checkpoint, with the first that differs.
        """
        _, tensors = parted(state)
        if misfit := self.crew.agree(lambda: first_misfit(kinds_in(self.path), tensors)):
            raise UserError(f"{self.path} is of another model: {misfit}; use the recipe it was begun with")
        read_into(self.path, tensors, self.crew.control)
        return rejoined(self.values, tensors)


@dataclass
class Checkpoints:
    """The checkpoints of one run: the last ``keep``, and the best. All processes of ``crew`` call every method.

    A save copies this process's tensors and returns; a thread writes them, and talks with the other processes' threads
    through a process group of its own, so that its messages are not mixed up with the training's. One is written at a
    time. What goes wrong is raised on all processes together: by ``poll``, or by the next ``save`` or ``wait``.
    """

    folder: Path
    keep: int
    crew: Crew = ALONE
    best: Best | None = None
    _host: HostCopies = field(init=False, default_factory=HostCopies)
    _thread: ThreadPoolExecutor = field(init=False)
    _writing: Future[None] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        alone = self.crew.control is None
        group = None if alone else dist.new_group(backend="gloo", timeout=LONGEST_WRITING)
        self._threads_crew = replace(self.crew, control=group)
        self._thread = ThreadPoolExecutor(1, "checkpoint", initializer=unwatched)

    # --- saving -------------------------------------------------------------------------------

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Begin to write ``state`` as the checkpoint of ``step``; the state may change as soon as this returns.

        Of later steps none stays: they can only be unreadable ones that a resumed run has left behind. Raises UserError
        when the save before this one went wrong.
        """
        self.wait()
        values, tensors = parted(state)
        values = copy.deepcopy(values)  # a stage goes on adding to its own lists
        # torch's own async_save ends with the last tensor: the digests, the rename and the removal of what is old
        # would need a second thread, and its copying is declared experimental.
        self._writing = self._thread.submit(_write, self, step, values, self._host.of(tensors), self.best)

    def poll(self) -> None:
        """Raise UserError if the save under way has gone wrong; costs nothing when there is none."""
        if self._writing is not None:
            self._settle()

    def wait(self) -> None:
        """Wait until nothing is being written; raises UserError if that went wrong."""
        if self._writing is not None:
            wait([self._writing])
            self._settle()

    def close(self) -> None:
        """Wait for this process's own thread, on the way out of a run whatever the reason; raises nothing."""
        self._thread.shutdown()

    def _settle(self) -> None:
        """Tell the others how far this process is; done with the save when all are, or when one has failed."""
        assert self._writing is not None
        done = self._writing.done()
        error = self._writing.exception() if done else None
        said = self.crew.gather((done, None if error is None else " ".join(str(error).split())))
        if all(one for one, _ in said) or any(refusal is not None for _, refusal in said):
            self._writing = None
            if error is not None and (self.crew.control is None or not isinstance(error, UserError)):
                raise error
            self.crew.refuse([refusal for _, refusal in said])

    # --- the best -----------------------------------------------------------------------------

    def consider(self, step: int, merit: float | None, measured: Mapping[str, float]) -> None:
        """Take an evaluation for the best if its merit is the highest so far; its checkpoint will stay."""
        merit = self.crew.tell(merit)
        if merit is not None and (self.best is None or merit > self.best.merit):
            self.best = Best(step, merit, self.crew.tell(dict(measured)))

    def is_best(self, step: int) -> bool:
        """Whether the best evaluation was that of ``step``."""
        return self.best is not None and self.best.step == step

    # --- loading ------------------------------------------------------------------------------

    def last(self) -> Found | None:
        """The newest checkpoint that is whole; torn ones are skipped with a warning; None when there is none.

        Raises UserError for one in a format that this version does not read.
        """
        found = last_whole(self.folder, self.crew)
        if found is not None:
            self._remember(found.values["best"])
        return found

    def _remember(self, best: dict[str, Any] | None) -> None:
        if best is not None and self.crew.tell(place(self.folder, best["step"]).is_dir()):
            self.best = Best(**best)
        if self.crew.leads:
            _note_best(self.folder, self.best)


def _write(all: Checkpoints, step: int, values: dict[str, Any], tensors: dict[str, Any], best: Best | None) -> None:
    """Write one checkpoint, in the thread of every process.

    Raises UserError on all processes when the disk is full or the place cannot be written; nothing half-written stays
    and older checkpoints are whole.
    """
    crew, folder = all._threads_crew, all.folder
    final, beside = place(folder, step), folder / f"{WRITING}{step:08d}"
    try:
        crew.agree(lambda: _tried(final, _begin, folder, beside) if crew.leads else None)
        _tried(final, write_spread, beside, tensors, crew.control)
        parts = crew.gather(crew.agree(lambda: _tried(final, _own_digests, beside, crew)))
        content = {
            "step": step,
            "ranks": crew.ranks,
            "files": {name: facts for part in parts for name, facts in sorted(part.items())},
            "values": {**values, "best": None if best is None else asdict(best)},
        }
        crew.agree(lambda: _tried(final, _finish, beside, final, content) if crew.leads else None)
    except UserError:
        if crew.leads:
            shutil.rmtree(beside, ignore_errors=True)
        raise
    crew.agree(lambda: _tried(final, _settle_folder, folder, final, best, all.keep) if crew.leads else None)


def _tried(final: Path, act: Any, *given: Any) -> Any:
    """What ``act`` returns; a full disk is the user's to mend."""
    try:
        return act(*given)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot write the checkpoint {final}: {reason}; free some space or choose another -o"
        ) from error


def _begin(folder: Path, beside: Path) -> None:
    for stale in folder.glob(f"{WRITING}*"):  # of a run that was killed while saving
        shutil.rmtree(stale, ignore_errors=True)
    beside.mkdir(parents=True)


def _own_digests(beside: Path, crew: Crew) -> dict[str, tuple[int, str]]:
    """Size and digest of the files that this process has written; the leader wrote what is no one's."""
    mine = [file for file in beside.iterdir() if _writer_of(file.name) == crew.rank]
    sync(beside)
    return {file.name: _facts(file) for file in mine}


def _writer_of(name: str) -> int:
    """The rank that wrote a file: torch calls them ``__RANK_COUNT.distcp``, and the leader's ``.metadata``."""
    rank = name.removeprefix("__").partition("_")[0]
    return int(rank) if rank.isdigit() else 0


def _finish(beside: Path, final: Path, content: dict[str, Any]) -> None:
    if lost := [name for name in content["files"] if not (beside / name).is_file()]:
        raise UserError(
            f"{beside} lacks what another process wrote ({lost[0]}); give the same -o to all, on a shared disk"
        )
    (beside / META).write_text(_sealed(content))
    sync(beside / META)
    sync(beside)
    if final.exists():
        shutil.rmtree(final)
    beside.rename(final)
    sync(final.parent)


def _settle_folder(folder: Path, final: Path, best: Best | None, keep: int) -> None:
    """Note which is the best, and remove what is neither among the last ``keep`` nor that."""
    _note_best(folder, best)
    current = [path for path in complete(folder) if path.name <= final.name]
    kept = {*current[-keep:]} | ({place(folder, best.step)} if best else set())
    for old in {*complete(folder)} - kept:
        shutil.rmtree(old)


def _note_best(folder: Path, best: Best | None) -> None:
    """Write ``best.json`` for people and for the export; a run itself remembers its best in every checkpoint."""
    if best is None:
        (folder / BEST).unlink(missing_ok=True)
    else:
        text = json.dumps(asdict(best), indent=2)
        if not (folder / BEST).exists() or (folder / BEST).read_text() != text:
            write_atomic(folder / BEST, text.encode())


# --- reading one -----------------------------------------------------------------------------


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def complete(folder: Path) -> list[Path]:
    """The checkpoints of a folder by rising step, readable or not."""
    return sorted(path for path in folder.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir())


def step_of(path: Path) -> int:
    """The step of a checkpoint."""
    return int(path.name.removeprefix("step-"))


def last_whole(folder: Path, crew: Crew = ALONE) -> Found | None:
    """The newest checkpoint that is whole; torn ones are skipped with a warning; None when there is none."""
    for path in reversed(crew.tell(complete(folder) if crew.leads else [])):
        found = verified(path, crew)
        if isinstance(found, Found):
            return found
        if crew.leads:
            warnings.warn(f"skipping the unreadable checkpoint {path}: {found}", stacklevel=2)
    return None


def find(folder: Path, which: int | Literal["last", "best"]) -> Found:
    """One checkpoint of a run: the last that is whole, the best, or that of a step.

    Raises UserError when it is not there or torn.
    """
    if which == "last":
        found = last_whole(folder)
        if found is None:
            raise UserError(f"no readable checkpoint in {folder}; give the folder of a run that has saved one")
        return found
    if which == "best":
        if not (folder / BEST).is_file():
            raise UserError(f"{folder} has no {BEST}: nothing was evaluated yet; take the last one, or a step")
        which = _best_step(folder / BEST)
    path = place(folder, which)
    if not path.is_dir():
        steps = ", ".join(str(step_of(one)) for one in complete(folder))
        raise UserError(f"{folder} has no checkpoint of step {which}; there are {steps or 'none'}")
    whole = verified(path)
    if isinstance(whole, str):
        raise UserError(f"the checkpoint {path} is not readable: {whole}; take another one")
    return whole


def _best_step(path: Path) -> int:
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}); take the last one, or a step") from error


def verified(path: Path, crew: Crew = ALONE) -> Found | str:
    """A checkpoint after its files were compared with their digests, or what is wrong with it.

    The processes of ``crew`` share the reading. Raises UserError for another format.
    """
    content = crew.tell(crew.agree(lambda: _opened(path) if crew.leads else ""))
    if isinstance(content, str):
        return content
    mine = sorted(content["files"].items())[crew.rank :: crew.ranks]
    problems = crew.gather(_first_problem(path, mine))
    return next(filter(None, problems), None) or Found(path, content["step"], content["values"], crew)


def _opened(path: Path) -> dict[str, Any] | str:
    """What ``meta.json`` holds, or what is wrong with it."""
    try:
        said = json.loads((path / META).read_text(encoding="utf-8"))
        if said["format"] != FORMAT:
            raise UserError(
                f"{path} has checkpoint format {said['format']}; this version reads {FORMAT}: go on with the version "
                "that wrote it, or start again into another folder"
            )
        content: dict[str, Any] = said["content"]
        whole = _digest(content) == said["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return content if whole else f"{META} does not match its digest"


def _first_problem(path: Path, files: Sequence[tuple[str, Sequence[Any]]]) -> str | None:
    for name, (size, digest) in files:
        try:
            if _facts(path / name) != (size, digest):
                return f"{name} does not match its digest"
        except OSError as error:
            return f"{name}: {error.strerror or error}"
    return None


def _facts(file: Path) -> tuple[int, str]:
    with file.open("rb") as stream:
        return file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()


def _sealed(content: dict[str, Any]) -> str:
    """``meta.json``: its format, its content and the digest of that."""
    return json.dumps({"format": FORMAT, "sha256": _digest(content), "content": content})


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
