"""What the tests of data_prep share: image files, scripts that are run, and the contents of a prepared data set."""

import io
import sys

import pytest
from PIL import Image

from clipdec import load_data


def encode(image, kind="PNG", **options):
    """The bytes of an image file."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def red(value, kind="JPEG", size=(16, 12)):
    """The bytes of an image whose red channel is `value`, the others 0."""
    return encode(Image.new("RGB", size, (value, 0, 0)), kind)


def run(script, *options):
    """Call main() of a script with a command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script.__name__, *map(str, options)])
        script.main()


def prepare(script, out, *options):
    """Run a script in one process and open the data set that it wrote."""
    run(script, "--out", out, "--workers", 1, *options)
    return load_data(out)


def names(split):
    """The names of the images."""
    return [cell["path"] for cell in split.rows["image"]]


def reds(split):
    """The red channel of the images, of one corner."""
    return [split.image(i).getpixel((0, 0))[0] for i in range(len(split))]


def refused(message, out, call, *arguments):
    """A call that ends with a message and writes no data set."""
    with pytest.raises(SystemExit, match=message):
        call(*arguments)
    assert not out.exists()


def contents(data, *splits):
    """{name of an image: names of its labels}, of test by default."""
    rows = [row for split in splits or [data.test] for row in zip(names(split), split.targets)]
    return {name: {data.labels.names[i] for i in targets.nonzero().flatten()} for name, targets in rows}


def files(folder):
    """{path in the folder: contents}."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
