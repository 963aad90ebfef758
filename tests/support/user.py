"""What a user of the page sees and does."""

import json
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from support.browser import Page

FOUND = "!document.querySelector('#found').hidden && document.querySelector('#busy').hidden"


def order(page: Page) -> list[int]:
    """The numbers of the queries, as they stand."""
    return [int(name.split()[-1]) for name in page.texts(".query b")]


def drawn(page: Page) -> str:
    """The picture as it is drawn, once the next frame is."""
    shown: str = page.js(
        "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() =>"
        " done(document.querySelector('#picture').toDataURL()))))"
    )
    return shown


def downloaded(folder: Path) -> NDArray[np.bool_]:
    end = time.monotonic() + 30
    while not (files := [f for f in folder.glob("the-*.png") if f.stat().st_size]):
        assert time.monotonic() < end, list(folder.iterdir())
        time.sleep(0.05)
    with Image.open(files[0]) as image:
        return np.asarray(image.convert("1"))


def until_caption(page: Page, caption: str) -> None:
    page.until(f"document.querySelector('#caption').innerText === {json.dumps(caption)}")


def choose(page: Page, photo: Path) -> None:
    """Choose a picture that is 150 pixels wide."""
    page.choose("#file", photo)
    page.until("document.querySelector('#status').innerText.startsWith('150 ')")


def ask(page: Page, sentence: str, *, press: bool = False) -> None:
    page.js("document.querySelector('#sentence').select()")
    page.type(sentence)
    page.press("Enter") if press else page.click("form button")
    until_caption(page, sentence)
    page.until(FOUND)
