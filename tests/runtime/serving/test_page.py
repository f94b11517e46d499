"""The page: it stands alone, everything in it has a name, and where there is a browser it works."""

import re
import shutil
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from support.fake_engine import FakeEngine
from support.http_server import serving

from firp.runtime.serving.app import build_app

BROWSER = next(
    filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None
)


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page():
    return (files("firp.runtime.serving") / "page.html").read_text("utf-8")


def test_it_needs_no_network(page):
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "@import" not in page


def test_everything_that_takes_input_has_a_label(page):
    elements = Elements(page).found
    labels = {attrs.get("for") for tag, attrs in elements if tag == "label"}
    inputs = [attrs["id"] for tag, attrs in elements if tag in ("input", "textarea", "select")]
    assert len(inputs) == 8
    assert set(inputs) <= labels
    roles = {attrs.get("role") for _, attrs in elements}
    assert {"status", "alert"} <= roles
    assert ("html", {"lang": "en"}) in elements


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_has_the_contrast_that_wcag_asks_for(page):
    schemes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", block))
        for block in re.findall(r":root \{(.*?)\}", page, re.S)
    ]
    assert len(schemes) == 2
    grounds = ("ground", "panel", "mark-2", "mark-3", "mark-4")
    pairs = [*(("text", ground) for ground in grounds), ("quiet", "ground"), ("wrong", "ground")]
    pairs += [("accent", "ground"), ("on-accent", "accent")]
    for colors in schemes:
        for one, other in pairs:
            light, dark = sorted((luminance(colors[one]), luminance(colors[other])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (one, other, colors[one], colors[other])


def test_a_conversation_in_a_browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no Chromium")
    engine = FakeEngine(("G", "rav", "ity", "."))
    with serving(build_app(engine)) as url, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER)
        page = browser.new_page()
        wrong = []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(url)
        page.wait_for_selector("#model:has-text('context of 256')")
        page.keyboard.type("What is it?")  # the message has the focus
        page.keyboard.press("Enter")
        page.wait_for_selector(".cost")
        assert page.inner_text("article.answer .said") == "Gravity."
        counts = page.eval_on_selector_all(".answer .step", "all => all.map(one => one.dataset.tokens)")
        assert counts == ["1", "3", "3", "1"]
        assert page.inner_text(".cost").startswith(
            "8 tokens (stop); 7 of them in 3 steps: 2.33 tokens a step"
        )
        assert "Answer: Gravity." in page.inner_text("#status")
        engine.pace_s = 30
        page.keyboard.type("Go on")
        page.keyboard.press("Enter")
        page.wait_for_selector("#stop:enabled")
        page.keyboard.press("Escape")
        page.wait_for_selector("#send:enabled")
        assert page.evaluate("document.activeElement.id") == "text"
        assert wrong == []
        browser.close()
