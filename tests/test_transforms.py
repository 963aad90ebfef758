"""The square and back: letterbox, mask to grid, and the exact inverse."""

import math
import random
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torchvision.transforms import Normalize

from mmnet.data.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    Placement,
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


@given(sides, sides, st.sampled_from([32, 96, 480]))
def test_the_letterbox_keeps_the_aspect_inside_the_square(
    height: int, width: int, size: int
) -> None:
    p = place(height, width, size, "letterbox")
    assert max(p.inner_height, p.inner_width) == size
    assert min(p.inner_height, p.inner_width) >= 1
    # Each side is the exact one, rounded to a whole pixel.
    scale = Fraction(size, max(height, width))
    assert abs(p.inner_height - height * scale) <= Fraction(1, 2) or p.inner_height == 1
    assert abs(p.inner_width - width * scale) <= Fraction(1, 2) or p.inner_width == 1
    # Even padding, all of it inside.
    assert 0 <= (size - p.inner_height) - 2 * p.top <= 1
    assert 0 <= (size - p.inner_width) - 2 * p.left <= 1


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


@given(sides, sides)
def test_logits_of_a_squashed_image_are_interpolated_as_torch_does(height: int, width: int) -> None:
    logits = torch.randn(1, 12, 12, dtype=torch.float64)
    found = logits_to_image(logits, place(height, width, 96, "squash"))
    expected = F.interpolate(logits[None], (height, width), mode="bilinear", align_corners=False)
    assert_close(found, expected[0])


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_a_mask_on_the_cells_borders_comes_back_exactly(scale: int) -> None:
    mask = torch.zeros(96 * scale, 96 * scale, dtype=torch.bool)
    mask[16 * scale : 48 * scale] = True
    for whole in (mask, mask.T):
        placement = place(*whole.shape, 96, "letterbox")
        grid = mask_to_grid(whole, placement, 4)
        assert_close(logits_to_image(grid[None] * 2.0 - 1, placement)[0] > 0, whole)


@given(
    st.integers(60, 400),
    st.integers(60, 400),
    st.sampled_from(["letterbox", "squash"]),
    st.tuples(*[st.floats(0.3, 0.7)] * 2),
    st.tuples(*[st.floats(0.2, 0.45)] * 2),
    st.booleans(),
)
def test_a_mask_survives_the_way_into_the_square_and_back(
    height: int,
    width: int,
    resize: str,
    centre: tuple[float, float],
    radii: tuple[float, float],
    is_round: bool,
) -> None:
    assume(max(height, width) <= 2 * min(height, width))
    y = ((torch.arange(height) + 0.5) / height - centre[0])[:, None] / radii[0]
    x = ((torch.arange(width) + 0.5) / width - centre[1]) / radii[1]
    mask = y**2 + x**2 < 1 if is_round else torch.maximum(y.abs(), x.abs()) < 1
    placement = place(height, width, 96, resize)
    logits = mask_to_grid(mask, placement, 4)[None] * 2.0 - 1
    back = logits_to_image(logits, placement)[0] > 0
    assert (back & mask).sum() / (back | mask).sum() > 0.75
    # No shift: the middle stays where it was, but for what a cell hides.
    for axis, length in ((1, height), (0, width)):
        middles = [torch.nonzero(m.any(axis)).double().mean() for m in (mask, back)]
        cell = 4 * length / (placement.inner_height if axis else placement.inner_width)
        assert abs(middles[0] - middles[1]) <= 0.75 * cell + 1
