"""The thing on a picture, apart from what it lies on, framed as FashionMNIST frames its things.

The ground is what the edges of the picture show: one colour, on which light may fall unevenly, or, where they have
more than one, as wood has along its grain, every colour that they have.
"""

from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.spatial import KDTree

from lenet5.data.fashion_mnist import IMAGE_SIZE
from lenet5.errors import UserError

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

FINEST = 40 * IMAGE_SIZE
"""Pixels of a picture's longer edge, beyond which detail tells nothing."""

_SEEN = 8 * IMAGE_SIZE  # of the longer edge, at a look
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # Pillow's own
_TOLERANCE = 0.05 * 255  # the paper's: what differs less from the ground is ground
_NOISE = 5  # standard deviations of a plain ground
_CLOSER = (50, 25, _TOLERANCE, _TOLERANCE)  # what may be ground, fit after fit
_PLAIN = 0.75  # of the edges' pixels are of the one colour of a plain ground
_PIECES = 8  # in which a thing may reach the edges
_BLACK, _LIGHT = 50, 150  # a ground's lightness: what lies on it is a negative; it is white in little light
_WHITE = 0.15 * 255  # a thing whose negative is darker
_GRAIN, _COARSE_GRAIN = 0.002, 0.05  # spots smaller than this part of the largest are no part of the thing
_SAMPLE = 1500  # colours of a ground that has many


def frame(picture: Image.Image) -> NDArray[np.uint8]:
    """The thing on a picture (mode RGB) as (28, 28): light on black, its longer edge 28, centred.

    Its lightest pixel is 255, as in each of FashionMNIST's images. Raises UserError where nothing stands out.
    """
    small = _small(picture)
    thing, values = _find(np.asarray(small, np.float32))
    rows, columns = box_of(thing)
    longer = max(rows.stop - rows.start, columns.stop - columns.start)
    if longer < max(small.size) / 2:  # it deserves a closer look
        with suppress(UserError):  # so close that nothing but the thing is left
            thing, values = _find(np.asarray(_small(_around(rows, columns, picture, small)), np.float32))
    return centred(_scaled(values[box_of(thing)]))


def _around(rows: slice, columns: slice, picture: Image.Image, small: Image.Image) -> Image.Image:
    """The part of ``picture`` with what is at ``rows`` and ``columns`` of the ``small`` one, and some ground."""
    wider = max(max(rows.stop - rows.start, columns.stop - columns.start) / 4, 8)
    scales = [whole / part for whole, part in zip(picture.size, small.size, strict=True)]  # a narrow one has two
    edges = list(zip((columns, rows), scales, strict=True))
    start = [max(0, round(scale * (edge.start - wider))) for edge, scale in edges]
    stop = [round(scale * (edge.stop + wider)) for edge, scale in edges]
    return picture.crop((*start, *map(min, stop, picture.size)))


def _small(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((_SEEN, _SEEN), Image.Resampling.BOX)
    return small


def _find(picture: Floats) -> tuple[Mask, Floats]:
    """Where the thing is on a picture (h, w, 3) of 0 to 255, and how light it is, on black. Raises UserError if not."""
    blur = 0.7 * max(picture.shape) / _SEEN
    smooth = ndimage.gaussian_filter(picture, (blur, blur, 0)) if blur > 0.3 else picture
    edges = _edges(picture.shape)
    ground, plain, noise = _plain_ground(smooth, edges)
    if plain:
        apart = np.abs(smooth - ground).max(axis=2)
        thing = _without_grain(_hysteresis(apart, max(_TOLERANCE, noise)), _GRAIN)
    else:
        apart, noise = _from_all_colours(smooth, edges)
        ground = np.broadcast_to(np.median(smooth[edges], axis=0), picture.shape)
        found = ndimage.binary_opening(apart > max(_TOLERANCE, noise), iterations=2)
        thing = _without_grain(found, _COARSE_GRAIN)
    if not thing.any():
        raise UserError("one even surface, nothing stands out from it")
    # A garment's faint outline is below the tolerance, and part of it.
    near = ndimage.binary_dilation(thing)
    return thing, np.where(near, _values(picture, ground, apart, thing), 0)


def box_of(thing: Mask) -> tuple[slice, slice]:
    """The rows and columns of ``thing`` (h, w)."""
    rows, columns = ndimage.find_objects(thing.astype(np.uint8))[0]
    return rows, columns


def centred(thing: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``thing``, not larger than 28 either way, in the middle of (28, 28)."""
    # FashionMNIST has the odd pixel of its margins on the left and above.
    margins = [((IMAGE_SIZE - size + 1) // 2, (IMAGE_SIZE - size) // 2) for size in thing.shape]
    framed: NDArray[np.uint8] = np.pad(thing, margins)
    return framed


def _scaled(values: Floats) -> NDArray[np.uint8]:
    """``values`` with the longer edge as 28 pixels, the largest of them as 255."""
    scale = IMAGE_SIZE / max(values.shape)
    height, width = (max(1, round(edge * scale)) for edge in values.shape)
    scaled = np.asarray(Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BOX))
    lightest: NDArray[np.uint8] = (scaled * (255 / max(scaled.max(), 1e-9))).round().astype(np.uint8)
    return lightest


def _edges(shape: tuple[int, ...]) -> Mask:
    height, width = shape[:2]
    rows, columns = (max(1, size // IMAGE_SIZE) for size in (height, width))
    edges = np.ones((height, width), bool)
    edges[rows:-rows, columns:-columns] = False
    return edges


def _plain_ground(picture: Floats, edges: Mask) -> tuple[Floats, bool, float]:
    """One colour in light that changes slowly (h, w, 3); whether the edges have that colour; how much it varies."""
    height, width = edges.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=-1).astype(np.float32)
    seen, rows = picture[edges], terms[edges]
    corners = corners_of(picture)
    ground = np.broadcast_to(np.median(corners, axis=0).astype(np.float32), picture.shape)
    for tolerance in _CLOSER:
        kept = np.abs(seen - ground[edges]).max(axis=1) <= tolerance
        if kept.mean() < 1 - _PLAIN:
            return ground, False, 0.0
        fitted, *_ = np.linalg.lstsq(rows[kept], seen[kept], rcond=None)
        ground = (terms @ fitted).clip(0, 255)
    off = np.abs(picture - ground).max(axis=2)
    kept = off[edges] <= _TOLERANCE
    _, pieces = ndimage.label(_without_grain(edges & (off > _TOLERANCE), _GRAIN))
    agree = np.abs(corners - np.median(corners, axis=0)).max() <= _TOLERANCE
    plain = kept.mean() >= _PLAIN or (agree and pieces <= _PIECES)
    noise = _NOISE * float(off[edges][kept].std())
    return ground, bool(plain and noise <= _TOLERANCE), noise


def corners_of(picture: Floats | NDArray[np.uint8]) -> NDArray[np.float64]:
    """The mean of each corner, a 28th of the picture wide: (4, 3), or (4,) of a grey one."""
    rows, columns = (max(1, size // IMAGE_SIZE) for size in picture.shape[:2])
    places = [(y, x) for y in (slice(rows), slice(-rows, None)) for x in (slice(columns), slice(-columns, None))]
    return np.array([picture[place].mean(axis=(0, 1)) for place in places], np.float64)


def _from_all_colours(picture: Floats, edges: Mask) -> tuple[Floats, float]:
    """How far each pixel is (h, w) from the nearest colour of the edges, and how far one edge is from the others."""
    sides = np.array_split(picture[edges], 4)
    samples = [side[:: max(1, 4 * len(side) // _SAMPLE)] for side in sides]
    others = [
        KDTree(np.concatenate([*samples[:n], *samples[n + 1 :]])).query(side)[0] for n, side in enumerate(samples)
    ]
    apart = KDTree(np.concatenate(samples)).query(picture.reshape(-1, 3))[0].reshape(edges.shape)
    return apart.astype(np.float32), float(np.quantile(np.concatenate(others), 0.98))


def _hysteresis(apart: Floats, tolerance: float) -> Mask:
    """What differs by more than ``tolerance``, and all that hangs together with it and differs by a third of that."""
    found: Mask = ndimage.binary_propagation(apart > tolerance, np.ones((3, 3)), mask=apart > tolerance / 3)
    return found


def _without_grain(mask: Mask, part: float) -> Mask:
    """``mask`` without spots that are smaller than ``part`` of its largest."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    large: Mask = mask & (sizes >= part * sizes[1:].max(initial=0))[labels]
    return large


def _values(picture: Floats, ground: Floats, apart: Floats, thing: Mask) -> Floats:
    """How light the thing is on black (h, w): its negative, as of a product on white; on black it is one already.

    A white thing is what it differs from its ground; in colour, where the two are of one lightness.
    """
    grey, below = picture @ _GREY, ground @ _GREY
    difference: Floats = np.abs(grey - below)
    lightness = np.median(below)
    if lightness < _BLACK:
        return difference
    negative: Floats = 255 * (1 - grey / (below if lightness > _LIGHT else 255)).clip(0)
    if np.median(negative[thing]) > _WHITE:
        return negative
    return difference if np.median(difference[thing]) > _TOLERANCE else apart
