"""Photos of folders and patterns, and what is kept of their tags: a CSV, side-car files that photo programs read."""

import csv
import glob
import io
import os
import xml.etree.ElementTree as ET
from pathlib import Path

from PIL import Image

from clipdec.images import FORMATS
from clipdec.labels import clean_name
from clipdec.training.run_folder import whole

csv.field_size_limit(2**31 - 1)  # a cell holds all labels of a photo
COLUMNS = ["image", "labels", "probabilities", "asked"]  # data_prep.folder reads the first two
HEADER = (",".join(COLUMNS) + "\n").encode()
TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # a path may be any bytes
TOOL = "clipdec"
X, RDF = "adobe:ns:meta/", "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC, DIGIKAM = "http://purl.org/dc/elements/1.1/", "http://www.digikam.org/ns/1.0/"
KEYWORDS = {f"{{{DC}}}subject": "Bag", f"{{{DIGIKAM}}}TagsList": "Seq"}  # some programs read the one, some the other
for prefix, address in {"x": X, "rdf": RDF, "dc": DC, "digiKam": DIGIKAM}.items():
    ET.register_namespace(prefix, address)


def found(patterns):
    """Paths of photos, each once: all image files of a folder and of those in it but for hidden ones, what a pattern
    such as photos/*.jpg stands for, which not every shell expands, else the text itself.

    Raises ValueError for a folder without image files.
    """
    paths = {}
    for pattern in map(os.path.expanduser, patterns):
        if os.path.isdir(pattern):
            here = image_files(pattern)
        else:
            expanded = [] if os.path.exists(pattern) else sorted(filter(os.path.isfile, glob.glob(pattern)))
            here = expanded or [pattern]
        for path in here:
            paths.setdefault(os.path.realpath(path), path)
    return list(paths.values())


def image_files(folder):
    kinds = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    kinds |= {".heic", ".heif"}  # without their extra, opening one says what is missing
    inside = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in kinds and path.is_file())
    shown = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not shown:
        raise ValueError(f"there is no image file in {folder}")
    return [str(path) for path in shown]


class TagsFile:
    """A CSV with a line for each photo: its labels and their probabilities, separated by `;`, and what was asked.

    Lines are written one by one, and one that was broken off is taken away. A file that is there already goes on if it
    is such a file and `asked`, a short text for the model and the question, is the same in all of it.
    Raises ValueError for any other file, which stays as it is.
    """

    def __init__(self, path, asked):
        self.path, self.asked, self.rows = Path(path).expanduser(), asked, {}
        data = self.path.read_bytes() if self.path.is_file() else b""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if HEADER.startswith(data):  # new, empty, or stopped at its first line
            self.path.write_bytes(HEADER)
        else:
            self._go_on(data)

    def _go_on(self, data):
        end = data.rfind(b"\n") + 1
        rows = csv.DictReader(io.StringIO(data[:end].decode(**TEXT).removeprefix("\ufeff"), newline=""))
        if rows.fieldnames != COLUMNS:
            raise ValueError(f"{self.path} has other columns than {','.join(COLUMNS)}: give another file")
        for row in rows:
            if row["asked"] != self.asked:
                raise ValueError(f"{self.path} has tags by another model or of another question: give another file")
            names = map(clean_name, row["labels"].split(";"))
            self.rows[os.path.realpath(row["image"])] = [name for name in names if name]
        with open(self.path, "rb+") as file:
            file.truncate(end)

    def tags(self, photo):
        """The labels of a photo that has its line, else None."""
        return self.rows.get(os.path.realpath(photo))

    def add(self, photo, tags):
        """tags: [(label, probability)]"""
        cells = [photo, ";".join(name for name, _ in tags), ";".join(f"{p:.4g}" for _, p in tags), self.asked]
        with open(self.path, "a", newline="", **TEXT) as file:
            csv.writer(file, lineterminator="\n").writerow(cells)


def sidecar(photo):
    return Path(f"{photo}.xmp")


def write_sidecar(photo, names):
    """Write PHOTO.xmp beside a photo, with labels as keywords of XMP (KEYWORDS); the photo is not touched.

    Raises FileExistsError if another program wrote the side-car: what it holds would be lost.
    """
    path = sidecar(photo)
    if path.exists() and f'xmptk="{TOOL}"' not in path.read_text(encoding="utf-8", errors="replace"):
        raise FileExistsError(f"{path} is another program's and stays as it is: move it, or write the tags there")
    meta = ET.Element(f"{{{X}}}xmpmeta", {f"{{{X}}}xmptk": TOOL})
    about = ET.SubElement(ET.SubElement(meta, f"{{{RDF}}}RDF"), f"{{{RDF}}}Description", {f"{{{RDF}}}about": ""})
    for keyword, kind in KEYWORDS.items():
        listed = ET.SubElement(ET.SubElement(about, keyword), f"{{{RDF}}}{kind}")
        for name in names:
            ET.SubElement(listed, f"{{{RDF}}}li").text = name
    text = ET.tostring(meta, encoding="utf-8", xml_declaration=True)
    if not path.is_file() or path.read_bytes() != text:
        with whole(path) as aside:
            aside.write_bytes(text)
