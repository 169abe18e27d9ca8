"""Label lists: text files of one name a line."""

from pathlib import Path

SPLITS = Path(__file__).parent / "splits"


def read_names(path):
    """Names of a list file in order, and of each the last `# heading` above it. Raises ValueError if there is none."""
    names, headings, heading = [], {}, ""
    for line in Path(path).read_text(encoding="utf-8-sig").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.strip():
            names.append(line.strip())
            headings[line.strip()] = heading
    if not names:
        raise ValueError(f"{path} holds no name: write one a line")
    return names, headings
