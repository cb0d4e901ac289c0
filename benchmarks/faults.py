"""What becomes of a training when something goes wrong: every fault provoked in a real run, its outcome as JSON.

    python benchmarks/faults.py                         # all of them, about half an hour on two idle cores
    python benchmarks/faults.py hang spike -o faults.jsonl

Each trains a tiny distillation with torchrun on two processes of this machine (gloo), in a temporary folder. "same
weights" compares the exported student, bit for bit, with that of a run that nothing has disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fault_world import RANKS, Launched, World, alive, anew, stepping
from safetensors.torch import load_file, save_file

from aad1.workspace import DISTILLATION

Outcome = dict[str, Any]
TRAIN = ("train", "ode_init")
DISK = 100_000  # bytes a file may have when the disk is "full": a log's, not a checkpoint's
KILLS = 20
HANDLES_MORE = ("--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",)


def steps_made(world: World, launched: Launched, out: str, count: int) -> None:
    """Wait until so many steps are logged."""
    launched.until(lambda: world.steps(out) >= count)


def lost_rank(world: World) -> Outcome:
    """SIGKILL of rank 1 and later of rank 0, each mid-step; torchrun --max-restarts 3."""
    expected = world.weights(world.unbroken(*TRAIN))
    out, began = world.fresh("lost"), 0.0
    launched, waits = world.start(out, *TRAIN, restarts=3), []
    for victim, step in ((1, 7), (0, 15)):
        steps_made(world, launched, out, step)
        before = launched.ranks
        launched.signal(signal.SIGKILL, victim)
        began = time.monotonic()
        launched.until(partial(anew, launched, before))
        launched.until(stepping(world, out))
        waits.append(round(time.monotonic() - began, 1))
    code = launched.end()
    return {"exit": code, "same weights": world.weights(out) == expected, "seconds to the next step": waits}


def kill_storm(world: World) -> Outcome:
    """20 SIGKILLs of a random rank, each up to 2 s after a step, over a distillation of three stages."""
    expected = {stage: world.weights(world.unbroken("distill", steps=40), stage) for stage in DISTILLATION[-1:]}
    rng, out, kills = random.Random(0), world.fresh("storm"), 0
    launched = world.start(out, "distill", restarts=KILLS + 5, steps=40)
    seen: dict[int, int] = {}
    while kills < KILLS and launched.code is None:
        try:
            launched.until(partial(anew, launched, seen))
            launched.until(stepping(world, out))
        except AssertionError:
            if launched.code == 0:
                break
            raise
        time.sleep(rng.uniform(0, 2))
        seen = launched.ranks
        launched.signal(signal.SIGKILL, rng.randrange(RANKS))
        kills += 1
    code = launched.end()
    return {
        "exit": code,
        "exits of ranks": launched.exits,
        "kills": kills,
        "checkpoints skipped as unreadable": launched.said().count("skipping the unreadable"),
        "unreadable at the end": world.unreadable(out),
        "same weights": all(world.weights(out, stage) == weights for stage, weights in expected.items()),
    }


def full_disk(world: World) -> Outcome:
    """From step 5 on no file of rank 1 may grow above 100 kB (RLIMIT_FSIZE): its checkpoints cannot be written."""
    expected = world.weights(world.unbroken(*TRAIN))
    out = world.fresh("full")
    launched = world.start(out, *TRAIN)
    steps_made(world, launched, out, 5)
    resource.prlimit(launched.ranks[1], resource.RLIMIT_FSIZE, (DISK, resource.RLIM_INFINITY))
    code = launched.end()
    kept = [path.name for path in world.checkpoints(out)]
    debris = [path.name for path in world.checkpoints(out)[0].parent.glob(".*")]
    again = world.run(out, *TRAIN, "--resume")
    return {
        "exit": code,
        "exits of ranks": launched.exits,
        "said": launched.lines,
        "checkpoints kept": kept,
        "unreadable": world.unreadable(out),
        "debris": debris,
        "then, with room": {"exit": again.code, "same weights": world.weights(out) == expected},
    }


def torn_checkpoint(world: World) -> Outcome:
    """All processes killed, then the newest checkpoint's file of rank 1 cut in half."""
    expected = world.weights(world.unbroken(*TRAIN))
    out = world.fresh("torn")
    launched = world.start(out, *TRAIN)
    launched.until(lambda: len(world.checkpoints(out)) >= 2)
    for pid in [launched.process.pid, *launched.ranks.values()]:
        os.kill(pid, signal.SIGKILL)
    launched.end()
    newest = world.checkpoints(out)[-1] / "__1_0.distcp"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    again = world.run(out, *TRAIN, "--resume")
    return {"exit": again.code, "said": again.lines, "same weights": world.weights(out) == expected}


@contextmanager
def spoilt(world: World, out: str, by: float) -> Iterator[None]:
    """Within, the points of one trajectory are ``by`` times what they were."""
    file = next((world.at(out).trajectories).glob("block-00003*.safetensors"))
    kept = file.read_bytes()
    tensors = load_file(file)
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name][0] *= by
    save_file(tensors, file)
    yield
    file.write_bytes(kept)


def nan(world: World) -> Outcome:
    """One trajectory of the store is NaN; afterwards it is mended."""
    expected = world.weights(world.unbroken(*TRAIN))
    out = world.fresh("nan")
    with spoilt(world, out, float("nan")):
        launched = world.run(out, *TRAIN)
    batches = [path.name for path in world.at(out).run("ode_init").glob("diverged-*")]
    again = world.run(out, *TRAIN, "--resume")
    return {
        "exit": launched.code,
        "exits of ranks": launched.exits,
        "said": launched.lines,
        "batches saved": batches,
        "then, mended": {"exit": again.code, "same weights": world.weights(out) == expected},
    }


def spike(world: World) -> Outcome:
    """One trajectory of the store is 100 times too large; skip_above 10, and without."""
    found: Outcome = {}
    for above in (10, 0):
        out = world.fresh(f"spike-{above}")
        with spoilt(world, out, 100.0):
            launched = world.run(out, *TRAIN, f"--ode_init.optimizer.skip_above={above}", steps=40)
        rows = world.rows(out)
        found[f"skip_above {above}"] = {
            "exit": launched.code,
            "largest norm": max(row["generator/grad_norm"] for row in rows),
            "skipped": rows[-1].get("generator/skipped"),
        }
    return found


def hang(world: World) -> Outcome:
    """SIGSTOP of rank 1 mid-step, compute.timeout 5 s, torchrun --max-restarts 1."""
    expected = world.weights(world.unbroken(*TRAIN))
    out = world.fresh("hang")
    launched = world.start(out, *TRAIN, "--compute.timeout=5", restarts=1)
    steps_made(world, launched, out, 7)
    launched.signal(signal.SIGSTOP, 1)
    began = time.monotonic()
    launched.until(lambda: "stopped, go on" in launched.said())
    noticed = round(time.monotonic() - began, 1)
    launched.until(stepping(world, out))
    resumed = round(time.monotonic() - began, 1)
    code = launched.end()
    return {
        "exit": code,
        "exits of ranks": launched.exits,
        "said": launched.lines,
        "noticed after s": noticed,
        "next step after s": resumed,
        "same weights": world.weights(out) == expected,
    }


def dead_data_worker(world: World) -> Outcome:
    """One of the two helpers of `aad1 prepare clips --processes 2` is killed."""
    clips = ("prepare", "clips", "--data.clips=320")
    whole = world.run("clips-unbroken", *clips, ranks=0)
    launched = world.start("clips", *clips, "--processes=2", ranks=0)
    made = world.at("clips").clips
    launched.until(lambda: list(made.glob("block-*.jsonl")))
    workers = [pid for pid in launched.children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[1], signal.SIGKILL)
    code, kept = launched.end(), len(list(made.glob("block-*.jsonl")))
    again = world.run("clips", *clips, "--processes=2", ranks=0)
    files = sorted(path.name for path in world.at("clips-unbroken").clips.glob("*") if path.is_file())
    same = all((made / name).read_bytes() == (world.at("clips-unbroken").clips / name).read_bytes() for name in files)
    return {
        "exit": code,
        "said": launched.lines,
        "blocks kept": kept,
        "then": {"exit": again.code, "same bytes": whole.code == 0 and same},
    }


def preemption(world: World) -> Outcome:
    """SIGTERM, SIGUSR1 or Ctrl-C to torchrun, SIGUSR1 or Ctrl-C twice to a rank, mid-training; then --resume."""
    expected = world.weights(world.unbroken(*TRAIN))
    found: Outcome = {}
    ways: dict[str, tuple[tuple[int, int | None], ...]] = {
        "SIGTERM to torchrun": ((signal.SIGTERM, None),),
        "SIGUSR1 to rank 1": ((signal.SIGUSR1, 1),),
        "SIGUSR1 to torchrun, which handles it": ((signal.SIGUSR1, None),),
        "Ctrl-C": ((signal.SIGINT, None),),
        "Ctrl-C twice": ((signal.SIGINT, 0), (signal.SIGINT, 0)),
    }
    for name, signals in ways.items():
        out = world.fresh(f"preempted-{len(found)}")
        launched = world.start(out, *TRAIN, by=HANDLES_MORE if "handles" in name else ())
        steps_made(world, launched, out, 5)
        began = time.monotonic()
        for number, (which, rank) in enumerate(signals):
            if number:  # two of a kind at one moment are one
                launched.until(lambda launched=launched: "finishing" in launched.said())
            launched.signal(which, rank)
        code, seconds = launched.end(), round(time.monotonic() - began, 1)
        reached = [path.name for path in world.checkpoints(out)]
        again = world.run(out, *TRAIN, "--resume")
        found[name] = {
            "exit of torchrun": code,
            "exits of ranks": launched.exits,
            "seconds": seconds,
            "said": launched.lines,
            "checkpoints": reached,
            "then": {"exit": again.code, "same weights": world.weights(out) == expected},
        }
    return found


def preemption_elsewhere(world: World) -> Outcome:
    """SIGTERM to torchrun while a distillation prepares clips, trajectories, and between two stages; then --resume."""
    expected = world.weights(world.unbroken("distill", steps=4), "adversarial")
    places: dict[str, Callable[[str], Any]] = {
        "clips": lambda out: world.at(out).clips.exists(),
        "trajectories": lambda out: world.at(out).trajectories.exists(),
        "after stage I": lambda out: world.at(out).student("ode_init").exists(),
    }
    found: Outcome = {}
    for name, reached in places.items():
        out = name.replace(" ", "-")
        launched = world.start(out, "distill", steps=4)
        launched.until(lambda reached=reached, out=out: reached(out))
        launched.signal(signal.SIGTERM)
        code = launched.end()
        again = world.run(out, "distill", "--resume", steps=4)
        found[name] = {
            "exit of torchrun": code,
            "exits of ranks": launched.exits,
            "said": launched.lines,
            "then": {"exit": again.code, "same weights": world.weights(out, "adversarial") == expected},
        }
    return found


def lost_torchrun(world: World) -> Outcome:
    """SIGKILL of torchrun itself mid-training, which leaves its processes behind; then --resume."""
    expected = world.weights(world.unbroken(*TRAIN))
    out = world.fresh("orphans")
    launched = world.start(out, *TRAIN)
    steps_made(world, launched, out, 5)
    orphans = launched.ranks.values()
    began = time.monotonic()
    launched.signal(signal.SIGKILL)
    launched.end()
    while any(map(alive, orphans)):
        time.sleep(0.05)
    ended = round(time.monotonic() - began, 1)
    again = world.run(out, *TRAIN, "--resume")
    return {
        "said": launched.lines,
        "its processes end after s": ended,
        "then": {"exit": again.code, "same weights": world.weights(out) == expected},
    }


FAULTS: dict[str, Callable[[World], Outcome]] = {
    "lost-rank": lost_rank,
    "lost-torchrun": lost_torchrun,
    "hang": hang,
    "nan": nan,
    "spike": spike,
    "full-disk": full_disk,
    "torn-checkpoint": torn_checkpoint,
    "dead-data-worker": dead_data_worker,
    "preemption": preemption,
    "preemption-elsewhere": preemption_elsewhere,
    "kill-storm": kill_storm,
}


def main() -> None:
    """Provoke the faults that are named, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", choices=[[], *FAULTS], default=list(FAULTS), metavar="FAULT")
    parser.add_argument("-o", "--out", type=Path, help="append the outcomes to this file")
    arguments = parser.parse_args()
    for name in arguments.faults:
        folder = Path(tempfile.mkdtemp(prefix=f"aad1-{name}-"))
        world, began = World(folder), time.monotonic()
        try:
            outcome = FAULTS[name](world)
        finally:
            world.stop_all()
        done = " ".join((FAULTS[name].__doc__ or "").split())
        line = {"fault": name, "done": done, **outcome, "seconds in all": round(time.monotonic() - began)}
        print(json.dumps(line, indent=1))
        sys.stdout.flush()
        if arguments.out is not None:
            with arguments.out.open("a") as record:
                record.write(json.dumps(line) + "\n")
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
