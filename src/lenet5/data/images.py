"""Any picture as FashionMNIST would hold it: grey, a light object on black, 28 x 28.

After Xiao, Rasul and Vollgraf, "Fashion-MNIST", 2017, section 2: what is as light as the corners is trimmed, the
longer edge becomes 28 pixels, the shorter is extended evenly, light backgrounds are negated, and the lightest pixel
of each image is 255 (254 in a few).
"""

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lenet5.data.fashion_mnist import IMAGE_SIZE
from lenet5.data.framing import FINEST, box_of, centred, corners_of, frame
from lenet5.errors import UserError

LARGEST_PIXELS = 64_000_000
"""A quarter of a gigabyte once decoded, with alpha."""

_TOO_LARGE = f"more than {LARGEST_PIXELS // 1_000_000} megapixels; make it smaller first"
_NEARLY_WHITE = 0.05 * 255
_FRAMED = (27, 28)  # the longer edge of everything in FashionMNIST, but for 21 of its images
# No others: some that Pillow knows are programs, which it would have another program run.
_FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "PSD", "TGA", "TIFF", "WEBP")
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
            image = Image.open(stream, formats=_FORMATS)
        _refuse_large_and_moving(image)
        picture = _upright(image)
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
    return to_fashion_mnist(picture)


def to_input(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """An image (28, 28) as the exported model takes it: (1, 1, 28, 28), from 0 to 1."""
    return image[np.newaxis, np.newaxis].astype(np.float32) / np.float32(255)


def to_fashion_mnist(picture: Image.Image) -> NDArray[np.uint8]:
    """Frame the thing on a picture (mode RGB or L) as (28, 28); what FashionMNIST holds already stays as it is.

    Raises UserError where everything is as the edges are.
    """
    grey = picture.convert("L")
    if np.median(corners_of(np.asarray(grey))) >= 127.5:  # how light the ground is
        grey = ImageOps.invert(grey)
    pixels = np.array(grey)
    if pixels.shape == (IMAGE_SIZE, IMAGE_SIZE):
        return pixels
    lit = pixels > 0
    if lit.any() and max(pixels[box_of(lit)].shape) in _FRAMED:  # with a margin around it
        return centred(pixels[box_of(lit)])
    return frame(picture.convert("RGB"))


def _refuse_large_and_moving(image: Image.Image) -> None:
    if image.width * image.height > LARGEST_PIXELS:
        raise UserError(f"{image.width:,} x {image.height:,} pixels, {_TOO_LARGE}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in _FIRST_IS_WHOLE:
        raise UserError(f"{frames} pictures in one {image.format} file; save the one you mean by itself")


def _upright(image: Image.Image) -> Image.Image:
    """Mode RGB or L, no larger than it needs to be, on a plain background where it was transparent."""
    size = (FINEST, FINEST)
    image.draft("RGB", size)  # a large JPEG is decoded at a fraction of its size
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data and image.mode[0] not in "IF":  # of one grey level, which conversion would not find
        return _on_plain(image.convert("RGBA").convert("LA"), size)
    picture = _to_eight_bits(image) if image.mode[0] in "IF" else image.convert("RGB")
    picture.thumbnail(size, Image.Resampling.BOX)
    return picture


def _on_plain(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture of mode LA on white, as the paper's were; on black where it is white itself."""
    image.thumbnail(size, Image.Resampling.BOX)
    grey, alpha = image.split()
    opacity = np.asarray(alpha, np.float64)
    white = ((255 - np.asarray(grey)) * opacity).sum() < _NEARLY_WHITE * opacity.sum()
    return Image.composite(grey, Image.new("L", grey.size, 0 if white else 255), alpha)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Of 16-bit pictures, and of those of 32 bits, whose range is their own: their largest value becomes white."""
    values = np.nan_to_num(np.array(image, np.float32), copy=False)
    white = 65535 if image.mode.startswith("I;16") else max(values.max(), 1e-9)
    values *= 255 / white  # in place: a large picture takes as much memory once more with each copy
    return Image.fromarray(values.round(out=values).clip(0, 255, out=values).astype(np.uint8))
