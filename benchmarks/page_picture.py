"""The README's picture of the page: a sample that plays, its prompt changed once.

python benchmarks/page_picture.py -o docs/assets/page.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from browser_latency import start, until, visiting
from server_process import serving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--sample", type=int, default=4, help="which picture of the gallery")
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    with serving(arguments.model) as (host, _), visiting(f"http://{host}") as page:
        page.click(f"#samples button >> nth={arguments.sample}")
        start(page)
        until(page, "document.querySelector('video').currentTime > 0.6")
        page.click("#chips button >> nth=1")
        until(page, "document.querySelectorAll('#prompts .shown').length === 2")
        page.wait_for_timeout(2000)  # until the flash of the new prompt has gone
        page.mouse.move(0, 0)
        page.evaluate("scrollTo(0, 0)")  # pressing an example may have moved it
        page.screenshot(path=arguments.out)


if __name__ == "__main__":
    main()
