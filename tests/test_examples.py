"""The examples run as their first lines say."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from serving import CLIP, PICTURE, decode, running

from aad1.data.media import read_frames
from aad1.streaming import load_student

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *words: str) -> None:
    """As from the command line, in this process."""
    sys.argv = [name, *words]
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])


def test_steer_changes_the_prompt_on_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    run("steer.py", "--prompts", "a red disc", "a blue square", "--chunks", "2")
    assert len(read_frames("steered.mp4", 1000)) == 65
    said = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1] for line in said[:4]] == ["a red disc", "a red disc", "a blue square", "a blue square"]


def test_watch_keeps_what_the_server_makes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("still.png").write_bytes(PICTURE)
    with running(load_student("tiny", device="cpu"), tmp_path / "serve") as server:
        run("watch.py", "still.png", CLIP.caption, "--then", "a red disc", "--seconds", "5", "--url", server.socket)
        assert decode(Path("watched.mp4").read_bytes()).shape == (80, 384, 384, 3)
        with pytest.raises(SystemExit, match="elephant"):
            run("watch.py", "still.png", "a red elephant", "--url", server.socket)
    said = capsys.readouterr().out
    assert CLIP.caption in said
    assert said.splitlines()[-2].endswith("a red disc")
