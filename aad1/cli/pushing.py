"""The command that sends an export to the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from tyro.conf import Positional, arg

from aad1.cli.options import refuse, say
from aad1.exporting.hub import Upload, prepare_upload, send


@dataclass(frozen=True)
class Push:
    """Send an export to the Hugging Face hub. Without --yes it only shows what would be sent, and sends nothing.

    Hidden files are never sent. The token is that of `hf auth login`, or HF_TOKEN.

    For example:
      aad1 export --student runs/tiny/adversarial/final/student -o runs/export
      aad1 push runs/export my-name/my-student
      aad1 push runs/export my-name/my-student --private --yes
    """

    folder: Positional[Path]
    repo: Annotated[Positional[str], arg(help="owner/name on the hub")]
    private: Annotated[bool, arg(help="only you may see it")] = False
    yes: Annotated[bool, arg(help="send it")] = False

    def run(self, extra: Sequence[str]) -> None:
        """Show, and send if told to."""
        refuse(extra, type(self))
        upload = prepare_upload(self.folder, self.repo)
        show(upload, Console())
        if not self.yes:
            say("nothing was sent; add --yes to send it")
            return
        say(f"sent: {send(upload, private=self.private)}")


def show(upload: Upload, console: Console) -> None:
    """Print what would be sent, and what is amiss."""
    table = Table(title=f"{upload.folder} to {upload.repo}", title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right")
    for file in upload.files:
        table.add_row(file.as_posix(), decimal(upload.size(file)))
    table.add_section()
    table.add_row(f"{len(upload.files)} files", decimal(upload.bytes))
    console.print(table)
    for line in upload.amiss:
        console.print(f"note: {line}", markup=False)
