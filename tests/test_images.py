"""The one way to open a picture: what every source must look like, value by value, and what is refused."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from clipdec.images import ImageError, open_image

RED, WHITE = (200, 30, 40), (255, 255, 255)


def file(image, kind="PNG", **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def glyph(mode="RGBA"):
    """A red square on a transparent ground whose hidden colour is black."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((*RED, 255), (2, 2, 6, 6))
    return image.convert(mode)


def turned():
    """A photo whose EXIF says that its left side is the top: as it stands, blue is on the right."""
    image = Image.new("RGB", (30, 20), "red")
    image.paste("blue", (0, 0, 30, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    return file(image, "TIFF", exif=exif)


def test_what_is_transparent_is_white():
    palette = glyph().quantize(4)
    array = np.array(glyph())
    for source in (glyph(), file(glyph()), file(palette), array, torch.tensor(array).movedim(2, 0)):
        opened = open_image(source)
        assert opened.mode == "RGB" and opened.getpixel((0, 0)) == WHITE
        assert np.abs(np.subtract(opened.getpixel((4, 4)), RED)).max() <= 1
    assert open_image(glyph("LA")).getpixel((0, 0)) == WHITE
    half = open_image(Image.new("RGBA", (1, 1), (100, 0, 0, 128)))
    assert half.getpixel((0, 0)) == pytest.approx((177, 127, 127), abs=1)  # 128/255 of it over white


def test_sixteen_bits_are_scaled_to_eight():
    grey = np.array([[0, 255, 256, 128 * 257, 65535]], np.uint16)
    for source in (file(Image.fromarray(grey)), file(Image.fromarray(grey), "TIFF"), Image.fromarray(grey), grey):
        assert np.asarray(open_image(source))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_modes_and_formats(mode):
    image = Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode)
    assert open_image(image).getpixel((3, 3)) == pytest.approx(WHITE, abs=2) and open_image(image).size == (5, 4)


def test_the_first_of_several_frames():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "TIFF", "WEBP"):
        data = file(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.subtract(open_image(data).getpixel((1, 1)), (255, 0, 0)).max() < 5, kind


def test_an_image_is_upright_and_not_larger_than_asked(tmp_path):
    path, data = tmp_path / "turned.tif", turned()
    path.write_bytes(data)
    for source in (path, str(path), data, io.BytesIO(data), Image.open(path)):
        upright = open_image(source)
        assert upright.size == (20, 30)
        assert upright.getpixel((18, 15)) == (0, 0, 255) and upright.getpixel((2, 15)) == (255, 0, 0)
    given = Image.new("RGB", (300, 200))
    assert open_image(given, short_side=100).size == (150, 100) and given.size == (300, 200)
    assert open_image(given, short_side=500).size == (300, 200)
    assert open_image(file(Image.new("RGB", (3000, 2000)), "JPEG"), short_side=100).size == (150, 100)


def test_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a.png")
    assert open_image("~/a.png").size == (3, 2)


def test_arrays_are_what_they_claim():
    floats = np.array([[0, 0.25, 0.5, 1]])
    assert np.asarray(open_image(floats))[0, :, 2].tolist() == [0, 64, 128, 255]
    colour = torch.tensor([0.2, 0.4, 1.0]).reshape(3, 1, 1).expand(3, 2, 5)
    assert open_image(colour).size == (5, 2) and open_image(colour).getpixel((4, 1)) == (51, 102, 255)
    assert open_image(np.full((2, 3, 1), 7, np.uint8)).getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize("array, message", [
    (np.full((4, 4, 3), 1.01), "from 0 to 1"), (np.full((4, 4), -0.01), "from 0 to 1"),
    (255 * torch.ones(3, 4, 4), "from 0 to 1"), (np.array([[0.5, np.nan]]), "nan"),
    (np.zeros((4, 4), int), "uint8, uint16 or floats"), (torch.zeros(3, 4, 4).bool(), "uint8"),
    (np.zeros((2, 2, 2), np.uint8), r"\[H, W\]"), (torch.zeros(2, 3, 4, 4), r"\[H, W\]"),
    (np.zeros((0, 3, 3), np.uint8), "no pixels"),
])  # fmt: skip
def test_arrays_that_are_refused(array, message):
    with pytest.raises(ImageError, match=f"cannot be read as an image: .*{message}"):
        open_image(array)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
JPEG = file(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")


@pytest.mark.parametrize("source, reason, message", [
    (b"", "empty", "0 bytes"), (b"no image", "unreadable", "no known format"), (JPEG[:-200], "truncated", "no end"),
    (file(Image.effect_noise((64, 64), 50))[:900], "truncated", "truncated"), ("gone.jpg", "missing", "No such file"),
    (Image.new("F", (2, 2)), "unreadable", "floats"), (b"%!PS-Adobe-3.0 EPSF-3.0", "unreadable", "no known format"),
    (7, "unreadable", "read"), (None, "unreadable", "read"),
])  # fmt: skip
def test_what_cannot_be_read_says_why(source, reason, message):
    with pytest.raises(ImageError, match=f"^my photo cannot be read as an image: .*{message}") as caught:
        open_image(source, "my photo")
    assert caught.value.reason == reason and message in caught.value.detail and " at 0x" not in str(caught.value)


def test_a_bomb_is_not_opened(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    for side in (8, 12):  # a warning and an error of Pillow's
        with pytest.raises(ImageError) as caught:
            open_image(file(Image.new("L", (side, side))))
        assert caught.value.reason == "too large"


def test_heic_is_opened_or_named(monkeypatch):
    import pillow_heif

    data = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), RED)).save(data)
    opened = open_image(data.getvalue())
    assert opened.size == (64, 48) and opened.getpixel((30, 20)) == pytest.approx(RED, abs=6)
    monkeypatch.delitem(Image.OPEN, "HEIF")
    for source in (data.getvalue(), HEIC):
        with pytest.raises(ImageError, match="HEIC: pip install pillow-heif") as caught:
            open_image(source)
        assert caught.value.reason == "HEIC"


def test_pictures_and_names_need_no_torch():
    code = "import sys, clipdec.images, clipdec.labels as l; l.LabelSpace([], ['a']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "JPEG2000", "PPM"])
def test_photos_of_cameras_and_other_formats_are_opened(kind):
    """Many cameras write restart markers into a JPEG."""
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    photo = Image.effect_noise((80, 64), 20).convert("RGB")
    data = file(photo, kind, **{"restart_marker_rows": 1} if kind == "JPEG" else {})
    assert kind != "JPEG" or b"\xff\xd0" in data
    assert np.abs(np.subtract(open_image(data), photo, dtype=float)).mean() < 10
