"""The square and back: letterbox, mask to grid, and the exact inverse."""

import math
import random
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torchvision.transforms import Normalize

from mmnet.data.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    Placement,
    _bilinear,
    _nearest,
    letterbox,
    logits_to_image,
    mask_to_grid,
    normalise,
    place,
)

# The square and back.

sides = st.integers(1, 600)
placements = st.builds(
    place, sides, sides, st.sampled_from([32, 96, 480]), st.sampled_from(["letterbox", "squash"])
)


@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60), (1, 600), (600, 1), (7, 7)])
def test_the_letterbox_pads_with_clips_mean_colour(height: int, width: int) -> None:
    placement = place(height, width, 96, "letterbox")
    square = letterbox(torch.full((3, height, width), 255, dtype=torch.uint8), placement)
    inside = (square == 255).all(0)
    rows = slice(placement.top, placement.top + placement.inner_height)
    columns = slice(placement.left, placement.left + placement.inner_width)
    assert inside[rows, columns].all()
    assert inside.sum() == placement.inner_height * placement.inner_width
    padding = square[:, ~inside].T / 255
    assert_close(padding, torch.tensor(CLIP_MEAN).expand_as(padding), atol=0.5 / 255, rtol=0)


def test_an_image_of_the_squares_size_is_left_as_it_is() -> None:
    image = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    for resize in ("letterbox", "squash"):
        assert_close(letterbox(image, place(64, 64, 64, resize)), image)


@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60), (7, 7), (300, 200)])
def test_the_layout_in_memory_changes_no_byte(height: int, width: int) -> None:
    decoded = torch.randint(256, (height, width, 3), dtype=torch.uint8).permute(2, 0, 1)
    placement = place(height, width, 96, "letterbox")
    square = letterbox(decoded, placement)
    assert torch.equal(square, letterbox(decoded.contiguous(), placement))
    assert square.permute(1, 2, 0).is_contiguous()
    rows = slice(placement.top, placement.top + placement.inner_height)
    columns = slice(placement.left, placement.left + placement.inner_width)
    size = (placement.inner_height, placement.inner_width)
    plain = F.interpolate(decoded.contiguous()[None], size, mode="bicubic", antialias=True)
    assert torch.equal(square[:, rows, columns], plain[0])
    assert normalise(square[None]).is_contiguous()


def test_normalise_is_torchvisions() -> None:
    images = torch.randint(256, (2, 3, 8, 9), dtype=torch.uint8)
    assert_close(normalise(images), Normalize(CLIP_MEAN, CLIP_STD)(images / 255))


def source_pixel(centre: Fraction, start: int, inner: int, length: int) -> int | None:
    pixel = math.floor((centre - start) * length / inner)
    return pixel if 0 <= pixel < length else None


@given(placements, st.sampled_from([4, 8]), st.randoms(use_true_random=False))
def test_mask_to_grid_reads_the_pixel_under_each_cells_centre(
    p: Placement, stride: int, draw: random.Random
) -> None:
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    mask = torch.rand(p.height, p.width, generator=generator) > 0.5
    grid = mask_to_grid(mask, p, stride)
    cells = p.size // stride
    assert grid.shape == (cells, cells)
    centres = [Fraction(stride) * (2 * cell + 1) / 2 for cell in range(cells)]
    rows = [source_pixel(c, p.top, p.inner_height, p.height) for c in centres]
    columns = [source_pixel(c, p.left, p.inner_width, p.width) for c in centres]
    expected = [
        [row is not None and column is not None and bool(mask[row, column]) for column in columns]
        for row in rows
    ]
    assert grid.tolist() == expected


def bilinear(logits: Tensor, p: Placement, y: int, x: int) -> float:
    """Literally: follow a pixel's centre into the square, then into the grid; blend four cells."""
    grid = len(logits)
    v = (p.top + (y + 0.5) * p.inner_height / p.height) * grid / p.size - 0.5
    u = (p.left + (x + 0.5) * p.inner_width / p.width) * grid / p.size - 0.5
    v, u = min(max(v, 0), grid - 1), min(max(u, 0), grid - 1)
    top, left = min(int(v), grid - 2), min(int(u), grid - 2)
    value = 0.0
    for i in (0, 1):
        for j in (0, 1):
            weight = (1 - abs(v - top - i)) * (1 - abs(u - left - j))
            value += weight * float(logits[top + i, left + j])
    return value


@given(placements, st.randoms(use_true_random=False))
def test_logits_to_image_blends_the_cells_around_each_pixels_centre(
    p: Placement, draw: random.Random
) -> None:
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    logits = torch.randn(2, 8, 8, dtype=torch.float64, generator=generator)
    image = logits_to_image(logits, p)
    assert image.shape == (2, p.height, p.width)
    corners = [(y, x) for y in (0, p.height - 1) for x in (0, p.width - 1)]
    others = [(draw.randrange(p.height), draw.randrange(p.width)) for _ in range(40)]
    for y, x in corners + others:
        for n in (0, 1):
            assert float(image[n, y, x]) == pytest.approx(bilinear(logits[n], p, y, x), abs=1e-9)


# Every size, from one pixel to a large photograph, and every aspect.

any_side = st.integers(1, 6000) | st.sampled_from([1, 2, 3, 479, 480, 481, 5999, 6000])
any_place = st.builds(place, any_side, any_side, st.just(480), st.just("letterbox"))


@given(any_place)
def test_the_letterbox_keeps_the_aspect_inside_the_square_at_every_size(p: Placement) -> None:
    assert max(p.inner_height, p.inner_width) == 480
    assert min(p.inner_height, p.inner_width) >= 1
    # Each side is the exact one, rounded to a whole pixel.
    scale = Fraction(480, max(p.height, p.width))
    assert abs(p.inner_height - p.height * scale) <= Fraction(1, 2) or p.inner_height == 1
    assert abs(p.inner_width - p.width * scale) <= Fraction(1, 2) or p.inner_width == 1
    # Even padding, all of it inside.
    assert 0 <= (480 - p.inner_height) - 2 * p.top <= 1
    assert 0 <= (480 - p.inner_width) - 2 * p.left <= 1
    mirrored = place(p.width, p.height, 480, "letterbox")
    assert (mirrored.inner_height, mirrored.top) == (p.inner_width, p.left)


@given(any_place, st.integers(0, 479))
def test_image_and_mask_lie_in_the_same_place_at_every_size(p: Placement, where: int) -> None:
    # Stride 1: the grid is the square, so the image's rows are exactly the mask's.
    for length, inner, start in (
        (p.height, p.inner_height, p.top),
        (p.width, p.inner_width, p.left),
    ):
        pixels, inside = _nearest(length, inner, start, 480, 1)
        assert torch.nonzero(inside).flatten().tolist() == list(range(start, start + inner))
        exact = source_pixel(Fraction(2 * where + 1, 2), start, inner, length)
        assert bool(inside[where]) == (exact is not None)
        if exact is not None:
            assert int(pixels[where]) == exact


@given(any_place)
def test_the_way_back_is_the_inverse_of_the_way_there_at_every_size(p: Placement) -> None:
    grid = torch.arange(480, dtype=torch.float64)
    for length, inner, start in (
        (p.height, p.inner_height, p.top),
        (p.width, p.inner_width, p.left),
    ):
        weights = _bilinear(length, inner, start, 480, 480)
        assert_close(weights.sum(1), torch.ones(length, dtype=torch.float64))
        # A ramp of positions reads as the position of each pixel's centre.
        there = start + (torch.arange(length).double() + 0.5) * inner / length - 0.5
        assert_close(weights @ grid, there.clamp(0, 479), atol=1e-9, rtol=0)
        # Enlarged, every pixel is found again by way of its own cell.
        if length <= inner:
            pixels, inside = _nearest(length, inner, start, 480, 1)
            cells = (weights @ grid).round().long()
            assert inside[cells].all()
            assert pixels[cells].tolist() == list(range(length))


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize(("height", "width"), [(480, 480), (960, 640), (240, 480), (1920, 960)])
def test_a_mask_of_whole_cells_comes_back_exactly(height: int, width: int, stride: int) -> None:
    p = place(height, width, 480, "letterbox")
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[height // 4 : height // 2, width // 4 : width // 2] = True
    # The corners apart, which bilinear rounds, within a cell on either side.
    cell = math.ceil(stride * height / p.inner_height)
    sure = torch.ones_like(mask)
    for y in (height // 4, height // 2):
        for x in (width // 4, width // 2):
            sure[max(y - cell, 0) : y + cell, max(x - cell, 0) : x + cell] = False
    back = logits_to_image(mask_to_grid(mask, p, stride)[None] * 2.0 - 1, p)[0] > 0
    assert_close(back[sure], mask[sure])
    assert sure.double().mean() > 0.99


@pytest.mark.parametrize(("height", "width"), [(1, 6000), (6000, 1), (4000, 6000), (1, 1), (3, 2)])
def test_extreme_images_go_there_and_back(height: int, width: int) -> None:
    p = place(height, width, 480, "letterbox")
    # A ramp in each direction: what is read in the square is the ramp at the pixel's centre.
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    ramps = torch.stack([(y / height).expand(-1, width), (x / width).expand(height, -1)])
    image = torch.cat([ramps, ramps[:1]]).mul(255).round().byte()
    square = letterbox(image, p)
    inside = torch.zeros(480, 480, dtype=torch.bool)
    inside[p.top : p.top + p.inner_height, p.left : p.left + p.inner_width] = True
    mean = torch.tensor([round(255 * value) for value in CLIP_MEAN], dtype=torch.uint8)
    assert (square[:, ~inside] == mean[:, None]).all()
    rows = (torch.arange(480) + 0.5 - p.top) / p.inner_height
    columns = (torch.arange(480) + 0.5 - p.left) / p.inner_width
    # Away from the border, where the filter has nothing beyond: cubic has no part in a ramp.
    for found, ramp in ((square[0], rows[:, None]), (square[1], columns)):
        middle = inside & (ramp > 0.1) & (ramp < 0.9) & (min(height, width) > 3)
        assert (found - 255 * ramp)[middle].abs().le(1.5).all()
    whole = mask_to_grid(torch.ones(height, width, dtype=torch.bool), p, 4)
    assert_close(whole, inside[2::4, 2::4])
    logits = torch.ones(1, 120, 120)
    assert_close(logits_to_image(logits, p), torch.ones(1, height, width))


# OpenCV as a judge: warpAffine by the same centre-aligned affine.


def opencv_matrix(p: Placement, cells: int) -> np.ndarray:
    """Original pixel to cell, for OpenCV, whose coordinate 0 is the first pixel's centre.

    With centres at +0.5: u = (left + (x + 1/2) w'/w) k - 1/2, the half-pixel term included.
    """
    k = cells / p.size
    rows = ((p.width, p.inner_width, p.left), (p.height, p.inner_height, p.top))
    (a, u), (b, v) = (
        (k * inner / length, k * (start + inner / length / 2) - 0.5)
        for length, inner, start in rows
    )
    return np.array([[a, 0, u], [0, b, v]])


def smooth(height: int, width: int) -> np.ndarray:
    """Waves of 1/2 and 1 per image: too slow for antialiasing to matter."""
    y, x = np.mgrid[:height, :width]
    y, x = (y + 0.5) / height, (x + 0.5) / width
    waves = [np.sin(6 * x + 3 * y), np.cos(5 * y - 2 * x), np.sin(4 * x * y + 1)]
    return (128 + 100 * np.stack(waves, -1)).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width"), [(640, 427), (427, 640), (120, 160), (96, 33), (1200, 1600), (481, 479)]
)
def test_the_letterbox_is_opencvs_by_centres(height: int, width: int) -> None:
    p = place(height, width, 480, "letterbox")
    image = smooth(height, width)
    expected = cv2.warpAffine(
        image,
        opencv_matrix(p, 480),
        (480, 480),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    found = letterbox(torch.from_numpy(image).permute(2, 0, 1), p).permute(1, 2, 0).numpy()
    rows = slice(p.top, p.top + p.inner_height)
    columns = slice(p.left, p.left + p.inner_width)
    difference = np.abs(found.astype(int) - expected)[rows, columns]
    # Two bytes, both rounded; the two cubics differ besides (a of -0.5 here, -0.75 in OpenCV).
    assert difference.max() <= 2
    assert difference.mean() < 0.3


@pytest.mark.parametrize(("height", "width"), [(427, 640), (640, 427), (100, 100), (2000, 3000)])
def test_criss_matrix_lies_up_to_half_a_pixel_beside_ours(height: int, width: int) -> None:
    """CRIS maps the image's corners onto the padding's edges, as ours does, but hands them to
    OpenCV, for which 0 is the first pixel's centre, not its corner. Its square therefore lies
    (1 - scale) / 2 of the square's pixels beside ours: nothing at scale 1, an eighth for COCO's 640
    at 480, near half a pixel of the square where much shrunk, of the original where much enlarged.
    """
    p = place(height, width, 480, "letterbox")
    scale = 480 / max(height, width)
    x, y = (480 - width * scale) / 2, (480 - height * scale) / 2
    corners = np.array([[0, 0], [width, 0], [0, height]], np.float32)
    moved = np.array([[x, y], [480 - x, y], [x, 480 - y]], np.float32)
    shift = opencv_matrix(p, 480)[:, 2] - cv2.getAffineTransform(corners, moved)[:, 2]
    along = int(height > width)  # the side that fills the square: no rounding, no padding
    assert shift[along] == pytest.approx((scale - 1) / 2, abs=1e-4)
    # In pixels of whichever is the coarser of the two.
    assert abs(shift[along]) / max(scale, 1) < 0.5
    # Across, our padding is rounded to a whole pixel besides, and the side to another.
    assert abs(shift[1 - along] - (scale - 1) / 2) <= 1
