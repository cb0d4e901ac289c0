"""VBench's code, one dimension a process of the user's Python: resumable, and a failure costs its dimension alone.

    OUT/DIMENSION.json        VBench's own result, once it has been checked
    OUT/run.json              environment, videos and time of each, and what failed
    OUT/logs/DIMENSION.log    everything the process printed
    OUT/raw/                  where VBench itself writes

VBench writes a dimension's JSON at its very end and its decoders leak, hence a process each. A result that
is NaN, over too few videos, or against itself is a failure.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from aad1.errors import UserError
from aad1.evaluation.vbench.dimensions import COMMON, SAMPLES, Dimension, Weights
from aad1.evaluation.vbench.environment import CROPS, HEAD_ARGUMENT, HERE, INFO, Environment, process_environment
from aad1.evaluation.vbench.names import Folder, fingerprint
from aad1.evaluation.vbench.records import Measured, Record, read_record
from aad1.evaluation.vbench.results import check, prompts, read_file
from aad1.files import write_atomic, write_errors
from aad1.progress import Progress

Mode = Literal["custom", "standard"]
LAST_LINES = 3  # of a log, in a reason
TICK = 1.0  # seconds between looks at a log
COUNTER = re.compile(rb"(\d+)/(\d+) \[")  # as tqdm prints it


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    mode: "standard" is the official image suite, each dimension over its own part of it; "custom" any videos, each
    dimension over all of them. images: pictures named as the prompts, which custom i2v dimensions compare with.
    """

    videos: Folder
    out: Path
    environment: Environment
    images: Path | None = None
    ratio: str = "7-4"
    mode: Mode = "custom"


@dataclass(frozen=True)
class Outcome:
    """What became of one dimension; mean in [0, 1], None where it failed for this reason."""

    dimension: str
    state: Literal["measured", "kept", "failed"]
    mean: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Call:
    """One call of VBench, as driver.py makes it, and the stems of the videos that it must go over."""

    module: str
    cls: str
    info: str
    arguments: Mapping[str, Any]
    expected: frozenset[str]


# --- how VBench is called ---------------------------------------------------------------------


def found_at(weights: Weights, places: Mapping[str, str]) -> int | None:
    """Which of a weight file's places has it, None if none does."""
    for index, files in enumerate(weights.places):
        if all(Path(file.format(**places)).exists() for file in files):
            return index
    return None


def call(request: Request, dimension: Dimension) -> Call:
    """How a dimension is asked for; raises UserError where this VBench, or what was given, cannot do it."""
    standard = request.mode == "standard"
    own = {} if standard else _custom(request, dimension)
    arguments = {
        "videos_path": str(request.videos.path),
        "name": dimension.name,
        "dimension_list": [dimension.name],
        "local": _local(dimension, request.environment.places),
        **own,
    }
    if standard or dimension.score == "i2v":
        i2v = request.environment.vbench_i2v
        known = {"mode": "vbench_standard"} if standard and "mode" in i2v.arguments else {}
        info, expected = _official(request, dimension) if standard else ("", frozenset(request.videos.stems))
        arguments |= {"resolution": request.ratio, **known}
        return Call("vbench2_beta_i2v", "VBenchI2V", info, arguments, expected)
    return Call("vbench", "VBench", "", arguments, frozenset(request.videos.stems))


def _custom(request: Request, dimension: Dimension) -> dict[str, Any]:
    environment = request.environment
    entry = environment.vbench_i2v if dimension.score == "i2v" else environment.vbench
    if entry.problem:
        raise UserError(f"VBench cannot be imported ({entry.problem})")
    if dimension.score != "i2v":
        if "mode" not in entry.arguments:
            raise UserError("this VBench takes no videos of one's own; use a newer one")
        return {"mode": "custom_input"}
    if not environment.own_images:
        raise UserError(
            f"{environment.source} takes no pictures of one's own; use a clone of VBench's git HEAD (--clone)"
        )
    if request.images is None:
        raise UserError("it compares videos with the given pictures; say where they are (--images)")
    _check_images(request.images, request.videos)
    return {"mode": "custom_input", HEAD_ARGUMENT: str(request.images.resolve())}


def _check_images(images: Path, videos: Folder) -> None:
    held = {path.stem for path in images.iterdir()} if images.is_dir() else set()
    if lost := sorted(set(prompts(videos.stems)) - held):
        shown = ", ".join(f"'{name}'" for name in lost[:3])
        raise UserError(f"{images} lacks the pictures of {len(lost)} prompts ({shown}); name each PROMPT.jpg")


def _local(dimension: Dimension, places: Mapping[str, str]) -> bool:
    """Whether VBench's cache has what it would otherwise ask torch.hub and CLIP for."""
    choices = [weights for weights in dimension.weights if len(weights.places) > 1]
    return bool(choices) and all(found_at(weights, places) == 0 for weights in choices)


def _official(request: Request, dimension: Dimension) -> tuple[str, frozenset[str]]:
    """VBench-I2V's own list, and the videos that it asks of this dimension."""
    clone, entry = request.environment.clone, request.environment.vbench_i2v
    if clone is None or not (clone / INFO).is_file():
        raise UserError(f"the official suite needs a clone with {INFO} (--clone); or use --mode custom")
    if entry.problem:
        raise UserError(f"VBench cannot be imported ({entry.problem})")
    rows = official_rows(clone)
    expected = {f"{r['prompt_en']}-{k}" for r in rows if dimension.name in r["dimension"] for k in range(SAMPLES)}
    if not expected:
        raise UserError(f"VBench-I2V's list asks for no {dimension.name}; use --mode custom")
    if lost := sorted(expected - set(request.videos.stems)):
        raise UserError(f"{len(lost)} of {len(expected)} videos are not there, such as '{lost[0]}.mp4'; export them")
    if dimension.score == "i2v" and not (clone / CROPS / request.ratio).is_dir():
        raise UserError(f"{clone / CROPS / request.ratio} is not there; run VBench's vbench2_beta_i2v/download_data.sh")
    return str(clone / INFO), frozenset(expected)


def official_rows(clone: Path) -> list[dict[str, Any]]:
    """The rows of VBench-I2V's list; raises UserError where it is missing or has another shape."""
    path = clone / INFO
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(row["prompt_en"], str) and isinstance(row["dimension"], list) for row in rows):
            return list(rows)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); is {clone} a whole clone of VBench?") from None
    except (ValueError, TypeError, KeyError):
        pass
    raise UserError(f"{path} is not VBench-I2V's list of prompts; get the clone again")


# --- running ----------------------------------------------------------------------------------


def run(request: Request, dimensions: Sequence[Dimension]) -> list[Outcome]:
    """Measure what is not measured yet; each result is kept as soon as it is there.

    Raises UserError for videos that cannot be read, or a folder that breaks the official suite's rules; what goes
    wrong with one dimension is in its Outcome.
    """
    _refuse(request)
    record = read_record(request.out)
    with write_errors(request.out):
        (request.out / "logs").mkdir(parents=True, exist_ok=True)
    record.environment, record.problems = request.environment.versions(), request.videos.problems
    state = fingerprint(request.videos.videos)
    outcomes = []
    with Progress("VBench", len(dimensions), unit="dimension", every=1) as bar:
        for dimension in dimensions:
            outcome = _dimension(request, dimension, record, state, bar)
            record.write(request.out)
            bar.advance(dimension=dimension.name, state=outcome.state)
            if outcome.state == "failed":
                bar.print(f"{dimension.name}: {outcome.reason}")
            outcomes.append(outcome)
    return outcomes


def _refuse(request: Request) -> None:
    folder = request.videos
    if folder.broken:
        more = f" (and {len(folder.broken) - 1} more)" if len(folder.broken) > 1 else ""
        raise UserError(f"{folder.broken[0]}{more}; VBench would crash or leave it out in silence")
    if request.mode == "standard" and folder.problems:
        raise UserError(f"{folder.path}: {'; '.join(folder.problems)}")


def _dimension(request: Request, dimension: Dimension, record: Record, state: str, bar: Progress) -> Outcome:
    name, target = dimension.name, request.out / f"{dimension.name}.json"
    record.failed.pop(name, None)
    try:
        asked = call(request, dimension)
        key = _key(request, dimension, asked, state)
        known = record.measured.get(name)
        kept = _whole(target, asked, name) if known is not None and known.key == key else None
        if kept is not None:
            return Outcome(name, "kept", kept)
        target.unlink(missing_ok=True)
        record.measured.pop(name, None)
        started = time.monotonic()
        made = _process(request, asked, name, bar)
        mean = _checked(made, asked, name)
        write_atomic(target, made.read_bytes())
    except UserError as error:
        record.failed[name] = str(error)
        return Outcome(name, "failed", reason=str(error))
    took = round(time.monotonic() - started, 1)
    record.measured[name] = Measured(key, took, datetime.now(UTC).isoformat(timespec="seconds"))
    return Outcome(name, "measured", mean)


def _key(request: Request, dimension: Dimension, asked: Call, state: str) -> str:
    """Everything that a result depends on, in 16 digits: VBench, its packages, the request, videos and pictures."""
    environment, images = request.environment, request.images if HEAD_ARGUMENT in asked.arguments else None
    packages = {name: environment.packages[name].version for name in (*COMMON, *dimension.packages)}
    pictures = fingerprint(path for path in images.iterdir() if path.is_file()) if images else request.ratio
    whole = [environment.source, packages, asked.cls, request.mode, state, pictures, sorted(asked.expected)]
    return hashlib.blake2b(json.dumps(whole).encode(), digest_size=8).hexdigest()


def _whole(target: Path, asked: Call, name: str) -> float | None:
    """The mean of a result that is there and good, else None."""
    try:
        return _checked(target, asked, name) if target.is_file() else None
    except UserError:
        return None


def _checked(path: Path, asked: Call, name: str) -> float:
    """The mean of a result file; raises UserError when it cannot be right."""
    held = read_file(path)
    if name not in held:
        raise UserError(f"VBench wrote a result without {name}")
    result = check(name, held[name])
    if result.videos is None:
        raise UserError("VBench wrote no values of the videos")
    if lost := sorted(asked.expected - result.videos.keys()):
        raise UserError(
            f"VBench measured {len(result.videos)} of {len(asked.expected)} videos and left out '{lost[0]}'; "
            "make it again, or look at the log"
        )
    return result.mean


def _process(request: Request, asked: Call, name: str, bar: Progress) -> Path:
    """Run VBench; returns the file it wrote. Raises UserError with the last lines of its log."""
    work, log = request.out.resolve() / "raw" / name, request.out / "logs" / f"{name}.log"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    question = {"module": asked.module, "cls": asked.cls, "info": asked.info, "out": str(work)}
    words = [
        request.environment.python,
        "-c",
        (HERE / "driver.py").read_text(encoding="utf-8"),
        json.dumps({**question, "arguments": dict(asked.arguments)}),
    ]
    code = _wait(words, request.environment, log, lambda: bar.advance(0, dimension=name, videos=_progress(log)))
    written = work / f"{name}_eval_results.json"
    if code != 0 or not written.is_file():
        why = f"VBench ended with code {code}" if code else "VBench wrote no result"
        raise UserError(f"{why}: {_last_lines(log)} (all of it in {log})")
    return written


def _wait(words: Sequence[str], environment: Environment, log: Path, tick: Callable[[], object]) -> int:
    """Run to the end, everything printed going to the log; stopped with us."""
    variables = process_environment(environment.clone)
    with log.open("wb") as out:
        process = subprocess.Popen(
            words,
            cwd=environment.cwd,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while True:
                try:
                    return process.wait(TICK)
                except subprocess.TimeoutExpired:
                    tick()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _progress(log: Path) -> str:
    """How many videos are done, as tqdm last said it."""
    found = COUNTER.findall(log.read_bytes()[-400:])
    return f"{found[-1][0].decode()}/{found[-1][1].decode()}" if found else "..."


def _last_lines(log: Path) -> str:
    """Without the marks that Python draws under a line of a traceback."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", log.read_text(errors="replace")) if line.strip(" ~^")]
    return " | ".join(lines[-LAST_LINES:]) or "it printed nothing"
