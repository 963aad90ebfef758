"""Anybody's pictures: each kind is read as a person sees it, and a bad one is one line."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from mmnet.data.dataset import read_image
from mmnet.data.transforms import letterbox, place
from mmnet.runtime.errors import DataError
from mmnet.use.images import ORIENTATION, TURNS, Pixels, read_pixels
from support.tiny import ROOT, Tiny

RED, BLUE, WHITE = (220, 30, 40), (20, 60, 200), (255, 255, 255)


def scene() -> Image.Image:
    """Red with a blue upper left quarter, 40 wide and 24 high."""
    picture = Image.new("RGB", (40, 24), RED)
    picture.paste(BLUE, (0, 0, 20, 12))
    return picture


def read(source: object) -> Pixels:
    return read_pixels(source, size=64, resize="letterbox")  # type: ignore[arg-type]


def quarters(pixels: Pixels) -> list[tuple[int, ...]]:
    """The colours in the middle of the preview's quarters, row by row."""
    width, height = pixels.preview.size
    places = [(x * width // 4, y * height // 4) for y in (1, 3) for x in (1, 3)]
    return [tuple(map(int, np.asarray(pixels.preview)[y, x])) for x, y in places]


def close(found: list[tuple[int, ...]], expected: list[tuple[int, ...]], by: int = 12) -> bool:
    return bool(np.abs(np.array(found) - np.array(expected)).max() <= by)


def of_mode(mode: str) -> Image.Image:
    return scene().convert(mode)


def translucent() -> Image.Image:
    """The blue quarter is transparent instead: white."""
    picture = scene().convert("RGBA")
    picture.paste((*BLUE, 0), (0, 0, 20, 12))
    return picture


def sixteen_bits() -> Image.Image:
    values = np.full((24, 40), 200 * 257, np.uint16)
    values[:12, :20] = 50 * 257
    return Image.fromarray(values)


def greys_of_32_bits() -> Image.Image:
    return scene().convert("L").convert("I")


GREYS = [(grey,) * 3 for grey in (scene().convert("L").getpixel((x, 1)) for x in (1, 39))]
COLOURS = [BLUE, RED, RED, RED]
KINDS: dict[str, tuple[Callable[[], Image.Image], list[tuple[int, ...]]]] = {
    "plain.jpg": (scene, COLOURS),
    "plain.png": (scene, COLOURS),
    "plain.webp": (scene, COLOURS),
    "plain.bmp": (scene, COLOURS),
    "grey.jpg": (lambda: of_mode("L"), [GREYS[0], *[GREYS[1]] * 3]),
    "grey.png": (lambda: of_mode("L"), [GREYS[0], *[GREYS[1]] * 3]),
    "palette.png": (lambda: scene().quantize(4), COLOURS),
    "cmyk.jpg": (lambda: of_mode("CMYK"), COLOURS),
    "cmyk.tif": (lambda: of_mode("CMYK"), COLOURS),
    "alpha.png": (translucent, [WHITE, RED, RED, RED]),
    "alpha.webp": (translucent, [WHITE, RED, RED, RED]),
    "grey-alpha.png": (lambda: translucent().convert("LA"), [WHITE, *[GREYS[1]] * 3]),
    "sixteen.png": (sixteen_bits, [(50,) * 3, *[(200,) * 3] * 3]),
    "sixteen.tif": (sixteen_bits, [(50,) * 3, *[(200,) * 3] * 3]),
    "thirty-two.tif": (greys_of_32_bits, [GREYS[0], *[GREYS[1]] * 3]),
    "two-colours.png": (
        lambda: Image.fromarray(np.tile(np.arange(40) > 19, (24, 1))),
        [(0,) * 3, WHITE, (0,) * 3, WHITE],
    ),
    "a name with spaces, ünïcode and 絵.png": (scene, COLOURS),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_picture_is_read_as_a_person_sees_it(name: str, tmp_path: Path) -> None:
    make, expected = KINDS[name]
    path = tmp_path / name
    made = make()
    made.save(path)
    pixels = read(str(path))
    assert close(quarters(pixels), expected)
    assert pixels.placement == place(made.height, made.width, 64, "letterbox")
    assert pixels.square.shape == (3, 64, 64)
    assert pixels.notes == ()
    if path.suffix == ".png":  # without loss, an open picture is the same
        assert torch.equal(read(made).square, pixels.square)
    assert torch.equal(read(path.as_uri()).square, pixels.square)


def test_palette_with_a_transparent_colour_is_on_white(tmp_path: Path) -> None:
    picture = scene().quantize(2)
    clear = picture.getpixel((1, 1))
    for name in ("clear.png", "clear.gif"):
        picture.save(tmp_path / name, transparency=clear)
        assert close(quarters(read(tmp_path / name)), [WHITE, RED, RED, RED])


@pytest.mark.parametrize("orientation", [1, *TURNS])
def test_exif_rotation_is_undone(orientation: int, tmp_path: Path) -> None:
    turn = TURNS.get(orientation)
    sideways = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270}
    sideways |= {turned: turning for turning, turned in sideways.items()}
    stored = scene().transpose(sideways.get(turn, turn)) if turn is not None else scene()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "turned.jpg"
    stored.save(path, exif=exif, quality=95)
    pixels = read(path)
    assert close(quarters(pixels), COLOURS)
    assert (pixels.placement.height, pixels.placement.width) == (24, 40)


def test_pictures_of_the_data_set_are_decoded_as_predict_does(tiny: Tiny, tmp_path: Path) -> None:
    path = next(tiny.images.iterdir())
    image = read_image(path)
    square = letterbox(image, place(*image.shape[1:], 64, "letterbox"))
    assert torch.equal(read(path).square, square)
    array = image.permute(1, 2, 0).numpy()
    assert torch.equal(read(array).square, square)
    assert torch.equal(read(array[:, ::-1][:, ::-1]).square, square)  # of negative strides


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 5)])
def test_pictures_of_extreme_shape_have_their_size(size: tuple[int, int], tmp_path: Path) -> None:
    for name in ("thin.png", "thin.jpg"):
        Image.new("RGB", size, RED).save(tmp_path / name)
        pixels = read(tmp_path / name)
        assert (pixels.placement.width, pixels.placement.height) == size
        _, _, _, top, left, height, width = pixels.placement
        middle = pixels.square[:, top + height // 2, left + width // 2]
        assert close([tuple(map(int, middle))], [RED])


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp", "moving.png", "pages.tif"])
def test_of_an_animation_the_first_frame_is_read_and_this_is_said(
    name: str, tmp_path: Path
) -> None:
    later = [Image.new("RGB", (40, 24), (0, n, 0)) for n in (200, 100)]
    scene().save(tmp_path / name, save_all=True, append_images=later)
    pixels = read(tmp_path / name)
    assert close(quarters(pixels), COLOURS)
    (note,) = pixels.notes
    assert "3 frames" in note


@pytest.mark.parametrize("name", ["half.jpg", "half.png", "half.gif", "half.webp", "half-cmyk.jpg"])
def test_truncated_files_are_refused(name: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    path = tmp_path / name
    (picture.convert("CMYK") if "cmyk" in name else picture).save(path)
    content = path.read_bytes()
    for length in (len(content) // 2, 30, 3, 0):
        path.write_bytes(content[:length])
        with pytest.raises(DataError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "unpack" not in str(caught.value)


def test_what_is_no_picture_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    places = [tmp_path, *(tmp_path / n for n in ("text.jpg", "loop.jpg", "bomb.png", "float.tif"))]
    arrays = [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
    ]
    scene().resize((400, 240)).save(tmp_path / "whole.png", compress_level=0)
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:9999])
    opened = [Image.open(tmp_path / "cut.png"), Image.new("RGB", (0, 4))]
    for source in ["", "none.jpg", "nul\0.jpg", "~nobody/x.jpg", *places, *arrays, *opened]:
        with pytest.raises(DataError) as caught:
            read(source)
        assert "\n" not in str(caught.value), source
        if isinstance(source, Path):
            assert str(source) in str(caught.value)
        assert ("floating-point" in str(caught.value)) == ("float.tif" in str(source))
    opened[0].close()


def test_formats_that_start_programs_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene().save(tmp_path / "scene.eps")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", None)  # it would be an error to call it
    with pytest.raises(DataError, match="known format"):
        read(tmp_path / "scene.eps")


def test_a_name_that_is_not_utf_8_is_read(tmp_path: Path) -> None:
    path = tmp_path / "caf\udce9.jpg"
    try:
        scene().save(path)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert close(quarters(read(path)), COLOURS)


def test_100_megapixels_take_bounded_memory(tmp_path: Path) -> None:
    """Peak over a small picture's, in MB: less than three floats a pixel."""
    script = f"""
import resource, sys
from PIL import Image
sys.path.insert(0, {str(ROOT / "tests")!r})
from support.use import untrained
model = untrained()
def peak():
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
def use(path):
    for result in model.look(path).find(["the dog", "the cat"]):
        result.rle(), result.box, result.confidence, result.overlay(), result.polygons()
        del result.__dict__["mask"]
    return result.size
Image.new("RGBA", (40, 40)).save("small.png")
use("small.png")
before = peak()
assert use("large.png") == (10_000, 10_000)
print(peak() - before)
"""
    Image.new("RGBA", (10_000, 10_000)).save(tmp_path / "large.png", compress_level=1)
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1200
