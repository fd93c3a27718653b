"""The page in a real browser: no overflow on phones, no errors, no requests, values by pointer, tap and keys."""

import json
import os
import shutil
from pathlib import Path

import pytest

from rto_fast.report import write_report
from tests.report.made_up import HOSTILE, make_run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """Three seeds, one of them with an answer that would like to run."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / f"seed-{s}", seed=s) for s in range(3)]
    said = HOSTILE + "x" * 3000
    with (runs[0] / "answers.jsonl").open("a") as file:
        file.write(json.dumps({"index": 99, "prompt": said, "policy": said, "response": said}) + "\n")
    return write_report(runs, folder / "report.html")


@pytest.fixture
def visit(browser, report):
    """Open the page in a viewport; at the end there must have been no error, dialog or request."""
    contexts, faults, requests = [], [], []

    def go(width: int = 1280, height: int = 900, scheme: str = "light", touch: bool = False):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=touch, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(dialog.message) or dialog.dismiss())
        page.on("request", lambda request: requests.append(request.url))
        page.goto(report.as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert faults == []
    assert {url for url in requests if not url.startswith("data:")} == {report.as_uri()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_nothing_is_wider_than_the_page(visit, width: int, scheme: str):
    page = visit(width, 800, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    assert dark == (scheme == "dark")


def test_the_switch_of_themes_is_remembered(visit):
    page = visit()
    shades = []
    for _ in range(3):
        shades.append((page.inner_text("#theme"), page.evaluate("getComputedStyle(document.body).backgroundColor")))
        page.click("#theme")
    assert [name for name, _ in shades] == ["auto", "light", "dark"]
    assert shades[0][1] == shades[1][1] != shades[2][1]
    page.click("#theme")
    page.reload()
    assert page.inner_text("#theme") == "light"


def test_values_by_pointer_and_keys(visit):
    page = visit()
    figure = page.locator("#curves figure").first
    assert figure.locator(".tip").is_hidden()
    area = figure.locator(".area")
    area.hover(position={"x": area.bounding_box()["width"] - 2, "y": 50})
    assert figure.locator(".tip b").inner_text() == "6,144 rollouts"
    assert figure.locator(".tip span").count() == 5
    figure.locator(".plot").focus()
    page.keyboard.press("Home")
    assert figure.locator(".tip b").inner_text() == "256 rollouts"
    page.keyboard.press("ArrowRight")
    assert figure.locator(".tip b").inner_text() == "512 rollouts"
    page.keyboard.press("Escape")
    assert figure.locator(".tip").is_hidden()


def test_a_plane_marks_the_nearest_point(visit):
    page = visit()
    figure = page.locator("#frontier figure").first
    dots = figure.locator("svg .point")
    figure.scroll_into_view_if_needed()
    box = figure.locator(".area").bounding_box()
    # the path of a point is M x y h0 in thousandths of the plot
    x, y = (float(v) for v in dots.last.get_attribute("d")[1:-2].split())
    page.mouse.move(box["x"] + box["width"] * x / 1000 + 3, box["y"] + box["height"] * y / 1000 + 3)
    assert figure.locator(".tip b").inner_text() == "rto"
    spot = figure.locator(".spot").bounding_box()
    assert abs(spot["x"] + spot["width"] / 2 - box["x"] - box["width"] * x / 1000) < 2
    assert abs(spot["y"] + spot["height"] / 2 - box["y"] - box["height"] * y / 1000) < 2


def test_tokens_by_tap_and_keys(visit):
    page = visit(375, 812, touch=True)
    tokens = page.locator(".hm").nth(1).locator(".hm-token")
    said = page.locator(".readout").nth(1)
    tokens.filter(has_text="moo").tap()
    assert said.inner_text().startswith("moo: -0.0")
    assert page.locator(".hm-token[tabindex='0']").count() == page.locator(".hm").count()
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "frog"
    assert said.inner_text().startswith("frog: ")


def test_every_part_is_reached_by_keys(visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = page.evaluate(
        "[...document.querySelectorAll('.plot, .scroll, summary, nav a, button')].every((e) => e.tabIndex === 0)"
    )
    assert reached


def test_printing_shows_what_is_folded(visit):
    page = visit(760, 1000, "dark")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.sample:not([open])").count() == 0
    assert page.locator("#results table").first.is_visible() and page.locator("nav").is_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_it_reads_without_scripts(browser, report):
    context = browser.new_context(java_script_enabled=False, viewport={"width": 375, "height": 812})
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("#curves figure svg").first.is_visible() and page.locator("#theme").is_hidden()
    assert page.locator(".hm-token[title]").count() > 0
    context.close()
