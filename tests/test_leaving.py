"""A scheduler's signal while a command is at no training step: it ends with what is finished, and says so."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aad1.assembly import Assembly
from aad1.cli import main
from aad1.errors import UserError
from aad1.parallel.crew import LostProcess

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
Act = Callable[[], None]


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.fixture
def preparing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Act], int]:
    """The exit code of `aad1 prepare clips` that does this instead of its work."""

    def run(act: Act) -> int:
        monkeypatch.setattr(Assembly, "prepare_clips", lambda assembly, processes: act())
        return main(["prepare", "clips", "--recipe", "tiny", "-o", str(tmp_path)])

    return run


@pytest.mark.parametrize("number", SIGNALS)
def test_it_leaves_with_code_0_past_whatever_collects_errors(
    preparing: Callable[[Act], int], number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    before, went_on = handlers(), []

    def act() -> None:
        try:
            os.kill(os.getpid(), number)
        except Exception:
            went_on.append("a clip is noted as broken")

    assert preparing(act) == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert line == (
        "aad1: asked to leave; what was finished is kept: the same command goes on, with --resume where it has it"
    )
    assert not went_on
    assert handlers() == before


def test_what_has_gone_wrong_is_said_before_it(
    preparing: Callable[[Act], int], capfd: pytest.CaptureFixture[str]
) -> None:
    """torchrun sends SIGTERM to all processes when one has failed."""

    def act() -> None:
        try:
            raise UserError("no room")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    assert preparing(act) == 2
    assert capfd.readouterr().err == "aad1: no room\n"


def test_waiting_for_one_that_has_left_is_leaving_too(
    preparing: Callable[[Act], int], capfd: pytest.CaptureFixture[str]
) -> None:
    """A signal to all finds this process in a collective, which ends by an error as soon as another one has left."""

    def act() -> None:
        try:
            raise RuntimeError("gloo/pair.cc: closed")
        except RuntimeError:
            os.kill(os.getpid(), signal.SIGTERM)
            raise LostProcess(first=True, seen="") from None

    assert preparing(act) == 0
    assert capfd.readouterr().err.startswith("aad1: asked to leave")


def test_what_collects_errors_is_left_after_them(
    preparing: Callable[[Act], int], capfd: pytest.CaptureFixture[str]
) -> None:
    def act() -> None:
        try:
            raise ValueError
        except ValueError:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    assert preparing(act) == 0
    assert capfd.readouterr().err.startswith("aad1: asked to leave")


def test_commands_that_have_nothing_to_go_on_with_do_not_listen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[list[object]] = []
    monkeypatch.setattr("aad1.cli.training.new_folder", lambda recipe, folder: seen.append(handlers()))
    assert main(["new", str(tmp_path / "model"), "--recipe", "tiny"]) == 0
    assert seen == [handlers()]
