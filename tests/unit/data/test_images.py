import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from scipy import ndimage

from lenet5.data.images import decode_image, read_image
from lenet5.errors import UserError

Grey = NDArray[np.uint8]


@pytest.fixture
def boot() -> Grey:
    """Something light on black that reaches two edges, as FashionMNIST's things do, and is no mirror of itself."""
    image = np.zeros((28, 28), np.uint8)
    image[2:26, 9:16] = 120
    image[18:26, 0:28] = 200
    image[20:22, 4:6] = 60
    image[24:26, 4:24] = 255  # the lightest pixel of every image there
    return image


def decoded(image: Image.Image, kind: str = "PNG", **options: object) -> Grey:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    stream.seek(0)
    return decode_image(stream)


def enlarged(image: Grey, factor: int = 12) -> Image.Image:
    return Image.fromarray(image).resize((28 * factor, 28 * factor), Image.Resampling.NEAREST)


def apart(first: Grey, second: Grey) -> float:
    return float(np.abs(first.astype(float) - second).mean())


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA"])
def test_an_image_of_the_right_size_stays_as_it_is_in_every_mode(boot: Grey, mode: str) -> None:
    np.testing.assert_array_equal(decoded(Image.fromarray(boot).convert(mode)), boot)


def test_a_light_background_is_negated(boot: Grey) -> None:
    np.testing.assert_array_equal(decoded(ImageOps.invert(Image.fromarray(boot))), boot)


def test_a_picture_with_margins_is_trimmed_and_centred(boot: Grey) -> None:
    picture = Image.new("RGB", (1000, 700), "white")
    picture.paste(ImageOps.invert(enlarged(boot)), (600, 20))
    found = decoded(picture)
    rows, columns = np.nonzero(found > 12)
    assert (columns.min(), columns.max()) == (0, 27)
    assert (rows.min(), 27 - rows.max()) == (2, 2)
    assert apart(found, boot) < 6


@pytest.mark.parametrize("light", [0.95, 0.7, 0.1])
def test_noise_and_a_background_that_is_not_quite_plain_do_not_matter(boot: Grey, light: float) -> None:
    picture = Image.new("L", (600, 600), 0)
    picture.paste(enlarged(boot), (100, 150))
    pixels = np.asarray(picture) / 255
    pixels = pixels * (1 - light) + light * 0.2 if light < 0.5 else light - pixels * light
    noisy = (pixels * 255 + np.random.default_rng(0).normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8)
    found = decoded(Image.fromarray(noisy), "JPEG", quality=70)
    assert np.corrcoef(found.ravel(), boot.ravel())[0, 1] > 0.97


@pytest.mark.parametrize(("background", "thing"), [(200, 255), (255, 200), (100, 20), (20, 100), (0, 255), (255, 0)])
def test_a_thing_stands_out_whether_lighter_or_darker_than_what_it_lies_on(
    boot: Grey, background: int, thing: int
) -> None:
    there = np.asarray(enlarged(boot)) > 0
    found = decoded(Image.fromarray(np.where(there, thing, background).astype(np.uint8)))
    assert np.corrcoef(found.ravel(), boot.ravel() > 0)[0, 1] > 0.99
    assert found.max() > 50


def test_a_photograph_taken_sideways_is_turned_upright(boot: Grey) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees
    sideways = enlarged(boot).rotate(90, expand=True)
    assert apart(decoded(sideways, "JPEG", exif=exif, quality=95), boot) < 3
    assert apart(decoded(sideways, "JPEG", quality=95), boot) > 20


@pytest.mark.parametrize("colour", ["white", "black", "#666666"])
def test_a_thing_on_a_transparent_background_stands_out_from_it(boot: Grey, colour: str) -> None:
    picture = Image.new("RGBA", (28 * 12, 28 * 12), (255, 0, 255, 0))
    picture.paste(Image.new("RGBA", picture.size, colour), mask=enlarged((boot > 0).astype(np.uint8) * 255))
    found = decoded(picture)
    np.testing.assert_array_equal(found > 100, boot > 0)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_more_than_eight_bits_are_scaled_and_not_cut_off(boot: Grey, kind: type) -> None:
    deep = Image.fromarray((boot.astype(np.float64) * 257).astype(kind))
    found = decoded(deep, "TIFF")
    np.testing.assert_allclose(found, boot if kind is np.uint16 else boot / boot.max() * 255, atol=1)


def test_sixteen_bits_with_a_level_that_is_transparent_are_not_cut_off(boot: Grey) -> None:
    deep = Image.fromarray(boot.astype(np.uint16) * 257)
    np.testing.assert_array_equal(decoded(deep, transparency=1), boot)


def test_colours_of_print_are_read(boot: Grey) -> None:
    assert apart(decoded(enlarged(boot).convert("RGB").convert("CMYK"), "JPEG", quality=95), boot) < 3


def test_a_phones_photograph_with_a_second_picture_inside_is_read(boot: Grey) -> None:
    picture = enlarged(boot).convert("RGB")
    found = decoded(picture, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], quality=95)
    assert apart(found, boot) < 3


@pytest.mark.parametrize("size", [(3000, 10), (10, 3000), (2, 2), (29, 29)])
def test_any_shape_fits(size: tuple[int, int]) -> None:
    picture = Image.new("L", (size[0] + 40, size[1] + 40), 255)
    picture.paste(0, (20, 20, 20 + size[0], 20 + size[1]))
    found = decoded(picture)
    assert found.shape == (28, 28)
    assert found.max() > 60


@pytest.mark.parametrize(
    ("size", "box"),
    [((3, 532), (0, 452, 1, 489)), ((7, 1099), (2, 855, 6, 1060)), ((41, 1085), (1, 752, 37, 895))],
)
def test_a_thing_on_a_narrow_picture_is_found_where_it_is(size: tuple[int, int], box: tuple[int, ...]) -> None:
    for picture, place in ((size, box), (size[::-1], (box[1], box[0], box[3], box[2]))):
        white = Image.new("L", picture, 255)
        white.paste(0, place)
        found = decoded(white)
        rows, columns = (found.max(axis=axis) > 60 for axis in (1, 0))
        longer, shorter = (rows, columns) if picture == size else (columns, rows)
        assert longer.sum() == 28
        assert shorter.sum() < 14


def test_a_blurred_large_photograph_gives_what_the_small_one_gives(boot: Grey) -> None:
    large = enlarged(boot, 150).filter(ImageFilter.GaussianBlur(20))
    assert apart(decoded(large), decoded(large.resize((400, 400)))) < 3


def png_without_pixels(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and holds nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", b""), (b"IEND", b""))
    )


def frames(kind: str) -> bytes:
    stream = io.BytesIO()
    pictures = [Image.new("L", (40, 40), value) for value in (0, 100, 200)]
    pictures[0].save(stream, kind, save_all=True, append_images=pictures[1:])
    return stream.getvalue()


def cut_png() -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (100, 100), np.uint8)
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()[:3000]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"A text, and no picture.\n", "not a picture"),
        (b"", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (cut_png(), "a broken picture (image file is truncated"),
        (png_without_pixels(10, 10), "a broken picture"),
        (png_without_pixels(20_000, 20_000), "more than 64 megapixels"),
        (png_without_pixels(10_000, 10_000), "10,000 x 10,000 pixels, more than 64 megapixels"),
        (png_without_pixels(0, 0), "not a picture"),
        (frames("GIF"), "3 pictures in one GIF"),
        (frames("PNG"), "3 pictures in one PNG"),
        (frames("TIFF"), "3 pictures in one TIFF"),
    ],
    ids=["text", "empty", "svg", "cut", "header", "400 MP", "100 MP", "no size", "gif", "apng", "tiff"],
)
def test_what_is_no_picture_is_told_in_one_line_with_its_name(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "it.png"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_image(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert said in str(raised.value)
    assert len(str(raised.value)) < 200


def test_a_missing_file_and_a_directory_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png: no such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(UserError, match="is a directory"):
        read_image(tmp_path)


def test_a_blank_picture_is_told() -> None:
    with pytest.raises(UserError, match="one even surface"):
        decoded(Image.new("RGB", (300, 200), "grey"))


@pytest.mark.parametrize("margin", [1, 2, 10])
@pytest.mark.parametrize("ground", [0, 255])
def test_an_image_with_a_margin_stays_as_it_is(boot: Grey, margin: int, ground: int) -> None:
    boot[12, 0] = 1  # the faintest of outlines belongs to it
    padded = Image.fromarray(np.pad(boot, margin))
    np.testing.assert_array_equal(decoded(ImageOps.invert(padded) if ground else padded), boot)


def on(boot: Grey, ground: NDArray[np.float64], colour: tuple[float, float, float] = (1, 1, 1)) -> Image.Image:
    """The thing on ``ground`` (300, 360, 3) as it would look there: dark where it is light in FashionMNIST."""
    thing = 255 - np.asarray(enlarged(boot, 7), np.float64)
    there = np.asarray(enlarged((boot > 0).astype(np.uint8), 7))[..., np.newaxis]
    picture = ground.copy()
    place = picture[50:246, 80:276]
    picture[50:246, 80:276] = np.where(there, thing[..., np.newaxis] * colour, place)
    return Image.fromarray(picture.clip(0, 255).round().astype(np.uint8))


def tiles(first: tuple[int, ...], second: tuple[int, ...], size: int) -> NDArray[np.float64]:
    y, x = np.mgrid[:300, :360] // size
    return np.where(((x + y) % 2)[..., np.newaxis], first, second).astype(np.float64)


def wood(strength: float) -> NDArray[np.float64]:
    """Grain along the picture, ``strength`` grey levels deep: no two boards and no two places are of one colour."""
    noise = np.random.default_rng(0).normal(size=(300, 360))
    grain = ndimage.gaussian_filter(noise, (25, 1.2), mode="wrap")
    return np.array([190.0, 140.0, 90.0]) + strength * (grain / grain.std())[..., np.newaxis] * (1, 0.85, 0.6)


def light(falls_to: float, spot: bool = False) -> NDArray[np.float64]:
    """White in light that falls, across the picture or away from its middle, to ``falls_to``."""
    y, x = np.mgrid[-1:1:300j, -1:1:360j]
    away = (x**2 + y**2) / 2 if spot else (x + 1) / 2
    return np.broadcast_to(250 * (1 - (1 - falls_to) * away)[..., np.newaxis], (300, 360, 3)).copy()


@pytest.mark.parametrize(
    "ground",
    [
        light(0.75), light(0.5), light(0.6, spot=True),
        tiles((250, 250, 250), (215, 225, 240), 20), tiles((90, 120, 200), (150, 170, 230), 9),
        tiles((230, 200, 160), (200, 160, 110), 37), wood(6), wood(14),
    ],
    ids=["falling light", "half of the light", "a spot", "kitchen tiles", "a cloth", "boards", "faint wood", "wood"],
)  # fmt: skip
def test_a_thing_is_found_on_a_ground_that_is_not_plain_or_not_evenly_lit(boot: Grey, ground: Any) -> None:
    found = decoded(on(boot, ground, (1, 0.6, 0.6)))
    assert np.corrcoef(found.ravel(), boot.ravel())[0, 1] > 0.95


def test_a_thing_of_its_grounds_lightness_stands_out_by_its_colour(boot: Grey) -> None:
    there = boot > 0
    mask = np.pad(np.asarray(enlarged(there.astype(np.uint8))), ((40, 60), (30, 30)))[..., np.newaxis]
    found = decoded(Image.fromarray(np.where(mask, (235, 85, 60), (60, 170, 60)).astype(np.uint8)))
    assert np.corrcoef(found.ravel(), there.ravel())[0, 1] > 0.97


@pytest.mark.parametrize("contrast", [0.15, 0.5])
def test_faint_pictures_get_the_contrast_of_the_training_images(boot: Grey, contrast: float) -> None:
    faint = Image.fromarray((230 - np.asarray(enlarged(np.pad(boot, 4))) * contrast).round().astype(np.uint8))
    found = decoded(faint)
    assert found.max() == 255
    assert apart(found, boot) < 6


def test_no_format_is_opened_that_another_program_would_have_to_read(boot: Grey) -> None:
    stream = io.BytesIO()
    Image.fromarray(boot).save(stream, "EPS")
    stream.seek(0)
    with pytest.raises(UserError, match="not a picture, or of a kind that cannot be read; PNG or JPEG will do"):
        decode_image(stream)
