"""The page: it stands alone, everything in it has a name, and where there is a browser it works."""

import contextlib
import re
import shutil
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from support.fake_engine import FakeEngine
from support.http_server import serving, wait_until

from firp.runtime.errors import FirpError
from firp.runtime.serving.app import build_app
from firp.runtime.serving.settings import ServerSettings

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


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER)
        yield opened
        opened.close()


@pytest.fixture
def opened(browser):
    """A function: the page of an engine, in a browser that has found the model."""
    with contextlib.ExitStack() as held:

        def open_page(engine, settings=None, **options):
            app = build_app(engine, settings)
            context = held.enter_context(browser.new_context(**options))
            page = context.new_page()
            page.wrong = []
            page.on("console", lambda message: page.wrong.append(message.text))
            page.on("pageerror", lambda error: page.wrong.append(str(error)))
            page.set_default_timeout(10_000)
            page.goto(held.enter_context(serving(app)))
            page.wait_for_selector("#model:not(:has-text('looking for'))")
            return page

        yield open_page


def say(page, text):
    page.focus("#text")
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def test_a_conversation_in_a_browser(opened):
    engine = FakeEngine(("G", "rav", "ity", "."))
    page = opened(engine)
    assert "context of 256" in page.inner_text("#model")
    page.keyboard.type("What is it?")  # the message has the focus
    page.keyboard.press("Enter")
    page.wait_for_selector(".cost")
    assert page.inner_text("article.answer .said") == "Gravity."
    counts = page.eval_on_selector_all(".answer .step", "all => all.map(one => one.dataset.tokens)")
    assert counts == ["1", "3", "3", "1"]
    assert page.inner_text(".cost").startswith("8 tokens (stop); 7 of them in 3 steps: 2.33 tokens a step")
    assert page.get_attribute(".bars", "aria-label") == "Tokens of each step: 3, 3, 1"
    assert "Answer: Gravity." in page.inner_text("#status")
    engine.pace_s = 30
    page.keyboard.type("Go on")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop:enabled")
    page.keyboard.press("Escape")
    page.wait_for_selector("#send:enabled")
    assert page.evaluate("document.activeElement.id") == "text"
    assert page.wrong == []


def test_an_answer_shows_while_it_comes(opened):
    engine = FakeEngine(("one ", "two ", "three"))
    engine.pace_s = 0.4
    page = opened(engine)
    say(page, "Count")
    page.wait_for_selector("article .step")
    assert page.inner_text("article.answer .said").strip() in ("one", "one two")
    page.wait_for_selector(".cost")
    assert page.inner_text("article.answer .said") == "one two three"


def test_a_new_conversation_knows_nothing_of_the_answer_that_it_cut_off(opened):
    engine = FakeEngine(("old ", *["x"] * 100))
    engine.pace_s = 0.1
    page = opened(engine)
    say(page, "First")
    page.wait_for_selector("article .step")
    page.click("#fresh")
    page.wait_for_selector("#send:enabled")
    assert page.inner_text("#talk") == ""
    assert page.inner_text("#status") == "A new conversation."
    engine.pace_s = 0.001
    say(page, "Second")
    page.wait_for_selector(".cost")
    prompt = engine.tokenizer.decode(engine.submitted[-1].handle.prompt)
    assert "Second" in prompt and "old" not in prompt and "First" not in prompt


def test_a_message_that_failed_can_be_sent_again(opened):
    engine = FakeEngine()
    engine.error = FirpError("logits are not finite")
    page = opened(engine)
    say(page, "Hello")
    page.wait_for_selector("#wrong:has-text('logits are not finite')")
    assert page.input_value("#text") == "Hello"
    engine.error = None
    page.keyboard.press("Enter")
    page.wait_for_selector(".cost:has-text('stop')")
    prompt = engine.tokenizer.decode(engine.submitted[-1].handle.prompt)
    assert prompt.count("Hello") == 1
    assert page.inner_text("#wrong") == ""


def test_a_key_that_is_missing_is_asked_for_and_a_lost_network_is_not_a_missing_key(opened):
    page = opened(FakeEngine(), ServerSettings(api_keys=("secret",)))
    assert page.inner_text("#wrong") == "Incorrect API key provided. The key goes into the settings."
    page.click("summary")
    page.fill("#key", "secret")
    page.keyboard.press("Tab")
    page.wait_for_selector("#model:has-text('context of 256')")
    assert page.inner_text("#wrong") == ""
    page.context.set_offline(True)
    say(page, "Hello")
    page.wait_for_selector("#wrong:not(:empty)")
    assert page.inner_text("#wrong") == "The server cannot be reached, or broke off."
    assert page.input_value("#text") == "Hello"


def test_who_has_scrolled_up_stays_there(opened):
    engine = FakeEngine(["line\n"] * 80)
    engine.pace_s = 0.02
    page = opened(engine, viewport={"width": 600, "height": 400})
    say(page, "Write")
    wait_until(lambda: page.evaluate("scrollY") > 200, 10)  # the page follows
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_selector(".cost")
    assert page.evaluate("scrollY") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_and_both_schemes(opened, scheme):
    page = opened(FakeEngine(["x" * 90]), viewport={"width": 320, "height": 600}, color_scheme=scheme)
    page.click("summary")
    say(page, "y" * 90)
    page.wait_for_selector(".cost")
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(253, 253, 252)", "dark": "rgb(23, 24, 22)"}[scheme]


def test_the_keyboard_reaches_everything_and_a_screen_reader_names_it(opened):
    page = opened(FakeEngine())
    page.click("summary")
    page.focus("#text")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.localName"))
    wanted = ["send", "fresh", "marks", "summary", "mode", "temperature", "most", "seed", "key", "system"]
    assert reached[:10] == wanted
    names = page.locator("form").aria_snapshot()
    for name in ("Message", "Send", "Mode", "Temperature", "Tokens at most", "Seed", "API key"):
        assert f'"{name}"' in names, names
