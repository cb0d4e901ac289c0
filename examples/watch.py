"""A client of `aad1 serve`: follow a live video over its WebSocket, change the prompt on the way, keep what came.

    aad1 serve
    python examples/watch.py still.png "a red disc moves up" --then "a red disc moves left fast" --seconds 8

The binary messages, one after the other, are a whole MP4 file; docs/serving.md describes the events. It needs nothing
of aad1, only the package websockets.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
from pathlib import Path

import websockets


async def watch(arguments: argparse.Namespace) -> None:
    start = {
        "type": "session.start",
        "prompt": arguments.prompt,
        "image": base64.b64encode(arguments.image.read_bytes()).decode(),
        "seed": arguments.seed,
        "max_seconds": arguments.seconds,
        "api_key": os.environ.get("AAD1_API_KEY"),
    }
    frames = 0
    with arguments.out.open("wb") as file:
        async with websockets.connect(arguments.url, max_size=None, ping_interval=None) as socket:
            await socket.send(json.dumps(start))
            async for message in socket:
                if isinstance(message, bytes):
                    file.write(message)
                    continue
                event = json.loads(message)
                if event["type"] == "error":
                    raise SystemExit(event["message"])
                if event["type"] == "session.done":
                    print(f"wrote {arguments.out}: {frames} frames, {event['reason']}")
                if event["type"] != "video.chunk_metadata":
                    continue
                frames += event["frames"]
                print(f"{event['start_s']:6.2f} s  {1000 * event['chunk_s']:4.0f} ms  {event['prompt']}")
                if arguments.then and event["start_s"] >= arguments.seconds / 2:
                    await socket.send(json.dumps({"type": "session.interaction", "prompt": arguments.then}))
                    arguments.then = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--then", help="the prompt of the second half")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url", default="ws://127.0.0.1:8000/v1/realtime/video")
    parser.add_argument("-o", "--out", type=Path, default=Path("watched.mp4"))
    asyncio.run(watch(parser.parse_args()))


if __name__ == "__main__":
    main()
