"""The one way in which a picture is opened: any file, array or tensor becomes an upright RGB image."""

import io
import re
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

with suppress(ImportError):  # the extra `heic`
    import pillow_heif
    pillow_heif.register_heif_opener()

Image.init()
FORMATS = "JPEG PNG WEBP AVIF GIF BMP TIFF JPEG2000 PPM HEIF".split()  # not EPS, which runs a program
MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # of a JPEG's segments; the others belong to its compressed data
HEIC = re.compile(rb"....ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)", re.DOTALL)


class ImageError(ValueError):
    """An image that cannot be used. `reason`: missing, empty, truncated, too large, HEIC or unreadable; `detail`."""

    def __init__(self, name, reason, detail):
        super().__init__(f"{name} cannot be read as an image: {detail}")
        self.reason, self.detail = reason, detail


def open_image(image, name=None, short_side=None):
    """An upright RGB image: the first frame, what is transparent on white, 16 bits scaled to 8.

    Args:
        image: path, bytes or file object of an image file; PIL image; array [H, W] or [H, W, C] or tensor [C, H, W] of
            uint8, uint16 or floats in 0..1, C being 1, 3 or, with alpha, 4.
        name: what an error calls it, by default its path or kind.
        short_side: px to scale the shorter side of a larger one down to. Of a large JPEG only that much is decoded.

    Raises: ImageError.
    """
    name = name or (image if isinstance(image, str | Path) else f"the {type(image).__name__}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF and the like
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            rgb = _rgb(ImageOps.exif_transpose(_opened(image, short_side)))  # photos say in EXIF which side is up
            larger = short_side and min(rgb.size) > short_side
            return ImageOps.cover(rgb, (short_side, short_side), Image.BICUBIC) if larger else rgb
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        unknown = isinstance(error, Image.UnidentifiedImageError)  # whose text is an address in memory
        detail = "it is of no known format" if unknown else getattr(error, "strerror", None) or str(error)
        raise ImageError(name, _reason(error), detail) from None


def _reason(error):
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "too large"
    return next((word for word in ("truncated", "empty", "HEIC") if word.lower() in str(error).lower()), "unreadable")


def _opened(image, short_side):
    """The PIL image of any source."""
    if isinstance(image, Image.Image):
        return image
    if hasattr(image, "cpu"):  # a tensor; torch itself is not needed here
        image = np.moveaxis(image.detach().cpu().numpy(), -3, -1) if image.ndim > 2 else image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, str | Path):
        image = Path(image).expanduser().read_bytes()
    data = image if isinstance(image, bytes) else image.read()
    if not data:
        raise ValueError("it is empty (0 bytes)")
    if HEIC.match(data) and "HEIF" not in Image.OPEN:
        raise ValueError("it is HEIC: pip install pillow-heif, or save it as JPEG")
    opened = Image.open(io.BytesIO(data), formats=[kind for kind in FORMATS if kind in Image.OPEN])
    if opened.format in ("JPEG", "MPO") and not _has_end(data):  # libjpeg would paint what is lost
        raise ValueError("it is truncated: the JPEG has no end")
    if short_side:
        scale = min(1, 2 * short_side / min(opened.size))  # a JPEG is decoded at a fraction
        opened.draft(opened.mode, (round(opened.width * scale), round(opened.height * scale)))
    return opened


def _has_end(jpeg):
    """Whether the segments of a JPEG, one behind the other, lead to its end marker."""
    found = MARKER.search(jpeg, 2)
    while found and found[1] != b"\xd9":
        found = MARKER.search(jpeg, found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2], "big"))
    return bool(found)


def _from_array(array):
    """The image of an array [H, W] or [H, W, C]. Raises ValueError if its values are not what their type claims."""
    found = f"its array of {array.dtype} {list(array.shape)} must"
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise ValueError(f"{found} be [H, W] or [H, W, C], a tensor [C, H, W], with C 1, 3 or 4")
    if array.dtype.kind == "f":
        if not ((array >= 0) & (array <= 1)).all():  # nan is not, either
            raise ValueError(f"{found} hold numbers from 0 to 1, none of them nan: scale or clip it")
        array = (255 * array).round().astype(np.uint8)
    if array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{found} hold uint8, uint16 or floats from 0 to 1")
    return Image.fromarray(np.ascontiguousarray(array if array.dtype == np.uint8 else (array >> 8).astype(np.uint8)))


def _rgb(image):
    """Any image as RGB."""
    if not image.width * image.height:
        raise ValueError("it is empty: it has no pixels")
    if image.mode == "F":
        raise ValueError("its pixels are floats without a range")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")
