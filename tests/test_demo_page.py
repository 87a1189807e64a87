"""The page of `python -m mnist_jax.demo` in a real browser: Debian's Chromium, headless, driven by Playwright.

Skipped where there is no browser or the extras `demo` and `browser` are not installed, unless NEEDS_BROWSER is set.
"""

import http.client
import json
import os
import re
import shutil
import signal
from contextlib import closing
from importlib.util import find_spec

import numpy as np
import pytest

from mnist_jax import data, load_classifier
from mnist_jax.storage import results

MISSING = [name for name in ("starlette", "uvicorn", "playwright") if find_spec(name) is None]
if shutil.which("chromium") is None:
    MISSING.append("chromium")
if MISSING and not os.environ.get("NEEDS_BROWSER"):
    pytest.skip(f"no {', '.join(MISSING)}: the page is not tried in a browser", allow_module_level=True)

from mnist_jax.demo.page import MOST, SIDE  # noqa: E402

CHROMIUM = shutil.which("chromium")
NETWORKS = ("MLP-original", "MLP-best")
PATIENCE = 240_000  # milliseconds to wait for anything: programs are compiled, and other tests run at the same time
# Patterns of what a panel shows, by the class of the element: predictions before and after the attack, and two figures.
LOOKS = {"before": r"^(\d), ", "after": r"^(\d), ", "distance": r"^([\d.e-]+)$", "radius": r"^([\d.e-]+) by CROWN$"}


@pytest.fixture(scope="module")
def server(command, tmp_path_factory):
    """The command's process, and the port that it listens on."""
    arguments = ("--port", 0, "--json", "--models", *NETWORKS)
    process = command("demo", *arguments, cwd=tmp_path_factory.mktemp("demo"))
    address = json.loads(process.stdout.readline())["address"]
    yield process, int(address.rpartition(":")[2])
    process.kill()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, Chromium has no sandbox; nothing but the page's own address is looked up.
        flags = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, server):
    """Opens the page, each time as another user; at the end checks that no page had an error or asked another host."""
    address, asked, wrong, contexts = f"http://127.0.0.1:{server[1]}/", [], [], []

    def open_page():
        contexts.append(browser.new_context(viewport={"width": 1240, "height": 800}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.goto(address)
        page.locator(".panel").nth(1).wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert len(asked) >= 4
    assert [url for url in asked if not url.startswith((address, f"blob:{address}", "data:"))] == []
    assert wrong == []


def shown(page, panel, name):
    """The text of an element of a panel, by its pattern in LOOKS; waits until the element has such a text."""
    place = page.locator(".panel").nth(panel).locator(f".{name}").filter(has_text=re.compile(LOOKS[name]))
    return re.match(LOOKS[name], place.inner_text())[1]


def attack(page):
    """Clicks on "Attack", waits for both networks' results, and returns of each the figures of LOOKS."""
    page.locator("#attack").click()
    for panel in (0, 1):
        page.locator(".panel").nth(panel).locator(".files a").nth(1).wait_for()
    return [[float(shown(page, panel, name)) for name in LOOKS] for panel in (0, 1)]


def test_draw_attack_change_the_norm_and_look_on_a_phone(visit, tmp_path):
    page = visit()
    assert page.locator("#attack").is_disabled()
    pad = page.locator("#pad").bounding_box()
    x, y = pad["x"] + pad["width"] / 2, pad["y"]
    page.mouse.move(x, y + 0.15 * pad["height"])
    page.mouse.down()
    page.mouse.move(x, y + 0.85 * pad["height"], steps=8)
    page.mouse.up()
    assert [shown(page, panel, "before") for panel in (0, 1)] == ["1", "1"]
    by_norm = {}
    for norm in ("L∞", "L2"):
        page.get_by_text(norm, exact=True).first.click()
        by_norm[norm] = attack(page)
        for before, after, distance, radius in by_norm[norm]:
            assert before == 1 != after
            assert 0 < radius <= distance
    for small, large in zip(by_norm["L∞"], by_norm["L2"], strict=True):
        assert small[2] < large[2]
    for suffix in ("PNG", "NPZ"):
        with page.expect_download() as download:
            page.locator(".panel").first.get_by_text(suffix, exact=True).click()
        download.value.save_as(tmp_path / suffix)
        assert download.value.suggested_filename.endswith(f"-nearest-l2-drawn.{suffix.lower()}")
    assert (tmp_path / "PNG").read_bytes().startswith(b"\x89PNG")
    record = results.load(tmp_path / "NPZ")
    assert f"{record.result.distance[0]:.3g}" == f"{by_norm['L2'][0][2]:.3g}"
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#clear").click()
    assert page.locator("#attack").is_disabled()


def test_two_people_get_each_their_own_answer(visit):
    pages, indices = [visit(), visit()], [17, 4]
    for page, index in zip(pages, indices, strict=True):
        page.locator("#index").fill(str(index))
        page.locator("#take").click()
        shown(page, 0, "before")
    for page in pages:
        page.locator("#attack").click()
    images = np.asarray(data.normalize(data.load_split("val").images[indices]))
    for panel, name in enumerate(NETWORKS):
        page_says = [int(shown(page, panel, "before")) for page in pages]
        assert page_says == np.asarray(load_classifier(name)(images)).argmax(1).tolist()
    assert shown(pages[0], 0, "distance") != shown(pages[1], 0, "distance")


def ask(server, path, body=None, headers=None):
    """A connection (a context manager) on which this request was sent."""
    connection = http.client.HTTPConnection("127.0.0.1", server[1], timeout=60)
    connection.request("GET" if body is None else "POST", path, body, headers or {})
    return closing(connection)


JSON, BYTES = {"Content-Type": "application/json"}, {"Content-Type": "application/octet-stream"}
# Requests: path, body (None for GET), headers, and the status of the answer.
REFUSED = {
    "no keys": ("/search", b"{}", JSON, 400),
    "no JSON": ("/search", b"{", JSON, 400),
    "no UTF-8": ("/seen", b"\xff", JSON, 400),
    "deep": ("/search", MOST * b"[", JSON, 400),
    "long": ("/search", (MOST + 1) * b" ", JSON, 413),
    "another site's form": ("/search", b"{}", {"Content-Type": "text/plain"}, 415),
    "no type": ("/seen", b"{}", {}, 415),
    "nothing drawn": ("/digit", bytes(SIDE**2), BYTES, 400),
    "a small drawing": ("/digit", bytes(5), BYTES, 400),
    "a large drawing": ("/digit", bytes(SIDE**2 + 1), BYTES, 413),
    "no such image": ("/val/10000", None, {}, 400),
    "no number": ("/val/-1", None, {}, 404),
    "a path": ("/../page.py", None, {}, 404),
    "a file that is not the page's": ("/page.py", None, {}, 404),
    "another name of this machine": ("/choices", None, {"Host": "attacker.example"}, 400),
}


@pytest.mark.parametrize("what", REFUSED)
def test_invalid_requests_are_refused(server, what):
    path, body, headers, status = REFUSED[what]
    with ask(server, path, body, headers) as connection:
        answer = connection.getresponse()
        said = answer.read().decode()
    assert answer.status == status, said
    if status == 400 and "Host" not in headers:
        assert "\n" not in json.loads(said)["error"]
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


def test_ctrl_c_ends_it_in_the_middle_of_a_search(server):
    process, _ = server
    search = {"image": {"index": 4}, "network": NETWORKS[0], "norm": "1", "effort": "thorough"}
    with ask(server, "/search", json.dumps(search), JSON) as connection:
        first = json.loads(connection.getresponse().readline())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert first["event"] == "seen"
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
