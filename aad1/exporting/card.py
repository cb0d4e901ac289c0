"""The model card of an export: what it is, how to use it, how good it is; nothing that is not known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from aad1.evaluation.report import to_markdown
from aad1.exporting.source import ExportSource

LICENCE = "apache-2.0"
TAGS = ("video", "streaming", "autoregressive", "wan", "aad1")
LIBRARIES = {"diffusers": "diffusers"}  # formats that the hub knows a library for


def write_card(source: ExportSource, fresh: Path, format: str, notes: Sequence[str]) -> None:
    """Write ``README.md`` into ``fresh``: front matter for the hub, facts, ``notes``, an evaluation if there is one.

    format: of the export, e.g. ``diffusers``; notes: paragraphs of Markdown on how to use it.
    """
    paragraphs = [_front_matter(source, format), f"# {_title(source)}", _what_it_is(source), "## Use", *notes]
    if report := source.evaluation:
        paragraphs += ["## Evaluation", _a_level_down(to_markdown(report))]
    paragraphs += ["## Licence", "Apache License 2.0, in LICENSE; what it was distilled from has a licence of its own."]
    (fresh / "README.md").write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")


def _front_matter(source: ExportSource, format: str) -> str:
    fields: dict[str, object] = {"license": LICENCE, "pipeline_tag": "image-to-video"}
    if format in LIBRARIES:
        fields["library_name"] = LIBRARIES[format]
    if source.base:
        fields["base_model"] = source.base
    fields["tags"] = [*TAGS, *(["one-step"] if len(source.skeleton.config.passes) == 1 else [])]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _title(source: ExportSource) -> str:
    return f"{source.base.rpartition('/')[2]}, streaming" if source.base else "Streaming image-to-video"


def _what_it_is(source: ExportSource) -> str:
    """From the student's own config and names alone."""
    model, config = source.skeleton, source.skeleton.config
    millions = sum(value.numel() for value in model.state_dict().values()) / 1e6
    window = "all" if config.local_attn_size < 0 else f"the last {config.local_attn_size}, its own chunk included"
    passes = ", ".join(f"{level:g}" for level in config.passes)
    facts = {
        "parameters of the transformer": f"{millions:,.1f} million, {config.num_layers} layers",
        "latent frames a chunk": f"{config.num_frames_per_block}",
        "latent frames that it sees": f"the first {config.sink_size} and {window}",
        "noise levels of a chunk's passes": passes,
        "picture, height x width": f"{config.size[0]} x {config.size[1]}" if config.size else "not recorded",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return (
        "An image and a prompt in, video out, chunk by chunk, for as long as anyone looks: a causal video model, "
        "written by `aad1 export`.\n\n"
        f"| | |\n|---|---|\n{rows}"
    )


def _a_level_down(markdown: str) -> str:
    """The same text under a heading of the second level."""
    return re.sub(r"^(#+) ", r"##\1 ", markdown, flags=re.MULTILINE).strip()
