"""The page in a browser: what a reader does with it. Skipped where playwright or a browser is missing."""

from __future__ import annotations

import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from tests.viva import garden
from viva.bank.load import load_bank
from viva.practice.match import Matcher
from viva.practice.session import Session
from viva.render.export import export
from viva.web.app import make_app
from viva.web.command import open_stores
from viva.web.sources import SourcePages

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
SHIPPED = Path(__file__).parents[2] / "banks" / "sglang-0.5.23"
SHOWN = "article:not([hidden])"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as run:
        chromium = run.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails the test if its script fails or its policy stops something."""
    context = browser.new_context(locale="zh-CN", viewport={"width": 1280, "height": 900})
    faults: list[str] = []
    made = context.new_page()
    made.on("pageerror", lambda error: faults.append(str(error)))
    made.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    yield made
    context.close()
    assert faults == []


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The fixture bank, served."""
    folder = tmp_path_factory.mktemp("served")
    bank = garden.bank()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        stores = open_stores(bank)
    app = make_app(
        bank, SourcePages(bank, stores), Session(bank, Matcher(bank), folder=folder), hosts=frozenset({"127.0.0.1"})
    )
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shipped bank as one file."""
    bank = load_bank(SHIPPED)
    path = tmp_path_factory.mktemp("file") / "bank.html"
    path.write_bytes(export(bank, bank.questions, "html").data)
    return path.as_uri()


def read_in_order(page: Any) -> list[str]:
    return [article.get_attribute("id") for article in page.locator("article").all()]


def test_a_citation_opens_its_lines_with_what_surrounds_them(page: Any, address: str) -> None:
    """Red when a marker opens other lines than it names, or the whole file cannot be reached from there."""
    page.goto(address)
    page.click(f"{SHOWN} .body a.cite >> nth=0")
    page.wait_for_selector("#drawer .context .hit")
    assert page.inner_text("#drawer-place") == "garden/engine.py:28-42"
    assert page.locator("#drawer .hit").count() == 15
    page.click("#drawer-open")
    page.wait_for_selector(".file .hit")
    assert page.locator(".file .hit").first.get_attribute("data-n") == "28"


def test_moving_shows_the_question_before_the_key_or_the_click_is_over(page: Any, shipped: str) -> None:
    """Red when a move waits for an event that comes later, so that what was open stays in sight for a moment."""
    page.goto(shipped)
    moved = """(move) => {
        const shown = () => document.querySelector('article:not([hidden])').id + ' ' + location.hash;
        if (move.length === 1) document.body.dispatchEvent(new KeyboardEvent('keydown', { key: move, bubbles: true }));
        else [...document.querySelectorAll(move)].find((link) => link.offsetParent).click();
        return shown();
    }"""
    ids = read_in_order(page)
    assert page.evaluate(moved, "j") == f"{ids[1]} #{ids[1]}"
    assert page.evaluate(moved, '[data-step="1"]') == f"{ids[2]} #{ids[2]}"
    assert page.evaluate(moved, "k") == f"{ids[1]} #{ids[1]}"
    assert page.evaluate(moved, f'#side a[href="#{ids[5]}"]') == f"{ids[5]} #{ids[5]}"


def test_back_and_forward_follow_the_questions_read(page: Any, shipped: str) -> None:
    """Red when the browser's back button changes the address and not the question, or an address names no question."""
    page.goto(shipped)
    first, second = read_in_order(page)[:2]
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.go_back()
    playwright.expect(page.locator(SHOWN)).to_have_id(second)
    page.go_back()
    playwright.expect(page.locator(SHOWN)).to_have_id(first)
    page.go_forward()
    playwright.expect(page.locator(SHOWN)).to_have_id(second)
    assert page.url.endswith(f"#{second}")


def test_recall_mode_hides_and_a_key_reveals(page: Any, shipped: str) -> None:
    """Red when an answer is seen before it was recalled."""
    page.goto(shipped)
    page.keyboard.press("r")
    assert page.locator(f"{SHOWN} .body:visible").count() == 0
    page.keyboard.press("3")
    assert page.locator(f"{SHOWN} .body:visible").count() == 1
    page.keyboard.press("j")
    assert page.locator(f"{SHOWN} .body:visible").count() == 0


def test_search_and_filters_leave_what_fits(page: Any, shipped: str) -> None:
    """Red when a filter and the search are not both applied, or clearing them does not bring all back."""
    page.goto(shipped)
    page.click('[data-level="5"]')
    assert page.inner_text("#count") == "4"
    page.fill("#search", "EPLB")
    assert page.inner_text("#count") == "1"
    assert page.locator(SHOWN).get_attribute("id") == "eplb-live-migration"
    page.fill("#search", "no such words anywhere")
    assert page.locator("#nothing").is_visible()
    page.click("#clear")
    assert page.inner_text("#count") == "16"


def test_the_interface_speaks_both_languages(page: Any, shipped: str) -> None:
    """Red when a label of the other language stays, or the choice is forgotten."""
    page.goto(shipped)
    assert "高层解释" in page.inner_text(SHOWN)
    page.click("#language")
    assert "High-level explanation" in page.inner_text(SHOWN)
    assert "高层解释" not in page.inner_text(f"{SHOWN} h3 >> nth=0")
    assert page.get_attribute("#search", "placeholder") == "Search questions and answers"
    page.reload()
    assert "High-level explanation" in page.inner_text(SHOWN)


def test_a_phone_never_scrolls_sideways(page: Any, shipped: str) -> None:
    """Red when a long name or a block of code widens the page."""
    page.set_viewport_size({"width": 360, "height": 780})
    page.goto(shipped)
    for question in load_bank(SHIPPED).questions:
        page.evaluate(f"location.hash = '{question.id}'")
        playwright.expect(page.locator(SHOWN)).to_have_id(question.id)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, question.id


def test_an_answer_is_graded_on_the_page(page: Any, address: str) -> None:
    """Red when the page loses the grades, the follow-up or the note on how it was graded."""
    page.goto(address)
    page.keyboard.press("a")
    page.keyboard.type("失败时归还工具")
    page.click(f"{SHOWN} button[type=submit]")
    page.wait_for_selector(".grades .covered")
    assert "SmolLM2-135M" in page.inner_text(".grades .by")
    page.fill(".grades textarea", "先收后判断 _paused，暂停时不取批次")
    page.click(".grades button")
    playwright.expect(page.locator(".grades .covered")).to_have_count(3)


def test_a_selection_is_exported(page: Any, address: str) -> None:
    """Red when a link of the selection is not a download of it."""
    page.goto(address)
    assert page.get_attribute("[data-format=md]", "href") is None
    page.keyboard.press("x")
    with page.expect_download() as download:
        page.click("[data-format=md]")
    assert re.search("### 问题 1：", Path(download.value.path()).read_text(encoding="utf-8"))
