"""Pushing: nothing by accident, nothing that is not part of the export, and one line for what the hub refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from aad1.cli import main
from aad1.errors import UserError
from aad1.exporting import hub
from aad1.exporting.hub import prepare_upload, send

CARD = "---\nlicense: apache-2.0\npipeline_tag: image-to-video\nbase_model: a/b\n---\n# S\n\n## Evaluation\n"


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """What an export looks like, and beside its files what must never leave the machine."""
    for name, text in {
        "README.md": CARD,
        "LICENSE": "Apache",
        "export.json": "{}",
        "model_index.json": "{}",
        "transformer/config.json": "{}",
        "transformer/diffusion_pytorch_model.safetensors": "x" * 1000,
        ".env": "TOKEN=secret",
        ".export.partial-1/config.json": "{}",
        "transformer/.hidden": "x",
        "__pycache__/a.pyc": "x",
    }.items():
        (tmp_path / "export" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "export" / name).write_text(text)
    (tmp_path / "outside.txt").write_text("secret")
    (tmp_path / "export" / "link.txt").symlink_to(tmp_path / "outside.txt")
    return tmp_path / "export"


class Hub:
    """Stands in for HfApi: notes what it is asked for, or fails as told."""

    def __init__(self, failure: Exception | None = None, private: bool = True) -> None:
        self.failure, self.private = failure, private
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        if self.failure:
            raise self.failure

    def repo_info(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, **options: Any) -> SimpleNamespace:
        self.calls.append(("upload_folder", options))
        return SimpleNamespace(commit_url="hub/commit/1")


def http_error(status: int) -> HfHubHTTPError:
    response = httpx.Response(status, request=httpx.Request("POST", "https://hub.invalid"))
    return HfHubHTTPError(f"{status} by the hub", response=response)


def test_only_the_export_is_listed(export: Path) -> None:
    upload = prepare_upload(export, "me/student")
    assert [file.as_posix() for file in upload.files] == [
        "LICENSE",
        "README.md",
        "export.json",
        "model_index.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    ]
    assert upload.bytes == sum((export / file).stat().st_size for file in upload.files)
    assert upload.amiss == ()


@pytest.mark.parametrize(
    ("card", "line"),
    [
        ("# only words\n", "no front matter"),
        ("---\n[\n---\n", "no front matter"),
        (CARD.replace("license: apache-2.0\n", ""), "names no license"),
        (CARD.replace("base_model: a/b\n", ""), "names no base_model"),
        (CARD.replace("## Evaluation\n", ""), "no evaluation"),
    ],
)
def test_a_card_that_lacks_something_is_noted(export: Path, card: str, line: str) -> None:
    (export / "README.md").write_text(card)
    (export / "LICENSE").unlink()
    amiss = prepare_upload(export, "me/student").amiss
    assert any(line in found for found in amiss)
    assert "there is no LICENSE" in amiss


def test_nothing_is_sent_without_a_yes(
    export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in = Hub()
    monkeypatch.setattr(hub, "HfApi", lambda: stand_in)
    assert main(["push", str(export), "me/student"]) == 0
    assert not stand_in.calls
    out = capsys.readouterr().out
    assert "nothing was sent; add --yes" in out
    assert "1.0 kB" in out
    assert ".env" not in out


def test_with_a_yes_the_listed_files_go_in_one_commit(
    export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in = Hub()
    monkeypatch.setattr(hub, "HfApi", lambda: stand_in)
    assert main(["push", str(export), "me/student", "--private", "--yes"]) == 0
    (_, created), (_, uploaded) = stand_in.calls
    assert created == {"repo_id": "me/student", "private": True, "exist_ok": True}
    upload = prepare_upload(export, "me/student")
    assert uploaded["allow_patterns"] == [file.as_posix() for file in upload.files]
    assert uploaded["folder_path"] == export
    assert "sent: hub/commit/1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (LocalTokenNotFoundError("no token"), "hf auth login"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (http_error(403), "may not write to 'me/student'"),
        (http_error(500), "refused 'me/student'"),
        (ConnectionError("no route"), "cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_one_line(export: Path, failure: Exception, message: str) -> None:
    stand_in = Hub(failure)
    with pytest.raises(UserError, match=message) as error:
        send(prepare_upload(export, "me/student"), client=stand_in)
    assert "\n" not in str(error.value)
    assert [name for name, _ in stand_in.calls] == ["create_repo"]


def test_a_public_repository_is_not_taken_for_a_private_one(export: Path) -> None:
    stand_in = Hub(private=False)
    with pytest.raises(UserError, match="exists and is public"):
        send(prepare_upload(export, "me/student"), private=True, client=stand_in)
    assert [name for name, _ in stand_in.calls] == ["create_repo"]


@pytest.mark.parametrize("repo", ["me/stu dent", "a/b/c", "", "me/..", "-x/y"])
def test_a_malformed_id_is_refused(export: Path, repo: str) -> None:
    with pytest.raises(UserError, match="no id of a model on the hub"):
        prepare_upload(export, repo)


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="is no export"):
        prepare_upload(tmp_path, "me/student")
    with pytest.raises(UserError, match="is not a folder"):
        prepare_upload(tmp_path / "none", "me/student")
