"""Photos: what is read of an image file and how, what is left out, and how a data set of photos is divided."""

import argparse
import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import samples
import torch
from PIL import Image, PngImagePlugin
from samples import encode

from clipdec import load_data
from clipdec.images import open_image
from clipdec.metrics import zsl_report
from data_prep import photos
from data_prep.photos import inside, make_row, prepare
from data_prep.writer import LeftOut

ROOT = Path(__file__).resolve().parents[2]
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
INKS = {RED: (0, 255, 255, 0), GREEN: (255, 0, 255, 0), WHITE: (0, 0, 0, 0), (0, 0, 0): (0, 0, 0, 255)}


def flat(mode, colour, kind="PNG", size=(8, 8), **options):
    """An image file of one colour."""
    return encode(Image.new(mode, size, colour), kind, **options)


def picture(width, height):
    """A smooth picture, different in each place."""
    y, x = np.mgrid[0:1:height * 1j, 0:1:width * 1j]
    return Image.fromarray((255 * np.stack([x, y, (np.sin(9 * x) * np.cos(7 * y) + 1) / 2], axis=2)).astype(np.uint8))


def corners(image):
    """The colours near the four corners, each channel rounded to 0 or 255."""
    w, h = image.size
    return [tuple(255 * (c > 127) for c in image.getpixel(p)) for p in ((5, 5), (w - 6, 5), (5, h - 6), (w - 6, h - 6))]


def png(width, height, depth, kind, pixels):
    """A PNG file written by hand, of a depth that Pillow does not write. pixels: the bytes of all rows."""
    size = lambda data: struct.pack(">I", len(data))
    chunk = lambda name, data: size(data) + name + data + struct.pack(">I", zlib.crc32(name + data))
    step = len(pixels) // height
    rows = b"".join(b"\0" + pixels[i * step : (i + 1) * step] for i in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def open_photo(data, size):
    return open_image(data, short_side=size)


def reason(source):
    """Why an image file, or the bytes of one, is left out."""
    with pytest.raises(LeftOut) as error:
        make_row(("a.jpg", source, [0]), 100)
    assert " at 0x" not in error.value.args[1]  # no address in memory
    return error.value.args[0]


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# Where the corners of the upright picture are stored (top left, top right, bottom left, bottom right), after the Exif
# standard: 6 is "row 0 is the right side, column 0 the top", so the first stored pixel is the top right corner.
STORED = {1: "abcd", 2: "badc", 3: "dcba", 4: "cdab", 5: "acbd", 6: "bdac", 7: "dbca", 8: "cadb"}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_applied(orientation, kind):
    colour = {"a": RED, "b": GREEN, "c": BLUE, "d": WHITE}
    small = Image.fromarray(np.array([colour[x] for x in STORED[orientation]], np.uint8).reshape(2, 2, 3))
    stored = small.resize((60, 40) if orientation < 5 else (40, 60), Image.NEAREST)
    image = open_photo(encode(stored, kind, exif=turned(orientation), quality=95), 100)
    assert image.size == (60, 40) and corners(image) == [RED, GREEN, BLUE, WHITE]


PALETTE = Image.new("P", (8, 8), 1)
PALETTE.putpalette([*BLUE, *RED])


ALIKE = {  # (file, the one colour it shows)
    "grey": (flat("L", 77), (77, 77, 77)), "grey, opaque": (flat("LA", (77, 255)), (77, 77, 77)),
    "grey, transparent": (flat("LA", (77, 0)), WHITE), "black and white": (flat("1", 1), WHITE),
    "grey with a transparent value": (flat("L", 77, transparency=77), WHITE),
    "palette": (encode(PALETTE), RED), "palette, transparent": (encode(PALETTE, transparency=1), WHITE),
    "RGB": (flat("RGB", (1, 2, 3)), (1, 2, 3)),
    "RGB with a transparent colour": (flat("RGB", RED, transparency=RED), WHITE),
    "RGBA, opaque": (flat("RGBA", (*RED, 255)), RED), "RGBA, transparent": (flat("RGBA", (*RED, 0)), WHITE),
    "RGBA, half transparent": (flat("RGBA", (*RED, 128)), (255, 127, 127)),  # 255 * (1 - 128 / 255)
    "WebP, transparent": (flat("RGBA", (*RED, 0), "WEBP", lossless=True, exact=True), WHITE),
    **{kind: (flat("RGB", RED, kind), RED) for kind in ("GIF", "BMP", "TIFF")},
    "16 bits, RGB": (png(2, 2, 16, 2, struct.pack(">3H", 0xC812, 0x64FF, 0x0A00) * 4), (200, 100, 10)),
}


@pytest.mark.parametrize("name", ALIKE)
def test_every_kind_of_pixel_becomes_rgb(name):
    data, colour = ALIKE[name]
    image = open_photo(data, 100)
    assert image.mode == "RGB" and image.getcolors() == [(image.width * image.height, colour)]


@pytest.mark.parametrize("colour", INKS)
def test_a_cmyk_jpeg_keeps_its_colours(colour):
    image = open_photo(flat("CMYK", INKS[colour], "JPEG", (40, 40), quality=95), 100)
    assert image.mode == "RGB" and corners(image) == [colour] * 4


def test_16_bit_pgm_keeps_its_high_byte():
    data = b"P5 3 1 65535\n" + struct.pack(">3H", 0x00FF, 0x3200, 0xFFFF)
    assert np.asarray(open_photo(data, 100))[0, :, 0].tolist() == [0, 50, 255]


def test_a_progressive_jpeg_is_read():
    read = open_photo(encode(picture(300, 200), "JPEG", progressive=True, quality=95), 300)
    assert np.abs(np.asarray(read, float) - np.asarray(picture(300, 200), float)).mean() < 3


def test_of_several_pictures_the_first_is_read():
    two = flat("RGB", RED, "MPO", (40, 30), save_all=True, append_images=[Image.new("RGB", (40, 30), BLUE)])
    assert Image.open(io.BytesIO(two)).format == "MPO" and corners(open_photo(two, 100)) == [RED] * 4


SMALL = {(400, 300): (133, 100), (300, 400): (100, 133), (1600, 1200): (133, 100), (500, 500): (100, 100)}
SMALL[101, 250] = (100, 248)
KEPT = [(shape, 100, shape) for shape in [(40, 30), (30, 40), (100, 100), (100, 900), (1, 1), (1, 2000), (2000, 1)]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("shape", SMALL)
def test_the_short_side_gets_the_size(kind, shape):
    image = open_photo(encode(picture(*shape), kind), 100)
    assert min(image.size) == 100 and np.abs(np.subtract(image.size, SMALL[shape])).max() <= 1


@pytest.mark.parametrize("shape, size, small", [*KEPT, ((20, 2000), 10, (10, 1000)), ((2000, 20), 10, (1000, 10))])
def test_small_photos_are_not_enlarged_and_long_ones_stay_long(shape, size, small):
    assert open_photo(encode(picture(*shape), "JPEG"), size).size == small


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_looks_as_if_decoded_whole(orientation):
    data = encode(picture(2000, 1500), "JPEG", quality=95, exif=turned(orientation))
    read, whole = open_photo(data, 100), Image.open(io.BytesIO(data)).convert("RGB")
    whole = (whole.rotate(-90, expand=True) if orientation == 6 else whole).resize(read.size, Image.BICUBIC)
    difference = np.abs(np.asarray(read, float) - np.asarray(whole, float))
    assert difference.mean() < 1 and difference.max() < 12


JPEG = encode(picture(400, 300), "JPEG")
PROGRESSIVE = encode(picture(400, 300), "JPEG", progressive=True)
PNG, TEXT = encode(picture(400, 300)), PngImagePlugin.PngInfo()
TEXT.add_text("note", "x" * 2_000_000, zip=True)
MIDDLE, BROKEN = len(PNG) // 2, ("truncated", "unreadable")
spoil = lambda data: data[: len(data) // 2] + b"\0" * (len(data) // 2)
NO_PHOTOS = {  # (file, what may be the reason)
    "nothing": (b"", ["empty"]),
    "text": (b"an apple\n", ["unreadable"]), "zeros": (b"\0" * 1000, ["unreadable"]),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", ["unreadable"]),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", ["unreadable"]),
    "float TIFF": (encode(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), ["unreadable"]),
    "zeros at the end": (spoil(JPEG), ["truncated"]), "zeros, progressive": (spoil(PROGRESSIVE), ["truncated"]),
    "damaged PNG": (PNG[:MIDDLE] + bytes([PNG[MIDDLE] ^ 0xFF]) + PNG[MIDDLE + 1 :], ["unreadable"]),
    "text that Pillow finds too large": (encode(picture(40, 40), pnginfo=TEXT), ["unreadable"]),
    **{f"PNG, cut at {cut}": (PNG[: int(cut * len(PNG))], BROKEN) for cut in (0.1, 0.3, 0.5, 0.9)},
}


@pytest.mark.parametrize("name", NO_PHOTOS)
def test_what_is_no_whole_photo_is_left_out(name):
    data, reasons = NO_PHOTOS[name]
    assert reason(data) in reasons


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE], ids=["baseline", "progressive"])
@pytest.mark.parametrize("cut", [0.01, 0.1, 0.3, 0.5, 0.9, 0.99, -200, -10, -3, -2, -1], ids=str)
def test_a_truncated_jpeg_is_left_out(data, cut):
    open_photo(data, 100)
    assert reason(data[: cut if cut < 0 else int(cut * len(data))]) in BROKEN


def test_a_cut_jpeg_with_a_whole_thumbnail_is_truncated():
    """The end of the thumbnail is not the end of the photo."""
    thumbnail = b"Thumb\0" + encode(picture(40, 30), "JPEG")
    data = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail + JPEG[2:]
    assert open_photo(data, 1000).size == (400, 300) and reason(data[:-2]) == "truncated"


@pytest.mark.parametrize("tail", [b"\0" * 99, b"some text", b"\xff\xda \xff\xda"], ids=["zeros", "text", "a video"])
def test_what_follows_the_end_of_a_jpeg_does_not_matter(tail):
    """Phones append a short video to a photo; any bytes may be in it."""
    assert open_photo(JPEG + tail, 100).tobytes() == open_photo(JPEG, 100).tobytes()


def test_a_row_holds_a_small_jpeg(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(picture(80, 60)))
    row = make_row(("x/a.png", str(tmp_path / "a.png"), [1, 4]), 30)
    stored = Image.open(io.BytesIO(row["image"]["bytes"]))
    assert (stored.format, stored.mode, stored.size) == ("JPEG", "RGB", (40, 30))
    assert row["image"]["path"] == "x/a.png" and row["labels"] == [1, 4]


def test_a_row_is_made_of_bytes_too(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    assert make_row(("a", PNG, [0]), 30) == make_row(("a", str(tmp_path / "a.png"), [0]), 30)


@pytest.mark.parametrize("name, why", [("none.jpg", "missing"), ("folder.jpg", "unreadable")])
def test_a_row_without_a_file_is_left_out(tmp_path, name, why):
    (tmp_path / "folder.jpg").mkdir()
    assert reason(str(tmp_path / name)) == why


@pytest.mark.parametrize("name", ["a.jpg", "a/b/c.jpg", "./a.jpg", "..a.jpg"])
def test_names_inside_the_folder_are_allowed(tmp_path, name):
    assert inside(tmp_path, name) == tmp_path / name


OUTSIDE = ["../a.jpg", "a/../../b.jpg", "a/../b.jpg", "a/..", "/etc/a.jpg", "..\\a.jpg", "a\\b.jpg", "", "."]


@pytest.mark.parametrize("name", [*OUTSIDE, "C:/a.jpg", "C:a.jpg", "c:", "//server/share/a.jpg"])
def test_names_outside_the_folder_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="outside its folder"):
        inside(tmp_path, name)


SEEN, UNSEEN = ["ash", "birch"], ["cedar"]
TRAIN = {"t0": ["ash"], "t1": [], "t2": ["cedar"], "t3": ["birch", "cedar"], "t4": ["birch", "ash"]}
TRAIN |= {"t5": ["elm"], "t6": ["elm", "ash"]}
TEST = {"e0": ["ash"], "e1": [], "e2": ["cedar"], "e3": ["cedar", "birch"], "e4": ["elm"]}
USED = dict.fromkeys(TRAIN, ["ash"])  # as TRAIN, but every image carries a seen label


@pytest.fixture
def root(tmp_path):
    """A folder of photos, a grey of its own in each."""
    (tmp_path / "root").mkdir()
    for i, name in enumerate([*TRAIN, *TEST]):
        Image.new("L", (20, 20), 20 * i).save(tmp_path / "root" / name, "PNG")
    return tmp_path / "root"


def prepared(root, out="out", val=0.2, seed=0, train=TRAIN, test=TEST, max_missing=100, keep_unseen=False, **rest):
    """The prepared data set."""
    shared = {"size": 8, "val": val, "seed": seed, "workers": 1, "max_missing": max_missing, "keep_unseen": keep_unseen}
    args = argparse.Namespace(out=root.parent / out, **shared)
    splits = {"train": list(train.items()), "test": list(test.items())}
    place = {} if rest.get("load") else {"root": root}
    prepare(args, splits, SEEN, UNSEEN, source="trees", licence="none", **place, **rest)
    return load_data(args.out)


def contents(split):
    """{name of the image: indices of its labels}."""
    assert len(set(samples.names(split))) == len(split)
    return {name: row.nonzero().flatten().tolist() for name, row in zip(samples.names(split), split.targets)}


def test_train_keeps_seen_labels_only(root):
    data = prepared(root)
    assert contents(data.train) | contents(data.val) == {"t0": [0], "t3": [1], "t4": [0, 1], "t6": [0]}
    assert (len(data.train), len(data.val)) == (3, 1)  # 0.2 * 4 is nearly 1


@pytest.mark.parametrize("from_stream", [False, True])
def test_unseen_labels_of_train_are_listed_on_demand_and_are_no_targets(root, from_stream):
    load = lambda split, items: [(f"{split} {name}", str(root / name), labels) for name, labels in items]
    train = {name if from_stream else f"./{name}": labels for name, labels in TRAIN.items()}
    data = prepared(root, val=0, train=train, keep_unseen=True, load=load if from_stream else None)
    path = "train t3" if from_stream else "t3"
    assert data.info["unseen_in_train"] == {path: ["cedar"]} and contents(data.train)[path] == [1]
    assert "unseen_in_train" not in prepared(root, out="plain").info


def test_test_keeps_every_image_and_all_its_labels(root):
    assert contents(prepared(root).test) == {"e0": [0], "e1": [], "e2": [2], "e3": [1, 2], "e4": []}


def test_each_name_goes_with_its_photo(root):
    data = prepared(root)
    for split in (data.train, data.val, data.test):
        for i, name in enumerate(contents(split)):
            assert split.image(i).getpixel((0, 0)) == (20 * [*TRAIN, *TEST].index(name),) * 3


def test_what_training_is_not_told_is_counted(root, capsys):
    info, printed = prepared(root).info, capsys.readouterr().out
    assert info["train_without_seen_label"] == 3 and info["train_showing_unseen"] == 1  # t1, t2, t5; t3
    assert "train: 3 images without a seen label are not used; 1 of the used ones also show an unseen label" in printed
    assert info["source"] == "trees" and info["licence"] == "none"


@pytest.mark.parametrize("keep, kept", [("all", [5, 5, 5]), ("relevant", [2, 3, 2])])
def test_both_protocols_can_be_computed_from_test(root, keep, kept):
    data = prepared(root)
    report = zsl_report(torch.rand(5, 3), data.test.targets, data.labels, keep=keep)
    assert report["protocol"]["images_kept"] == dict(zip(("zsl", "gzsl", "seen"), kept))
    assert all(0 < report[part]["map"] <= 100 for part in ("zsl", "gzsl", "seen"))


def test_the_seed_draws_val(root):
    runs = [prepared(root, f"out{i}", 0.43, seed, USED) for i, seed in enumerate([0, 0, 1, 2, 3, 4])]
    drawn = [frozenset(contents(data.val)) for data in runs]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 2 and {len(names) for names in drawn} == {3}


@pytest.mark.parametrize("val, count", [(0, 0), (0.01, 1), (0.15, 1), (0.43, 3), (0.86, 6), (0.99, 6)])
def test_val_is_a_share_of_train_and_leaves_some(root, val, count):
    data = prepared(root, val=val, train=USED)
    assert (len(data.train), len(data.val)) == (7 - count, count)
    assert contents(data.train) | contents(data.val) == {name: [0] for name in USED}


def test_a_single_train_image_leaves_none_for_val(root):
    with pytest.raises(ValueError, match="give --val 0"):
        prepared(root, train={"t0": ["ash"]})
    assert len(prepared(root, train={"t0": ["ash"]}, val=0).train) == 1


def test_missing_files_are_named_and_counted(root, capsys):
    (root / "t0").unlink()
    (root / "e1").unlink()
    (root / "e2").write_bytes(b"")
    data = prepared(root, val=0.5)
    assert "left out: 3 (2 missing, 1 empty)" in capsys.readouterr().out
    assert data.info["left_out"] == {"missing": 2, "empty": 1} and data.info["missing"] == 2
    lines = (data.folder / "left_out.csv").read_text().splitlines()
    assert len(lines) == 4 and any(line in lines for line in ("train,t0,missing,", "val,t0,missing,"))
    assert "test,e1,missing," in lines and "test,e2,empty,it is empty (0 bytes)" in lines


def test_more_missing_than_allowed_is_an_error(root):
    """It names the first, and a file that differs in case only."""
    (root / "e1").rename(root / "E1")
    there = r"the first is e1 of test \(missing, there is E1: write its name so\), .*out.partial/left_out.csv lists all"
    with pytest.raises(ValueError, match=rf"1 of 9 images \(11.1 %\) are missing .*--max-missing 10: {there}"):
        prepared(root, max_missing=10)
    assert not (root.parent / "out").exists()
    assert len(prepared(root, max_missing=12).test) == 4


def test_no_image_at_all_is_an_error_and_the_corrected_call_works(root):
    wrong = [{f"{name}.jpg": labels for name, labels in part.items()} for part in (TRAIN, TEST)]
    with pytest.raises(ValueError, match="no image is left for train and val and test"):
        prepared(root, train=wrong[0], test=wrong[1])
    assert not (root.parent / "out").exists() and len(prepared(root).test) == 5


def test_a_photo_of_two_names_is_one(root):
    """Another spelling, another file of the same pixels, with other metadata."""
    (root / "sub").mkdir()
    photo, grey = Image.effect_noise((30, 20), 50), Image.open(root / "t6")
    photo.save(root / "t0", "PNG")
    photo.save(root / "e0", "TIFF")
    photo.save(root / "sub" / "copy", "GIF", comment=b"a copy")
    grey.save(root / "e4", "BMP")
    data = prepared(root, val=0, train=TRAIN | {"./t4": ["ash"], "sub/copy": ["birch"]})
    assert contents(data.train) == {"t3": [1], "t4": [0, 1]}
    assert contents(data.test) == {"e0": [0, 1], "e1": [], "e2": [2], "e3": [1, 2], "e4": [0]}
    assert data.info["left_out"] == {"duplicate": 4}


def test_a_mended_photo_makes_another_data_set(root):
    """It is not said to be ready without it."""
    whole = (root / "e1").read_bytes()
    (root / "e1").write_bytes(whole[:40])
    assert len(prepared(root).test) == 4
    (root / "e1").write_bytes(whole)
    with pytest.raises(FileExistsError, match="other records"):
        prepared(root)


def test_the_processes_that_read_photos_do_without_torch(tmp_path):
    code = "import sys; from data_prep import photos; photos.make_row(('a', sys.argv[1], []), 8)\n"
    code += "assert 'torch' not in sys.modules and 'torchvision' not in sys.modules"
    (tmp_path / "a.png").write_bytes(PNG)
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], check=True, cwd=ROOT)


@pytest.mark.parametrize("splits", [{"train": {"t1": [], "t2": ["cedar"]}}, {"test": {}}])
def test_an_empty_train_or_test_is_an_error(root, splits):
    with pytest.raises(ValueError, match="both are needed"):
        prepared(root, **splits)


def test_other_labels_are_another_data_set(root):
    prepared(root)
    with pytest.raises(FileExistsError, match="other .*records"):
        prepared(root, test=TEST | {"e0": ["birch"]})


FULL = OSError(28, "No space left")
MESSAGES = {"the same command goes on": KeyboardInterrupt(), "x: odd": ValueError("odd"), "No space left": FULL}


@pytest.mark.parametrize("message", MESSAGES)
def test_an_error_becomes_a_message(monkeypatch, message):
    monkeypatch.setattr("sys.argv", ["x"])
    options = photos.parser("Trees.", "out")
    options.prog = "x"
    with pytest.raises(SystemExit, match=message), photos.run(options):
        raise MESSAGES[message]


def test_info_is_plain_json(root):
    info = json.loads((prepared(root).folder / "labels.json").read_text(encoding="utf8"))
    assert (info["seen"], info["unseen"], info["size"], info["seed"], info["val"]) == (SEEN, UNSEEN, 8, 0, 0.2)
