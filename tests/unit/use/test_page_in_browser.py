"""The page in headless Chromium, by mouse and by keyboard; of the network, the server alone."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmnet.use.model import Model
from support.browser import BROWSER, Page, browser
from support.page import claiming, loaded, made_run, served
from support.tiny import Tiny
from support.user import FOUND, ask, choose, downloaded, drawn, order, until_caption

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the PATH")

SENTENCE = "the big green ring"
SHIFT = 8


@pytest.fixture(scope="module")
def model_and_address(
    tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Model, str]]:
    model, about = loaded(made_run(tmp_path_factory.mktemp("run"), tiny))
    with served(model, about) as address:
        yield model, address


@pytest.fixture
def model(model_and_address: tuple[Model, str]) -> Model:
    return model_and_address[0]


@pytest.fixture
def address(model_and_address: tuple[Model, str]) -> str:
    return model_and_address[1]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def blank(started: Page, tmp_path: Path) -> Page:
    """The one browser's page, with nothing of the tests before."""
    started.reset(tmp_path)
    return started


@pytest.fixture
def page(blank: Page, address: str) -> Iterator[Page]:
    """The page with its first example; afterwards, no error and no other host was seen."""
    page = blank
    page.open(address)
    page.until(FOUND)
    yield page
    page.js("1")  # reads what the browser has reported
    kinds: dict[str, list[Any]] = {}
    for event in page.events:
        kinds.setdefault(event["method"], []).append(event["params"])
    urls = [asked["request"]["url"] for asked in kinds["Network.requestWillBeSent"]]
    assert all(url.startswith((f"{address}/", "data:image/svg", "blob:")) for url in urls), urls
    assert "Runtime.exceptionThrown" not in kinds
    refused = [log["entry"] for log in kinds.get("Log.entryAdded", [])]
    assert all("status of 4" in entry["text"] for entry in refused), refused


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture with a hole of another colour, in a file whose name is not plain."""
    pixels = np.random.default_rng(1).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    pixels[20:60, 30:90] = (20, 200, 40)
    path = tmp_path / "my phötö & <b>.png"
    Image.fromarray(pixels).save(path)
    return path


def test_by_mouse(page: Page, model: Model, photo: Path, tmp_path: Path) -> None:
    page.click("#examples li:nth-child(2) button")
    until_caption(page, page.text("#examples li:nth-child(2)"))

    choose(page, photo)
    assert page.js("document.querySelector('#found').hidden")  # the old answer is gone
    page.click("#sentence")
    page.type(SENTENCE)
    page.click("form button")
    page.until(FOUND)
    looked = model.look(photo)
    found, read = looked.find(SENTENCE), looked.queries(SENTENCE)
    assert page.text("#confidence") == f"{100 * found.confidence:.0f} %"
    assert page.text("#pixels") == f"{found.area:,} pixels"
    by_score = (np.argsort(-read.scores, kind="stable") + 1).tolist()
    assert order(page) == by_score

    # A query: its mask, and the words it reads.
    whole = drawn(page)
    page.hover(".query")
    until_caption(page, f"query {by_score[0]}")
    assert drawn(page) != whole
    reads = [f"{100 * read_by:.0f} %" for read_by in read.attention[by_score[0] - 1]]
    assert [shown.split("\n")[1].replace("\xa0", " ") for shown in page.texts(".word")] == reads
    page.hover("h1")
    until_caption(page, SENTENCE)
    assert drawn(page) == whole

    # The threshold, by a click on its slider.
    page.click("#threshold")
    assert page.js("document.querySelector('#threshold').value") == "0.5"
    at_half = looked.find(SENTENCE, 0.5)
    area = int(re.sub(r"\D", "", page.text("#pixels")))
    assert area == pytest.approx(at_half.area, abs=30)  # of 13,500, from 8 bits
    assert area != found.area
    page.click("#download")
    np.testing.assert_array_equal(downloaded(tmp_path), at_half.mask)


def test_a_word_ranks_the_queries_that_read_it(page: Page, model: Model, photo: Path) -> None:
    choose(page, photo)
    ask(page, SENTENCE)
    read = model.look(photo).queries(SENTENCE)
    by_score = order(page)
    for place in range(len(read.words)):
        page.hover(f"#words li:nth-child({place + 1}) button")
        attention = read.attention[:, place]
        ranked = sorted(by_score, key=lambda number: -attention[number - 1])
        assert order(page) == ranked
    page.click("#words li:nth-child(2) button")
    page.hover("h1")
    assert page.js("document.querySelector('.word[aria-pressed=true]').innerText").startswith("the")
    assert "attention to “the”" in page.text("#ranked")
    page.press("Escape")
    assert order(page) == by_score


def test_by_keyboard_alone(page: Page, photo: Path, tmp_path: Path) -> None:
    page.press("Tab")
    assert page.focused() == "skip"
    page.call("Page.setInterceptFileChooserDialog", enabled=True)
    page.tab_to("file")
    outline = page.js("getComputedStyle(document.querySelector('#file + label')).outlineStyle")
    assert outline != "none"
    page.press("Enter")
    page.js("1")  # reads what the browser has reported
    assert any(event["method"] == "Page.fileChooserOpened" for event in page.events)
    choose(page, photo)
    assert page.focused() == "sentence"
    sentence = "the left dog"
    ask(page, sentence, press=True)

    page.tab_to("threshold")
    before, drawn_before, status = page.text("#level"), drawn(page), page.text("#status")
    for _ in range(4):
        page.press("ArrowLeft")
    assert float(page.text("#level")) == pytest.approx(float(before.split(",")[0]) - 0.04)
    assert drawn(page) != drawn_before
    assert page.text("#status") != status  # which is what a screen reader says
    for shown in ("#area", "#confidence"):
        assert page.text(shown) in page.text("#status")
    page.press("End")
    assert page.text("#status").startswith("Nothing")
    page.press("Home")
    page.tab_to("download")
    page.press("Enter")
    assert downloaded(tmp_path).shape == (90, 150)

    by_score = order(page)
    page.tab_to("word")
    assert "attention to the start" in page.text("#ranked")
    while page.focused().startswith("word"):
        by_word = order(page)
        page.press("Tab")
    assert by_word != by_score
    for number in by_score:
        assert order(page) == by_score
        until_caption(page, f"query {number}")
        page.press("Tab")
    page.press("Tab", SHIFT)
    page.press("Tab", SHIFT)
    until_caption(page, f"query {by_score[1]}")
    page.press("Space")  # keeps it
    page.press("Tab")
    until_caption(page, f"query {by_score[2]}")
    page.press("Tab")
    until_caption(page, f"query {by_score[1]}")
    page.press("Escape")
    until_caption(page, sentence)


def test_a_kept_word_ranks_the_queries_until_escape(page: Page, photo: Path) -> None:
    choose(page, photo)
    ask(page, "the left dog")
    by_score = order(page)
    page.click("#words li:nth-child(3) button")
    by_word = order(page)
    assert by_word != by_score
    page.hover(".query")
    until_caption(page, f"query {by_word[0]}")
    assert order(page) == by_word
    page.hover("h1")
    while page.focused().startswith("word"):
        page.press("Tab")
    for number in by_word:
        assert order(page) == by_word
        until_caption(page, f"query {number}")
        page.press("Tab")
    page.press("Tab", SHIFT)
    page.press("Escape")
    assert order(page) == by_score
    assert page.js("document.activeElement.innerText").startswith(str(by_word[-1]))


def test_mistakes_are_said_in_the_page_and_the_next_one_works(page: Page, tmp_path: Path) -> None:
    def said() -> str:
        page.until("!document.querySelector('#error').hidden")
        return page.text("#error")

    files = {"no picture": b"%PDF-1.4", "30 MB": bytes(30_000_000)}
    files["64 megapixels"] = claiming(8_000)
    for word, content in files.items():
        file = tmp_path / "file.png"
        file.write_bytes(content)
        page.choose("#file", file)
        assert word in said()
        ask(page, "the star")  # the picture from before
        assert page.js("document.querySelector('#error').hidden")
    for sentence, word in (("   ", "empty"), ("a" * 10_000, "10,000 letters")):
        page.js("document.querySelector('#sentence').select()")
        page.type(sentence)
        page.press("Enter")
        assert word in said()
        assert not page.js("document.querySelector('#found').hidden")
        ask(page, "the star")


def test_a_picture_that_the_server_has_forgotten_is_sent_again(page: Page) -> None:
    for number in range(9):
        image = io.BytesIO()
        Image.new("RGB", (9, 9), (number, 0, 0)).save(image, "PNG")
        body = json.dumps(list(image.getvalue()))
        page.js(f"fetch('/pictures', {{method: 'POST', body: new Uint8Array({body})}})")
    ask(page, "the star")
    answers = [e["params"] for e in page.events if e["method"] == "Network.responseReceived"]
    assert 410 in [answer["response"]["status"] for answer in answers]


def test_it_fits_a_phone_and_the_dark(page: Page, address: str) -> None:
    papers = set()
    for dark in (False, True):
        page.open(address, width=390, dark=dark)
        page.until(FOUND)
        assert page.js("document.documentElement.scrollWidth") == 390
        papers.add(page.js("getComputedStyle(document.body).backgroundColor"))
        # A touch keeps a query, and the picture stays in view.
        page.click("#queries li:last-child button")
        top, bottom = page.js(
            "(() => { const r = document.querySelector('#picture').getBoundingClientRect();"
            "return [r.top, r.bottom]; })()"
        )
        assert -1 <= top < bottom < 844
        assert page.text("#caption").startswith("query")
    assert len(papers) == 2


def test_all_that_is_used_has_a_name(page: Page) -> None:
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    used = [
        node
        for node in nodes
        if node.get("role", {}).get("value") in ("button", "textbox", "slider", "image", "img")
        and not node.get("ignored")
    ]
    assert len(used) > 15
    assert [node for node in used if not node.get("name", {}).get("value", "").strip()] == []


@pytest.mark.parametrize("changes", [{"mmp": False}, {"num_queries": 1}])
def test_models_without_masks_or_with_one_query(
    changes: dict[str, Any], blank: Page, tiny: Tiny, tmp_path: Path
) -> None:
    page = blank
    model, about = loaded(made_run(tmp_path / "run", tiny, **changes))
    with served(model, about) as address:
        page.open(address)
        page.until(FOUND)
        assert len(order(page)) == model.config.model.num_queries
        before = drawn(page)
        page.hover(".query")
        page.until("document.querySelector('#words-hint').innerText.includes('of query')")
        assert (drawn(page) == before) == ("mmp" in changes)
        assert ("see its mask" in page.text("#asked")) == ("mmp" not in changes)
        page.open("about:blank")  # which ends its connections
