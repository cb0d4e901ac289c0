"""How fast, how safe and how forgiving `aad1 prepare clips` is, on the embedded world's clips as mp4 files.

    python benchmarks/prepare_speed.py speed          # the VAE alone, and reading, encoding and storing; clips a second
    python benchmarks/prepare_speed.py kills          # SIGKILL at random moments, of 1 to 3 processes, till it is done
    python benchmarks/prepare_speed.py corrupt        # 3 of 300 files are damaged
    python benchmarks/prepare_speed.py open           # a store of 100,000 clips (of no size): opening, order, memory

Speed counts no start-up: the VAE is loaded and has encoded a batch before either is timed, and the two take turns.
Beside it stands the work, in processor seconds a clip, which other programs on the machine disturb less; with
--threads 1 no thread spins while it waits for another.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from aad1.data.clips import write_world_folder
from aad1.data.filling import Summary, fill
from aad1.data.latents import LatentStore
from aad1.data.media import video_to_tensor
from aad1.data.order import Sampler
from aad1.data.prepare import clip_work, file_clips
from aad1.data.sources import find_clips
from aad1.data.store import (
    BlockFacts,
    Header,
    Manifest,
    blocks_on_disk,
    json_lines,
    kept_line,
    record_path,
    write_header,
    write_index,
)
from aad1.data.world import FPS, SIZE
from aad1.models.checkpoint_io import open_folder
from aad1.models.vae import encode_video
from aad1.runtime import keep_freed_memory
from aad1.workspace import model_path

SHORT = 17  # frames of the clips where not speed is measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "kills", "corrupt", "open"))
    parser.add_argument("--clips", type=int, help="default: 64, of 81 frames; 300 of 17 for kills and corrupt")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments to kill at and the files to damage")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_grad_enabled(False)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        {"speed": speed, "kills": kills, "corrupt": corrupt, "open": opening}[arguments.what](Path(folder), arguments)


def encoder(threads: int) -> Callable[[Tensor], Tensor]:
    """The bundled folder's VAE."""
    torch.set_num_threads(threads)
    vae = open_folder(model_path("tiny"), device="cpu").vae()
    return lambda frames: encode_video(vae, frames)


def prepare(videos: Path, out: Path, encode: Callable[[Tensor], Tensor], frames: int, batch: int) -> Summary:
    """What `aad1 prepare clips` does, without its start-up."""
    clips = file_clips(find_clips(videos), sizes=[(SIZE, SIZE)], fps=FPS, frames=frames)
    manifest = Manifest("latents", "benchmark", FPS, (SIZE, SIZE), frames)
    return fill([clip_work(clips, out, encode, manifest, batch_size=batch)], "Encoding clips")[0]


# --- speed ------------------------------------------------------------------------------------


def speed(folder: Path, arguments: argparse.Namespace) -> None:
    count, batch, frames = arguments.clips or 64, arguments.batch, 81
    write_world_folder(folder / "videos", "train", count, frames)
    encode = encoder(arguments.threads)
    clips = file_clips(find_clips(folder / "videos"), sizes=[(SIZE, SIZE)], fps=FPS, frames=frames)
    pictures = video_to_tensor(clips[0].read().frames)[None].repeat(batch, 1, 1, 1, 1)
    encode(pictures)
    rows = []
    for repeat in range(arguments.repeats):
        alone, vae = timed(lambda: [encode(pictures) for _ in range(count // batch)])
        whole, all_in = timed(lambda n=repeat: prepare(folder / "videos", folder / f"out-{n}", encode, frames, batch))
        reading, _ = timed(lambda: [clip.read() for clip in clips])
        rows.append((count / alone, count / whole, count / reading))
        print("VAE alone {:.2f}, prepare {:.2f}, reading alone {:.1f} clips/s; ".format(*rows[-1]), end="")
        print(f"work {vae / count:.3f}, {all_in / count:.3f} processor s a clip ({vae / all_in:.2f})", flush=True)
    best = [max(column) for column in zip(*rows, strict=True)]
    shares = sorted(row[1] / row[0] for row in rows)
    print(f"best: VAE alone {best[0]:.2f}, prepare {best[1]:.2f} clips/s: {best[1] / best[0]:.2f} of its speed")
    print(f"share in each run: {', '.join(f'{share:.2f}' for share in shares)}")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and seconds of all processors, that it takes."""
    start, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - busy


# --- kills ------------------------------------------------------------------------------------


def kills(folder: Path, arguments: argparse.Namespace) -> None:
    count = arguments.clips or 300
    write_world_folder(folder / "videos", "train", count + 1, SHORT)
    command = [sys.executable, "-m", "aad1", "prepare", "clips", "--threads=1", "--data.batch=4", "-o"]
    settings = [f"--data.{key}={value}" for key, value in {"source": folder / "videos", "frames": SHORT}.items()]
    settings += [f"--data.clips={count}", "--data.validation=1"]
    subprocess.run([*command, str(folder / "whole"), *settings], check=True)
    chance, moments, most = random.Random(arguments.seed), 0, 0
    while True:
        processes, store = chance.randint(1, 3), folder / "killed" / "clips"
        run = subprocess.Popen(
            [*command, str(folder / "killed"), *settings, f"--processes={processes}"], start_new_session=True
        )
        before = len(blocks(store))
        moment = chance.uniform(6, 25)
        try:
            if run.wait(moment) == 0:
                break
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        moments += 1
        half = {path.name.split("-")[1].split(".")[0] for path in store.glob(".block-*")} if store.exists() else set()
        most = max(most, len(half))
        print(f"killed {processes} processes after {moment:.1f} s: {before} -> {len(blocks(store))} blocks", flush=True)
    same = subprocess.run(["diff", "-r", str(folder / "whole"), str(folder / "killed")], check=False).returncode == 0
    print(f"{moments} kills; the same bytes as an unbroken run: {same}; at most {most} half-written blocks at a time")


def blocks(store: Path) -> list[int]:
    return blocks_on_disk(store) if store.exists() else []


# --- corrupt files ----------------------------------------------------------------------------


def corrupt(folder: Path, arguments: argparse.Namespace) -> None:
    count, chance = arguments.clips or 300, random.Random(arguments.seed)
    videos = write_world_folder(folder / "videos", "train", count, SHORT)
    harmed = chance.sample(videos, max(3, count // 100))
    for number, path in enumerate(harmed):
        data = path.read_bytes()
        path.write_bytes((b"", data[: len(data) // 2], bytes(reversed(data)))[number % 3])
    summary = prepare(folder / "videos", folder / "out", encoder(arguments.threads), SHORT, arguments.batch)
    kept = [row["source"] for row in LatentStore(folder / "out").rows()]
    listed = sorted(skip.source for skip in summary.skipped)
    print(f"{len(harmed)} of {count} damaged; listed: {listed == sorted(path.name for path in harmed)}; ", end="")
    print(f"all others kept: {sorted(kept) == sorted(path.name for path in {*videos} - {*harmed})}")


# --- a large store ----------------------------------------------------------------------------


def opening(folder: Path, arguments: argparse.Namespace) -> None:
    count, block = arguments.clips or 100_000, 16
    facts = []
    for number in range(count // block):
        rows = [{"source": f"{number}-{at}.mp4", "caption": "a red disc moves " * 8} for at in range(block)]
        lines = json_lines([kept_line(row, at % 2) for at, row in enumerate(rows)])
        record_path(folder, number).write_bytes(lines)
        facts.append(BlockFacts(number, "01" * (block // 2), {record_path(folder, number).name: len(lines)}))
    manifest = Manifest("latents", "benchmark", FPS, (64, 64), 81, ((64, 64), (32, 64)))
    write_index(folder, facts)
    write_header(folder, Header(manifest, block, count, complete=True))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    store: list[LatentStore] = []
    print(f"opening {timed(lambda: store.append(LatentStore(folder)))[0]:.2f} s, ", end="")
    sampler = Sampler(len(store[0]), 0, buckets=store[0].buckets.tolist())
    print(f"1,000 batches drawn {timed(lambda: [sampler.next(8) for _ in range(1000)])[0]:.2f} s, ", end="")
    print(f"every row read {timed(lambda: [store[0].row(i) for i in range(len(store[0]))])[0]:.2f} s, ", end="")
    print(f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:.0f} MiB more held than before")


if __name__ == "__main__":
    main()
