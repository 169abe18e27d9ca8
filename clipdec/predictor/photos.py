"""Photos of folders and patterns, and what is kept of their tags: a CSV, side-car files that photo programs read."""

import csv
import glob
import os
import xml.etree.ElementTree as ET
from pathlib import Path

from PIL import Image

from clipdec.images import FORMATS
from clipdec.training.run_folder import whole

COLUMNS = ["image", "labels", "probabilities"]  # data_prep.folder reads the first two
TOOL = "clipdec"
X, RDF = "adobe:ns:meta/", "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC, DIGIKAM = "http://purl.org/dc/elements/1.1/", "http://www.digikam.org/ns/1.0/"
KEYWORDS = {f"{{{DC}}}subject": "Bag", f"{{{DIGIKAM}}}TagsList": "Seq"}  # some programs read the one, some the other
for prefix, address in {"x": X, "rdf": RDF, "dc": DC, "digiKam": DIGIKAM}.items():
    ET.register_namespace(prefix, address)


def found(patterns):
    """Paths of photos, each once: all image files of a folder and of those in it, what a pattern such as photos/*.jpg
    stands for, which not every shell expands, else the text itself.
    """
    kinds = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    paths = []
    for pattern in map(os.path.expanduser, patterns):
        if os.path.isdir(pattern):
            inside = sorted(path for path in Path(pattern).rglob("*") if path.suffix.lower() in kinds)
            paths += [str(path) for path in inside if path.is_file()]
        else:
            paths += [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern)) or [pattern]
    return list(dict.fromkeys(paths))


class TagsFile:
    """A CSV with a line for each photo: its labels and their probabilities, separated by `;`.

    Lines are written one by one. In a file that is there already `done` are the photos that have a whole line; a last
    line that was broken off is taken away.
    Raises ValueError for a file with other columns.
    """

    def __init__(self, path):
        self.path, self.done = Path(path).expanduser(), set()
        if self.path.is_file() and self.path.stat().st_size:
            self._keep_whole_lines()
            with open(self.path, encoding="utf-8", newline="") as file:
                rows = csv.DictReader(file)
                if rows.fieldnames != COLUMNS:
                    raise ValueError(f"{path} has other columns than {','.join(COLUMNS)}: give another file")
                self.done = {row["image"] for row in rows}
        else:
            self._append(COLUMNS)

    def _keep_whole_lines(self):
        with open(self.path, "rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)

    def add(self, photo, tags):
        """tags: [(label, probability)]"""
        self._append([photo, ";".join(name for name, _ in tags), ";".join(f"{p:.4f}" for _, p in tags)])

    def _append(self, cells):
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(cells)


def write_sidecar(photo, names):
    """Write PHOTO.xmp beside a photo, with labels as keywords of XMP (KEYWORDS); the photo is not touched.

    Raises FileExistsError if another program wrote the side-car: what it holds would be lost.
    """
    path = Path(f"{photo}.xmp")
    if path.exists() and f'xmptk="{TOOL}"' not in path.read_text(encoding="utf-8", errors="replace"):
        raise FileExistsError(f"{path} is another program's and stays as it is: move it, or write the tags there")
    meta = ET.Element(f"{{{X}}}xmpmeta", {f"{{{X}}}xmptk": TOOL})
    about = ET.SubElement(ET.SubElement(meta, f"{{{RDF}}}RDF"), f"{{{RDF}}}Description", {f"{{{RDF}}}about": ""})
    for keyword, kind in KEYWORDS.items():
        listed = ET.SubElement(ET.SubElement(about, keyword), f"{{{RDF}}}{kind}")
        for name in names:
            ET.SubElement(listed, f"{{{RDF}}}li").text = name
    with whole(path) as aside:
        ET.ElementTree(meta).write(aside, encoding="utf-8", xml_declaration=True)
