"""Any picture as FashionMNIST would hold it: grey, a light object on black, 28 x 28.

After Xiao, Rasul and Vollgraf, "Fashion-MNIST", 2017, section 2: what is as light as the corners is trimmed, the
longer edge becomes 28 pixels, the shorter is extended evenly, and light backgrounds are negated.
"""

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter, ImageOps, UnidentifiedImageError

from lenet5.errors import UserError
from lenet5.fashion_mnist import IMAGE_SIZE

LARGEST_PIXELS = 64_000_000
"""A quarter of a gigabyte once decoded, with alpha."""

_TOO_LARGE = f"more than {LARGEST_PIXELS // 1_000_000} megapixels; make it smaller first"
_WORKING_SIZE = 40 * IMAGE_SIZE  # of the longer edge; many times what the model sees
_GRAIN = 8 * IMAGE_SIZE  # spots smaller than this part of the picture are noise, and no reason to stop trimming
_TOLERANCE = 0.05 * 255  # the paper's: what differs less from the corners is background
_FIRST_IS_WHOLE = ("MPO", "PSD")  # a phone's photograph with its depth map, and the layers of a drawing


def read_image(path: Path) -> NDArray[np.uint8]:
    """The picture in the file ``path`` as (28, 28). Raises UserError where it is missing or no usable picture."""
    try:
        with path.open("rb") as stream:
            return decode_image(stream)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def decode_image(stream: BinaryIO) -> NDArray[np.uint8]:
    """The picture that ``stream`` holds as (28, 28). Raises UserError where it holds no usable one."""
    try:
        # Of pictures between Pillow's own two limits; this module's is lower than both.
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            image = Image.open(stream)
        _refuse_large_and_moving(image)
        grey = _to_grey(image)
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(_TOO_LARGE) from None
    except UnidentifiedImageError:
        raise UserError("not a picture, or of a kind that cannot be read; PNG or JPEG will do") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever the bytes lead them to
        raise UserError(f"a broken picture ({error or type(error).__name__}); save or copy it anew") from None
    return to_fashion_mnist(grey)


def to_fashion_mnist(grey: Image.Image) -> NDArray[np.uint8]:
    """Frame the object of a grey picture (mode L) as (28, 28); one that has this size is framed already.

    Raises UserError where everything is as light as the corners.
    """
    background = _corners(grey)
    if background > 127:
        grey, background = ImageOps.invert(grey), 255 - background
    if grey.size != (IMAGE_SIZE, IMAGE_SIZE):
        grey = _frame(grey, background)
    return np.array(grey)


def _refuse_large_and_moving(image: Image.Image) -> None:
    if image.width * image.height > LARGEST_PIXELS:
        raise UserError(f"{image.width:,} x {image.height:,} pixels, {_TOO_LARGE}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in _FIRST_IS_WHOLE:
        raise UserError(f"{frames} pictures in one {image.format} file; save the one you mean by itself")


def _to_grey(image: Image.Image) -> Image.Image:
    """Mode L, upright, no larger than it needs to be, on a plain background where it was transparent."""
    size = (_WORKING_SIZE, _WORKING_SIZE)
    image.draft("RGB", size)  # a large JPEG is decoded at a fraction of its size
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        return _on_plain(image.convert("RGBA").convert("LA"), size)
    grey = _to_eight_bits(image) if image.mode[0] in "IF" else image.convert("L")
    grey.thumbnail(size, Image.Resampling.BOX)
    return grey


def _on_plain(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture of mode LA on white, as the paper's were; on black where it is white itself."""
    image.thumbnail(size, Image.Resampling.BOX)
    grey, alpha = image.split()
    opacity = np.asarray(alpha, np.float64)
    white = ((255 - np.asarray(grey)) * opacity).sum() < _TOLERANCE * opacity.sum()
    return Image.composite(grey, Image.new("L", grey.size, 0 if white else 255), alpha)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Of 16-bit pictures, and of those of 32 bits, whose range is their own: their largest value becomes white."""
    values = np.nan_to_num(np.asarray(image, np.float64))
    white = 65535 if image.mode.startswith("I;16") else max(values.max(), 1e-9)
    return Image.fromarray((values / white * 255).round().clip(0, 255).astype(np.uint8))


def _corners(grey: Image.Image) -> int:
    """How light the background is: the middle of the four corners, each a 28th of the picture wide."""
    pixels = np.asarray(grey)
    rows, columns = (max(1, size // IMAGE_SIZE) for size in pixels.shape)
    corners = [pixels[y, x].mean() for y in (slice(rows), slice(-rows, None))
               for x in (slice(columns), slice(-columns, None))]  # fmt: skip
    return round(float(np.median(corners)))


def _frame(grey: Image.Image, background: int) -> Image.Image:
    """Trim to what differs from ``background``, take the difference, fit the longer edge to 28 and centre."""
    apart = ImageChops.difference(grey, Image.new("L", grey.size, background))
    smooth = apart.filter(ImageFilter.BoxBlur(max(grey.size) / _GRAIN))
    box = smooth.point(lambda value: 255 if value > _TOLERANCE else 0).getbbox()
    if box is None:
        raise UserError("one even surface, nothing stands out from it")
    # The difference either way: a white shirt on light grey stands out as a black one does.
    thing = apart.crop(box).point(lambda value: value * 255 // (255 - background))
    scale = IMAGE_SIZE / max(thing.size)
    width, height = (max(1, round(edge * scale)) for edge in thing.size)
    framed = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE), 0)
    # FashionMNIST has the odd pixel of its margins on the left and above.
    place = (IMAGE_SIZE - width + 1) // 2, (IMAGE_SIZE - height + 1) // 2
    framed.paste(thing.resize((width, height), Image.Resampling.BOX), place)
    return framed
