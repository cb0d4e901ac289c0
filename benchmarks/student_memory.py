"""Peak host memory of writing a student out of a run's checkpoint, against the model's own size.

    python benchmarks/student_memory.py --folder /some/disk/student [--layers 8]

A transformer of 1.3B's width with AdamW and an average is saved as a run of recipe tiny's form would be; then
``write_trained`` makes a student of it in a process of its own, in files of 100 MB. What importing takes is measured
first and taken off.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import yaml
from memory import measured

from aad1.exporting.trained import write_trained
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import bundled, save_transformer
from aad1.recipe import as_dict, load_recipe
from aad1.record import RECIPE
from aad1.training.checkpoint import Checkpoints
from aad1.training.loop import CHECKPOINTS
from aad1.training.player import OptimizerConfig, Player

FILE = 100 * 10**6
HERE = "from student_memory import *; "


def make(folder: Path, layers: int) -> None:
    """A Wan folder whose transformer is 1.3B's, but shallower, and a run on it with one checkpoint."""
    wan, run = folder / "wan", folder / "run"
    shutil.copytree(bundled("tiny"), wan, ignore=shutil.ignore_patterns("student"))
    known = CausalWanTransformer3DModel.load_config(wan / "transformer")
    fits = {name: known[name] for name in ("in_channels", "out_channels", "text_dim")}
    model = CausalWanTransformer3DModel(**fits, num_attention_heads=12, ffn_dim=8960, num_layers=layers)
    save_transformer(model, wan / "transformer", as_stock=True)
    player = Player("generator", model, OptimizerConfig(lr=1e-3, ema=0.9))
    saved = Checkpoints(run / CHECKPOINTS, keep=1)
    saved.save(1, {"players": {"generator": player.state_dict()}})
    saved.wait()
    saved.close()
    recipe = {**as_dict(load_recipe("tiny")), "model": str(wan)}
    (run / RECIPE).write_text(yaml.safe_dump(recipe))


def student(folder: Path) -> None:
    write_trained(folder / "run", "last", folder / "student", file_bytes=FILE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where to work; must not exist")
    parser.add_argument("--layers", type=int, default=8)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    here = f"import sys; sys.path[:0] = {sys.path!r}; {HERE}"
    try:
        measured([sys.executable, "-c", f"{here}make(Path({str(folder)!r}), {arguments.layers})"])
        imports = measured([sys.executable, "-c", here])
        found = measured([sys.executable, "-c", f"{here}student(Path({str(folder)!r}))"])
        size = sum(file.stat().st_size for file in (folder / "student").glob("*.safetensors"))
        checkpoint = sum(file.stat().st_size for file in (folder / "run" / CHECKPOINTS).rglob("*.distcp"))
        most, own = found.resident - imports.resident, found.anonymous - imports.anonymous
        print(
            f"a student of {size / 1e9:.2f} GB out of a checkpoint of {checkpoint / 1e9:.2f} GB: peak {most / 1e9:.2f} "
            f"GB above the imports, {own / 1e9:.2f} not mapped; a file is {FILE / 1e9:.2f} GB"
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
