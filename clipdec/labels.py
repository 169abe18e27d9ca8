"""Label names: how they are read and compared, the seen and the unseen ones, and an image's sentence."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

NO_LABEL = {"", "-", "--", "–", "—", "nan", "none", "null", "n/a"}  # written where there is no label
# spaces without width, soft hyphen, marks of writing direction; not joiners, which are spelling
INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad\u200e\u200f\u202a-\u202e\u2066-\u2069]")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # no part of a name, nor of XML


def clean_name(name):
    """A name as it is kept: in Unicode's form NFC, one space between words, nothing invisible."""
    return " ".join(unicodedata.normalize("NFC", INVISIBLE.sub("", name)).split())


def same_name(name):
    """What names are compared by: two of one key are one label, as a text tower gives them one vector."""
    return clean_name(clean_name(name).casefold())


def read_text(path):
    """The text of a file in UTF-8, UTF-16 with its mark, or else Windows' cp1252. Raises ValueError for other bytes."""
    data = Path(path).expanduser().read_bytes()
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ["utf-16"] if utf16 else ["utf-8-sig", "cp1252"]:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            pass
    raise ValueError(f"{path} is not a text in UTF-8, UTF-16 or cp1252: save it as UTF-8")


def read_names(path):
    """Names of a list file in order, and of each its `# heading`. Raises ValueError for no name, or one named twice."""
    names, headings, heading = {}, {}, ""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif name := clean_name(line):
            if other := names.get(same_name(name)):
                raise ValueError(f"{path}, line {number}: {name!r} is there already, as {other!r}: name it once")
            names[same_name(name)], headings[name] = name, heading
    if not names:
        raise ValueError(f"{path} holds no name: write one a line")
    return [*names.values()], headings


@dataclass(frozen=True)
class LabelSpace:
    """The seen labels, which training images carry, and the unseen ones, which none does.

    A label's index is its place in `names`: seen first, then unseen. Names are kept as `clean_name` has them.
    Raises ValueError for names that are empty, or one by `same_name`.
    """

    seen: list[str]
    unseen: list[str]

    def __post_init__(self):
        known = {}  # {what names are compared by: (name, part)}
        for part in ("seen", "unseen"):
            for i, name in enumerate(getattr(self, part)):
                if not isinstance(name, str) or same_name(name) in NO_LABEL or CONTROL.search(clean_name(name)):
                    raise ValueError(f"label {i} of the {part} labels, {name!r}, is no name: give every label one")
                other, its = known.setdefault(same_name(name), (name, None))
                if its:
                    both = name if name == other else f"{name!r} and {other!r}"
                    where = f"repeated among the {part} labels" if its == part else "both seen and unseen"
                    raise ValueError(f"{where}: {both}: name each label once, in one list")
                known[same_name(name)] = name, part
            object.__setattr__(self, part, [clean_name(name) for name in getattr(self, part)])
        object.__setattr__(self, "_kinds", {key: part for key, (_, part) in known.items()})

    @property
    def names(self):
        return self.seen + self.unseen

    def kind(self, name):
        """"seen", "unseen", or "new" for a name that is not of this space."""
        return self._kinds.get(same_name(name), "new")

    @property
    def seen_index(self):
        """Indices of the seen labels, [len(seen)]."""
        import torch  # here: preparing data needs names, and no torch in any of its processes

        return torch.arange(len(self.seen))

    @property
    def unseen_index(self):
        """Indices of the unseen labels, [len(unseen)]."""
        import torch

        return torch.arange(len(self.seen), len(self.names))


def join_names(names):
    """"sky, car and road": the names of one image as its caption lists them."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def sentences(targets, names, prompt="a photo of {}"):
    """Each image's sentence, "a photo of sky, car and road": targets [M, L] are those of the labels `names` [L]."""
    listed = ([names[i] for i in row.nonzero().flatten()] for row in targets)
    return [prompt.replace("{}", join_names(each)) for each in listed]
