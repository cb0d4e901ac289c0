"""Models by their name on the hub, with a stand-in for its client."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from aad1.cli import main
from aad1.errors import UserError
from aad1.models import hub
from aad1.models.checkpoint_io import open_folder
from aad1.workspace import model_path


class Hub:
    """Holds repositories as folders and gives copies of what the patterns allow, as ``snapshot_download`` does."""

    def __init__(self, cache: Path, **repositories: Path) -> None:
        self.cache, self.repositories, self.asked = cache, repositories, list[Any]()

    def __call__(self, name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.asked.append((name, revision))
        source, target = self.repositories[name.replace("/", "_")], self.cache / name
        target.mkdir(parents=True, exist_ok=True)
        for file in source.rglob("*"):
            path = file.relative_to(source)
            if file.is_file() and any(fnmatch.fnmatch(path.as_posix(), pattern) for pattern in allow_patterns):
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target / path)
        return str(target)


def test_a_model_on_the_hub_is_fetched_and_only_what_is_used(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Path(shutil.copytree(tiny_folder, tmp_path / "there"))
    (there / "video.mp4").write_bytes(b"x")
    (there / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    (there / "run_me.py").write_text("raise SystemExit")
    stand_in = Hub(tmp_path / "cache", **{"Wan-AI_Wan": there})
    monkeypatch.setattr(hub, "snapshot_download", stand_in)
    path = model_path("Wan-AI/Wan@v1")
    assert set(stand_in.asked) == {("Wan-AI/Wan", "v1")}
    held = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    wanted = {file.relative_to(tiny_folder).as_posix() for file in tiny_folder.rglob("*") if file.is_file()}
    assert held == wanted
    assert open_folder(path).transformers == ("transformer",)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "between two transformers"),
        ({"_class_name": "WanImageToVideoPipeline"}, "is a WanImageToVideoPipeline"),
    ],
)
def test_another_kind_is_refused_before_its_weights_are_fetched(
    entries: dict[str, Any], message: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Path(shutil.copytree(tiny_folder, tmp_path / "there"))
    index = there / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **entries}))
    monkeypatch.setattr(hub, "snapshot_download", Hub(tmp_path / "cache", a_b=there))
    with pytest.raises(UserError, match=message):
        model_path("a/b")
    assert [file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()] == ["model_index.json"]


def test_a_native_repository_says_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(hub, "snapshot_download", Hub(tmp_path / "cache", a_b=tmp_path / "there"))
    with pytest.raises(UserError, match=r"`aad1 convert a/b -o FOLDER`"):
        model_path("a/b")


def test_without_a_network_there_is_one_clear_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The real client, told to stay offline (see conftest)."""
    for words in (
        ["bench", "stream", "--model", "no-one/nothing"],
        ["convert", "no-one/nothing", "-o", str(tmp_path / "out")],
    ):
        assert main(words) == 2
        line = capsys.readouterr().err.strip()
        assert "'no-one/nothing' is not a folder here, and cannot be fetched from the hub: the hub cannot be" in line
        assert "\n" not in line
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_client_becomes_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("a\nb")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="its cache does not hold it"):
        model_path("a/b")


@pytest.mark.parametrize("model", ["./a/b", "/a/b", "a/b/c", "../b"])
def test_a_path_is_not_taken_for_a_name(model: str) -> None:
    assert model_path(model) == Path(model)
