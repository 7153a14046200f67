# SPDX-License-Identifier: Apache-2.0
"""The dashboard's page in a Chromium without a screen: what it shows of 3 and of 500 nodes, light and dark, and explain."""

import html
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kmesh.kmeshctl import dashboard

from tests.browser.clusters import many, three
from tests.unit.kmeshctl.test_status import NOW

BROWSER = "chromium-headless-shell"
FLAGS = (
    "--no-sandbox",  # it runs as root, and sees nothing but our own page
    "--disable-gpu",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--virtual-time-budget=3000",
    "--no-proxy-server",
)
DARK = "--blink-settings=preferredColorScheme=0"


@contextmanager
def serving(source) -> Iterator[str]:
    observer = dashboard.Observer(source, lambda: NOW)
    observer.look()
    with dashboard.Dashboard(observer, 0, "default") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def browse(folder: Path, url: str, *flags: str) -> str:
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, url],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Refused to" not in done.stderr, "what the page asks for, its own policy forbids"
    return done.stdout


def text_of(page: str, part: str) -> str:
    """Give the text of the element of this id."""
    found = re.search(rf'<(\w+)[^>]* id="{part}"[^>]*>(.*?)</\1>', page, re.DOTALL)
    assert found, part
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", found[2])).split())


@pytest.fixture(autouse=True)
def browser():
    assert shutil.which(BROWSER), "scripts/setup --browser installs it"


def test_of_three_nodes_everything_is_there_problems_first_and_explain_answers(tmp_path):
    with serving(three()) as url:
        page = browse(tmp_path, f"{url}#one=web&other=cart", "--dump-dom")
    assert 'data-state="shown"' in page
    assert text_of(page, "summary") == "1 of 3 nodes ready, 1 unknown, key SPI 2"
    assert "Cannot allocate memory (ENOMEM)" in text_of(page, "problems")
    assert "n3: it announces SPI 1, the key in the Secret has 2" in text_of(page, "problems")
    assert text_of(page, "progress-text").startswith("replacement in progress: SPI 2 is announced by 2 of 3 nodes")
    cells = re.findall(r'<span class="cell (\w+)" title="(n\d → n\d): ([^"]*)">(.)</span>', page)
    assert {(way, word, sign) for _, way, word, sign in cells} >= {
        ("n1 → n2", "newest key", "✓"),
        ("n2 → n1", "older key", "↻"),
        ("n2 → n3", "not ready: nothing is sent", "✕"),
        ("n3 → n1", "cut off: no report", "?"),
    }
    assert page.index('id="problems-part"') < page.index('id="matrix"')
    answer = text_of(page, "answer")
    assert "default/web (10.244.1.10, fd00:244:1::a) on n1: managed" in answer
    assert "10.244.1.10 -> 10.244.2.11: " in answer


def test_of_five_hundred_there_is_a_picture_a_table_of_the_ill_and_a_list(tmp_path):
    with serving(many()) as url:
        page = browse(tmp_path, url, "--dump-dom")
    assert text_of(page, "summary") == "498 of 500 nodes ready, 1 unknown, key SPI 2"
    assert re.search(r'<canvas height="500" width="500"[^>]*aria-label="500 by 500 nodes', page)
    pairs = text_of(page, "pairs")
    assert "node-041 → node-007, node-300: not ready: nothing is sent" in pairs
    assert "node-009 → all others: cut off: no report" in pairs
    heads = re.findall(r"<th>(node-\d+)</th>", page.partition('id="matrix"')[2].partition('id="hover"')[0])
    assert heads == ["node-009", "node-041", "node-007", "node-300", "node-009", "node-041"]
    assert text_of(page, "more-nodes").startswith("and 400 more")


def colours(path: Path) -> tuple[int, int, int]:
    """Give the colour of a picture's first pixel, by a decoder of 20 lines of the format's specification."""
    import struct  # noqa: PLC0415
    import zlib  # noqa: PLC0415

    content, data, at = path.read_bytes(), b"", 8
    while at < len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        data += content[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    first = zlib.decompress(data)[1:4]  # behind the filter's byte, which changes nothing of a line's first pixel
    return first[0], first[1], first[2]


@pytest.mark.parametrize(("flags", "back"), [((), (255, 255, 255)), ((DARK,), (21, 23, 26))], ids=["light", "dark"])
def test_it_is_light_or_dark_as_its_reader_has_it(tmp_path, flags, back):
    with serving(three()) as url:
        browse(tmp_path, url, *flags, f"--screenshot={tmp_path / 'page.png'}", "--window-size=900,600")
    assert colours(tmp_path / "page.png") == back
