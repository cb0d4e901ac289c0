"""What a person at the page of `aad1 serve` waits for: click to first picture, stalls, the server's memory.

    python benchmarks/browser_latency.py --minutes 5

Headless Chromium and the server share this machine, the server in a process of its own with a warm model. Prints
JSON: five sessions from the click on Start to the first picture presented (requestVideoFrameCallback), then one
session of --minutes with its stalls and the server's resident memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, sync_playwright
from server_process import resident, serving

SESSIONS = 5
PATIENCE = 120  # seconds for anything that is waited for
SETTLED = 30  # seconds of video before memory is looked at for the first time

# Counts, every 50 ms, the times at which the picture began to stand still for 300 ms or more.
WATCH = """() => {
    const video = document.querySelector("video"), seen = { waiting: 0, frozen: 0, frozen_s: 0, jumps: 0 };
    let last = video.currentTime, since = performance.now(), counted = false;
    video.addEventListener("waiting", () => seen.waiting++);
    video.addEventListener("seeking", () => seen.jumps++);
    setInterval(() => {
        const now = performance.now();
        if (video.currentTime !== last) {
            if (counted) seen.frozen_s += (now - since) / 1000;
            [last, since, counted] = [video.currentTime, now, false];
        } else if (now - since > 300 && !counted) {
            seen.frozen++;
            counted = true;
        }
    }, 50);
    self.seen = seen;
}"""
STANDING = """() => {
    const video = document.querySelector("video");
    const { totalVideoFrames, droppedVideoFrames } = video.getVideoPlaybackQuality();
    return { ...self.seen, played_s: video.currentTime, frames: totalVideoFrames, dropped: droppedVideoFrames };
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--minutes", type=float, default=5)
    arguments = parser.parse_args()
    with serving(arguments.model) as (host, process), visiting(f"http://{host}") as page:
        sessions = [first_picture(page) for _ in range(SESSIONS)]
        first = [session["clicked_to_first_picture_ms"] for session in sessions]
        long = {"minutes": arguments.minutes, **play(page, process, 60 * arguments.minutes)}
        result = {"sessions": sessions, "median_ms": statistics.median(first), "long": long}
    print(json.dumps(result, indent=1))


def first_picture(page: Page) -> dict[str, float]:
    """One session until it plays."""
    start(page)
    time.sleep(2)  # so that sustained figures are of more than one chunk
    found = {"clicked_to_first_picture_ms": number(page, "first"), "server_fps": number(page, "fps")}
    stop(page)
    return found


def play(page: Page, process: subprocess.Popen[str], seconds: float) -> dict[str, float]:
    """One long session; memory in MiB."""
    start(page)
    page.evaluate(WATCH)
    settled = min(SETTLED, seconds / 2)
    time.sleep(settled)
    early = resident(process)
    time.sleep(seconds - settled)
    found = page.evaluate(STANDING)
    found |= {"server_fps": number(page, "fps"), "settled_s": settled}
    found |= {"server_rss_settled_mib": early, "server_rss_end_mib": resident(process)}
    stop(page)
    return found


def start(page: Page) -> None:
    page.click("#start")
    until(page, "document.querySelector('#first').dataset.value !== ''")


def stop(page: Page) -> None:
    page.click("#stop")
    until(page, "document.body.dataset.state === 'ended'")


def number(page: Page, id: str) -> float:
    return round(float(page.get_attribute(f"#{id}", "data-value") or "nan"), 1)


def until(page: Page, expression: str) -> None:
    """Wait for the page; Playwright's own way compiles text in it, which its policy forbids."""
    end = time.monotonic() + PATIENCE
    while not page.evaluate(expression):
        if time.monotonic() > end:
            raise SystemExit(f"never true: {expression}\n{page.inner_text('main')}")
        page.wait_for_timeout(30)


@contextmanager
def visiting(url: str) -> Iterator[Page]:
    """The page in headless Chromium at 1280x800, its first sample chosen."""
    if (chromium := shutil.which("chromium")) is None:
        raise SystemExit("there is no chromium on the PATH")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(url)
        until(page, "document.querySelector('#picture').naturalWidth > 0")
        yield page
        browser.close()


if __name__ == "__main__":
    main()
