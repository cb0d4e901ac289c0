"""Many live clients at once at `aad1 serve`: whether each is served alike, and gets the video its seed makes alone.

    python benchmarks/live_clients.py --clients 8 --seconds 20

The clients share this machine with the server, ask as fast as they can, and begin together, each with a seed of its
own. Prints JSON: each one's frames per second from its first chunk to its last, the slowest over the fastest, and
how many got other bytes than a client with the same seed that is alone afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import time

import websockets
from PIL import Image
from server_process import serving

from aad1.data.world import make_clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20, help="length of each video")
    arguments = parser.parse_args()
    with serving(arguments.model) as (host, _):
        result = asyncio.run(compare(host, arguments.clients, arguments.seconds))
    print(json.dumps(result, indent=1))


async def compare(host: str, clients: int, seconds: float) -> dict[str, float | int | list[float]]:
    together = await asyncio.gather(*(watch(host, seed, seconds) for seed in range(clients)))
    alone = [await watch(host, seed, seconds) for seed in range(clients)]
    rates = [fps for _, fps in together]
    return {
        "fps": [round(fps, 1) for fps in rates],
        "fps_alone": round(sum(fps for _, fps in alone) / clients, 1),
        "slowest_over_fastest": round(min(rates) / max(rates), 3),
        "others_bytes": sum(a != b for (a, _), (b, _) in zip(together, alone, strict=True)),
    }


async def watch(host: str, seed: int, seconds: float) -> tuple[bytes, float]:
    """One video: its bytes, and frames per second after the first chunk."""
    video, times, frames = b"", list[float](), list[int]()
    async with websockets.connect(f"ws://{host}/v1/realtime/video", max_size=None) as socket:
        await socket.send(json.dumps(start(seed, seconds)))
        async for message in socket:
            if isinstance(message, bytes):
                video += message
            elif (event := json.loads(message))["type"] == "video.chunk_metadata":
                times.append(time.perf_counter())
                frames.append(event["frames"])
            elif event["type"] == "error":
                raise SystemExit(event["message"])
    return video, sum(frames[1:]) / (times[-1] - times[0])


def start(seed: int, seconds: float) -> dict[str, object]:
    clip, file = make_clip("test", seed, 1), io.BytesIO()
    Image.fromarray(clip.frames[0]).save(file, "PNG")
    image = base64.b64encode(file.getvalue()).decode()
    video = {"prompt": clip.caption, "image": image, "seed": seed, "max_seconds": seconds}
    return {"type": "session.start", "pace": "fast", **video}


if __name__ == "__main__":
    main()
