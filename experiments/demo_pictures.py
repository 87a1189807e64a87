"""Takes pictures of the page of `python -m mnist_jax.demo` with Chromium, and times its answers.

    python experiments/demo_pictures.py [--rounds 5] [--chromium /usr/bin/chromium] [--output docs/images]

It draws a three with the mouse and attacks it, first to compile all programs, and then in `--rounds` rounds. Over these
it prints the smallest and the largest number of seconds from the click until both networks have an adversarial image,
and until the end. demo.png shows the page on a desktop, demo_phone.png on a phone. The extras `demo` and `browser` are
needed.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright
from scipy.interpolate import make_interp_spline

# Points on the stroke of a three, as fractions of the pad's width and height.
STROKE = (
    *((0.30, 0.27), (0.36, 0.21), (0.46, 0.17), (0.57, 0.19), (0.63, 0.26), (0.62, 0.35), (0.55, 0.43), (0.45, 0.48)),
    *((0.55, 0.50), (0.64, 0.57), (0.67, 0.67), (0.62, 0.77), (0.52, 0.83), (0.40, 0.82), (0.31, 0.76)),
)
POINTS = 60  # positions of the mouse along a spline through STROKE
DESKTOP, PHONE = {"width": 1240, "height": 700}, {"width": 390, "height": 844}  # sizes of the browser window in pixels
PATIENCE = 300_000  # milliseconds to wait for anything on the page: compiling on a busy machine takes minutes


def draw(page: Any) -> None:
    box = page.locator("#pad").bounding_box()
    curve = make_interp_spline(np.linspace(0, 1, len(STROKE)), np.array(STROKE))
    for number, (x, y) in enumerate(curve(np.linspace(0, 1, POINTS))):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        if number == 0:
            page.mouse.down()
    page.mouse.up()
    page.locator(".before", has_text="3, ").nth(1).wait_for()


def attack(page: Any) -> tuple[float, float]:
    """Attacks the drawing; returns the seconds until both networks have an adversarial image, and until the end."""
    began = time.monotonic()
    page.locator("#attack").click()
    page.locator(".after", has_text=", ").nth(1).wait_for()
    first = time.monotonic() - began
    for panel in (0, 1):
        page.locator(".files").nth(panel).locator("a").nth(1).wait_for()
    return first, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    command = [sys.executable, "-m", "mnist_jax.demo", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        address = json.loads(server.stdout.readline())["address"]
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=DESKTOP, device_scale_factor=1.5)
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.locator(".panel").nth(1).wait_for()
        draw(page)
        attack(page)  # compiles
        seconds = [attack(page) for _ in range(options.rounds)]
        for what, values in zip(("first answer", "all"), zip(*seconds, strict=True), strict=True):
            print(f"{what}: {min(values):.2f} to {max(values):.2f} s")
        page.screenshot(path=options.output / "demo.png", full_page=True)
        page.set_viewport_size(PHONE)
        page.screenshot(path=options.output / "demo_phone.png", full_page=True)
        browser.close()
        server.terminate()


if __name__ == "__main__":
    main()
