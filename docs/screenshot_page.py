"""Make docs/page.png from a finished `make table1`: the page that `make demo` serves.

    make demo &                              # prints ADDRESS, once it is up
    python docs/screenshot_page.py ADDRESS docs/page.png

Needs Chromium.
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.browser import browser

EXAMPLE = "#examples li:nth-child(4) button"
NO_DITHER = Image.Dither.NONE


def main(address: str, picture: Path) -> None:
    found = "!document.querySelector('#found').hidden"
    chosen = f"document.querySelector('{EXAMPLE}').ariaCurrent === 'true'"
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        browser(Path(folder)) as page,
    ):
        page.open(address)
        page.until(found)
        page.click(EXAMPLE)
        page.until(f"{chosen} && {found}")
        page.hover("h1")
        page.screenshot(picture)
    with Image.open(picture) as image:
        few = image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=NO_DITHER)
    few.save(picture, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
