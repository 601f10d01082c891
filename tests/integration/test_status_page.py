"""The status page in a real browser, shown by a real daemon."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from streamtrain.config import HttpSettings
from streamtrain.health import Health
from streamtrain.http import serve
from streamtrain.metrics import Metrics
from streamtrain.status import StatusBoard
from tests.browser import Chromium, Tab
from tests.conftest import require
from tests.daemon import Daemon, inspected, until
from tests.integration.test_daemon import JOB, config, samples

PHONE = (360, 740)
# WCAG 2.2, 1.4.3 and 2.5.8.
CONTRAST_MIN = 4.5
TARGET_PIXELS_MIN = 24

# By text that is shown: the contrast with the first background behind it that is not transparent (WCAG 2.2, relative luminance).
CONTRASTS = """(() => {
  const rgb = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const [r, g, b] = rgb(color).map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if ((rgb(color)[3] ?? 1) > 0) return color;
    }
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = {};
  while (texts.nextNode()) {
    const text = texts.currentNode.data.trim(), element = texts.currentNode.parentElement;
    if (!text || !element.checkVisibility()) continue;
    const pair = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => b - a);
    found[text] = (pair[0] + 0.05) / (pair[1] + 0.05);
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    require("Chromium", "chromium")
    with Chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that has learned 1,499 samples and refused one."""
    folder = tmp_path_factory.mktemp("status")
    rows = [json.dumps(row) for row in samples(1500)]
    rows[700] = '{"user": "<img src=x onerror=alert(1)>", "item": "i1", "click": 1}'
    (folder / "samples.jsonl").write_text("\n".join(rows) + "\n")
    text = f'{JOB}[store]\nurl = "lmdb://{folder}/rows"\n'
    with Daemon(config(folder, follow=True, text=text)) as daemon:
        until(lambda: '"samples":1499.0' in daemon.get("/status.json")[1], "1,499 samples to be learned")
        yield daemon
        assert daemon.stop() == 0
    assert inspected(folder / "model")["samples"] == 1499


@pytest.fixture
async def tab(browser: Chromium) -> AsyncIterator[Tab]:
    async with browser.tab() as tab:
        yield tab


async def show(tab: Tab, daemon: Daemon) -> None:
    """Opens the page and waits until it shows something."""
    await tab.open(address(daemon))
    await tab.until("!document.getElementById('content').hidden && !asking")


def address(daemon: Daemon) -> str:
    """Where the page is."""
    daemon.until_says("metrics and probes at ")
    return daemon.text.split("metrics and probes at ", 1)[1].split("metrics", 1)[0]


async def text(tab: Tab, selector: str) -> str:
    found: str = await tab.evaluate(f"document.querySelector({selector!r}).innerText")
    return found


async def test_the_page_shows_the_daemon_and_asks_nobody_else(tab: Tab, daemon: Daemon) -> None:
    await tab.resize(1280, 900)
    await show(tab, daemon)
    state = json.loads(daemon.get("/status.json")[1])
    assert (state["model"], state["phase"], state["notices"]) == ("e2e", "learning", [])
    assert await tab.evaluate("document.title") == "e2e: learning - streamtrain"
    stages = await tab.evaluate("[...document.querySelectorAll('#path .name')].map((e) => e.textContent)")
    assert stages == ["read", "decode", "prefetch", "train", "commit", "epoch log"]
    assert f"epoch {state['figures']['epoch']:.0f}" in await text(tab, "#path")
    assert "1,499" in await text(tab, "#figures")
    quality = await text(tab, "#quality")
    assert "click" in quality and f"{state['quality'][0]['auc']:.4f}" in quality
    rows = state["tables"]["shown"][0]["rows"]
    assert rows > 90 and f"{rows:,.0f}" in await text(tab, "#tables")
    charts = await tab.evaluate(
        "[...document.querySelectorAll('svg')].map((e) => e.getAttribute('aria-label'))"
    )
    assert [c.split(":")[0] for c in charts] == [
        "samples",
        "AUC of click, window",
        "calibration of click, window",
    ]
    assert await tab.evaluate("document.querySelectorAll('polyline')[2].points.length") > 0
    assert {url.removeprefix(address(daemon)) for url in tab.requested} <= {"", "status.json", "data:,"}
    assert tab.complaints == []
    assert (await tab.picture()).startswith(b"\x89PNG")


async def test_what_a_record_says_is_text_and_the_policy_runs_nothing_else(tab: Tab, daemon: Daemon) -> None:
    await show(tab, daemon)
    assert "field 'user'" in await text(tab, "#problems")
    hostile = "<img src=x onerror=window.ran=1>"
    state = {"model": hostile, "phase": hostile, "notices": [hostile], "version": "1", "ready": True}
    await tab.evaluate(f"showHead({json.dumps(state)})")
    assert await text(tab, "#model") == hostile and await text(tab, "#notices") == hostile
    assert await tab.evaluate("document.images.length") == 0
    await tab.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran=1\">'),"
        "new Promise((done) => setTimeout(done, 200))"
    )
    assert await tab.evaluate("window.ran") is None
    # It says what it refused: the image, and its handler.
    assert tab.complaints and all("Content Security Policy" in complaint for complaint in tab.complaints)


async def test_it_follows_the_daemon_until_it_is_paused(tab: Tab, daemon: Daemon) -> None:
    # The page's own clock, in steps: no test waits for it.
    await tab.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="window.setInterval = (tick) => { window.tick = tick; };",
    )
    await show(tab, daemon)

    async def asked() -> int:
        await tab.evaluate("tick()")
        await tab.until("!asking")
        return sum(url.endswith("status.json") for url in tab.requested)

    pause = "document.getElementById('pause')"
    before = await asked()
    assert await asked() == before + 1
    await tab.evaluate(f"{pause}.click()")
    assert await tab.evaluate(f"{pause}.getAttribute('aria-pressed')") == "true"
    assert await asked() == before + 1
    await tab.evaluate(f"{pause}.click()")
    await tab.until("!asking")
    assert await asked() == before + 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_has_contrast(tab: Tab, daemon: Daemon, scheme: str) -> None:
    await tab.prefer(scheme)
    await show(tab, daemon)
    contrasts = await tab.evaluate(CONTRASTS)
    assert len(contrasts) > 40
    assert {t: c for t, c in contrasts.items() if c < CONTRAST_MIN} == {}


async def test_a_screen_reader_finds_names_for_everything(tab: Tab, daemon: Daemon) -> None:
    await show(tab, daemon)
    nodes = (await tab.call("Accessibility.getFullAXTree"))["nodes"]
    by_role: dict[str, list[str]] = {}
    for node in nodes:
        if not node["ignored"]:
            role = str(node["role"]["value"])
            by_role.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    for role in ("button", "link", "image", "meter", "region", "heading", "table", "columnheader"):
        assert by_role.get(role), f"no {role} among {sorted(by_role)}"
        assert all(by_role[role]), f"a {role} without a name: {by_role[role]}"
    assert by_role["main"] and by_role["status"] and by_role["banner"]
    assert "train at work" in by_role["meter"]
    levels = await tab.evaluate("[...document.querySelectorAll('h1, h2')].map((e) => e.tagName)")
    assert levels[0] == "H1" and set(levels[1:]) == {"H2"}


async def test_it_fits_a_phone(tab: Tab, daemon: Daemon) -> None:
    await tab.resize(*PHONE, phone=True)
    await show(tab, daemon)
    assert await tab.evaluate("document.documentElement.scrollWidth") == PHONE[0]
    assert float(await tab.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")) >= 16
    small = await tab.evaluate(
        "[...document.querySelectorAll('button, a, summary')].map((e) => [e.textContent, e.getBoundingClientRect().height])"
    )
    assert [name for name, height in small if height < TARGET_PIXELS_MIN] == []


async def test_a_daemon_that_does_not_answer_is_said_until_it_does(tab: Tab, daemon: Daemon) -> None:
    await show(tab, daemon)
    limits = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    await tab.call("Network.emulateNetworkConditions", offline=True, **limits)
    alert = "document.getElementById('alert').innerText"
    await tab.until(f"/does not answer .*; what is shown is from /.test({alert})")
    assert "1,499" in await text(tab, "#figures")
    await tab.call("Network.emulateNetworkConditions", offline=False, **limits)
    await tab.until(f"{alert} === ''")


async def test_a_browser_is_asked_for_the_token_and_then_shows_the_page(
    browser: Chromium, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("a-token-of-the-test\n")
    metrics, health = Metrics(), Health()
    board = StatusBoard("clicks", {"http": {"token_file": "token"}}, metrics, health, 60)
    board.look()
    settings = HttpSettings(port=0, token_file=f"{tmp_path}/token")
    async with serve(settings, metrics, health, board) as port:
        async with browser.tab() as stranger:
            await stranger.open(f"http://127.0.0.1:{port}/")
            assert await stranger.evaluate("document.getElementById('content')") is None
        async with browser.tab(password="a-token-of-the-test") as tab:
            await tab.open(f"http://127.0.0.1:{port}/")
            await tab.until("!document.getElementById('content').hidden && !asking")
            assert await tab.evaluate("document.title") == "clicks: starting - streamtrain"
            assert "a-token-of-the-test" not in await tab.evaluate("document.documentElement.outerHTML")
