"""Measure teacher, stages and controls on held-out clips of the embedded world, with intervals.

    python benchmarks/measure_world.py --model runs/model --runs runs/tiny                  # short: 81 frames
    python benchmarks/measure_world.py --model runs/model --runs runs/tiny --frames 321     # long
    python benchmarks/measure_world.py --model runs/model --rows truth truth_vae frozen teacher
    python benchmarks/measure_world.py --model runs/model --rows bundled                    # the folder's own student

Prints a Markdown table a track; ``-o`` keeps everything as JSON. Several trainings are compared by several
``--runs``; their rows are named by folder. The teacher knows one length only; ``--showing.teacher.clean_image false``
lets it draw its own first frame.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from aad1.data.world import Clip
from aad1.evaluation.models import student_samples, teacher_samples, vae_samples
from aad1.evaluation.world import CONTROLS, Row, Sample, evaluate, protocol_clips, report, table, to_markdown
from aad1.measures.world import MEASURES
from aad1.models.causal_wan import CausalWanTransformer3DModel
from aad1.models.checkpoint_io import open_folder
from aad1.progress import Progress
from aad1.recipe import load_recipe
from aad1.runtime import keep_freed_memory
from aad1.streaming import STUDENT, load_student
from aad1.workspace import DISTILLATION, Workspace, model_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a Wan folder, or the name of a bundled one")
    parser.add_argument("--runs", nargs="*", default=[], help="folders of distillations, with their stages")
    parser.add_argument("--rows", nargs="*", help="which rows (default: the stages of --runs)")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--recipe", default="tiny", help="whose showing.teacher says how the teacher is sampled")
    names = [measure.name for measure in MEASURES]
    parser.add_argument("--measures", nargs="*", default=[], choices=names, help="which lines to print (default: all)")
    parser.add_argument("-o", "--out", type=Path, help="JSON with every measure, track and interval")
    arguments, arguments.values = parser.parse_known_args()  # such as --showing.teacher.churn 0
    arguments.loaded = load_recipe(arguments.recipe, arguments.values)
    keep_freed_memory()
    clips = list(protocol_clips(arguments.frames, arguments.clips))
    rows = [measure(name, samples, arguments) for name, samples in wanted(arguments, clips)]
    for track in ("determined", "free"):
        title = f"{track}, {arguments.frames} frames, {rows[0].clips[track]} clips"
        print(to_markdown(table(rows, track), title, measures=arguments.measures))
    if arguments.out:
        arguments.out.write_text(json.dumps(report(rows), indent=1))


def measure(name: str, samples: Iterable[Sample], arguments: argparse.Namespace) -> Row:
    with Progress(name, arguments.clips, unit="clip") as bar:

        def watched() -> Iterator[Sample]:
            for sample in samples:
                yield sample
                bar.advance()

        return evaluate(name, watched(), with_flow=False, seed=arguments.seed)


def wanted(arguments: argparse.Namespace, clips: list[Clip]) -> Iterator[tuple[str, Iterable[Sample]]]:
    """Each row's name and its samples, made when they are asked for."""
    for name in arguments.rows or ([] if arguments.runs else ["bundled"]):
        yield name, controls_and_teacher(name, arguments, clips)
    for folder in arguments.runs:
        prefix = f"{Path(folder).name} " if len(arguments.runs) > 1 else ""
        for stage in DISTILLATION:
            student = Workspace(Path(folder)).student(stage)
            if student.is_dir():
                yield prefix + stage, animated(arguments.model, str(student), clips, arguments.seed)


def controls_and_teacher(name: str, arguments: argparse.Namespace, clips: list[Clip]) -> Iterable[Sample]:
    if name in CONTROLS:
        return (Sample(CONTROLS[name](clip), clip.truth) for clip in clips)
    if name == "bundled":
        return animated(arguments.model, STUDENT, clips, arguments.seed)
    folder = open_folder(model_path(arguments.model))
    if name == "truth_vae":
        return vae_samples(folder.vae(), clips)
    if name == "teacher":
        recipe = arguments.loaded
        teacher = folder.transformer(CausalWanTransformer3DModel).eval()
        parts, sampling = (teacher, folder.vae(), folder.text()), recipe.showing.teacher
        return teacher_samples(*parts, clips, sampling, recipe.negative_prompt, seed=arguments.seed)
    raise SystemExit(f"no row '{name}': {', '.join(CONTROLS)}, truth_vae, teacher, bundled")


def animated(model: str, student: str, clips: list[Clip], seed: int) -> Iterable[Sample]:
    loaded = load_student(model, student=student)
    return student_samples(loaded.generator, loaded.vae, loaded.text, clips, seed=seed)


if __name__ == "__main__":
    main()
