"""The diffusers format: a folder that ``DiffusionPipeline.from_pretrained`` loads and streams, without this package.

    model_index.json                   names the pipeline's file and class
    aad1_pipeline.py                   the pipeline, bundled
    transformer/aad1_transformer.py    the transformer's class, bundled, beside its weights
    vae, text_encoder, tokenizer       as they are in the Wan folder
    scheduler                          for whoever loads the folder as a bidirectional Wan model
    README.md, example.py

diffusers copies a component's file alone, so each of the two holds all that it needs.
"""

from __future__ import annotations

import inspect
from importlib.metadata import version
from pathlib import Path

from aad1.exporting import example
from aad1.exporting.bundle import bundle
from aad1.exporting.card import write_card
from aad1.exporting.pipeline import AAD1Pipeline
from aad1.exporting.source import COMPONENTS, TRANSFORMER, ExportSource
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import INDEX, read_json, write_json

PIPELINE_FILE, TRANSFORMER_FILE, EXAMPLE = "aad1_pipeline", "aad1_transformer", "example.py"
INSTALL = """```
pip install torch "diffusers>={diffusers}" "transformers>={transformers}" accelerate ftfy
```"""
CALL = """```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(
    "FOLDER_OR_ID", trust_remote_code=True, torch_dtype={"default": torch.bfloat16, "vae": torch.float32}
).to("cuda")  # on a CPU: torch.float32, "cpu"
video = pipe("still.png", "a red disc moves left slowly", seconds=5, seed=0).frames[0]  # a list of PIL pictures
video[0].save("video.webp", save_all=True, append_images=video[1:], duration=62)
```"""
STREAM = """Chunk by chunk, for as long as you like, and with another prompt on the way:

```python
session = pipe.session("still.png", "a red disc moves left slowly", seed=0)
for index, frames in enumerate(session.chunks()):  # uint8 [frames, height, width, 3]
    show(frames)
    if index == 4:
        session.switch("a red disc moves up")
```"""
REMARKS = """`python example.py still.png "a prompt"` does this from the command line.

`trust_remote_code=True` runs the two Python files of this folder, `aad1_pipeline.py` and
`transformer/aad1_transformer.py`: read them first.

The transformer also loads as a stock `WanTransformer3DModel`, a bidirectional model, and the folder in
`aad1 generate --model`, which makes the same frames from the same seed."""


def write_diffusers(source: ExportSource, fresh: Path) -> None:
    """Write the whole folder into ``fresh``."""
    source.copy_student(fresh / TRANSFORMER)
    for part in (*COMPONENTS, "scheduler"):
        source.copy_part(part, fresh / part)
    _write_code(fresh)
    write_json(fresh / INDEX, _model_index(source))
    write_card(source, fresh, "diffusers", _notes())


def _write_code(fresh: Path) -> None:
    files = {
        fresh / f"{PIPELINE_FILE}.py": (AAD1Pipeline, "A streaming image-to-video pipeline, in one file."),
        fresh / TRANSFORMER / f"{TRANSFORMER_FILE}.py": (CausalWanTransformer3DModel, "Its transformer, in one file."),
    }
    for path, (cls, docstring) in files.items():
        path.write_text(bundle(cls.__module__, cls.__name__, docstring), encoding="utf-8")
    (fresh / EXAMPLE).write_text(inspect.getsource(example), encoding="utf-8")


def _model_index(source: ExportSource) -> dict[str, object]:
    own = read_json(source.folder.path / INDEX)
    return {
        "_class_name": [PIPELINE_FILE, AAD1Pipeline.__name__],
        "_diffusers_version": version("diffusers"),
        TRANSFORMER: [TRANSFORMER_FILE, CausalWanTransformer3DModel.__name__],
        **{part: own[part] for part in COMPONENTS},
    }


def _notes() -> list[str]:
    packages = {name: version(name) for name in ("diffusers", "transformers")}
    return [INSTALL.format(**packages), CALL, STREAM, REMARKS]
