"""Draw docs/house.png: the rooms of the repository, the lines of their files, and which room imports which."""

import ast
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
PLACES = {  # room: (left, bottom, width, height); core is the paper, at the bottom
    "notebook": (0.1, 5.8, 3.1, 2.05), "export": (3.3, 6.3, 1.1, 1.0), "share": (4.5, 6.3, 1.2, 1.0),
    "predictor": (1.6, 4.15, 3.0, 1.3), "comparison": (4.85, 4.15, 2.6, 2.0),
    "training": (0.9, 1.65, 5.9, 2.15), "reference": (7.6, 1.65, 1.65, 0.8),
    "core": (0.3, 0.1, 9.3, 1.15), "data_prep": (7.6, 2.8, 2.1, 5.05),
}  # fmt: skip
AT = {  # where an arrow goes down, if not in the middle of what the two rooms share
    ("notebook", "core"): 0.6, ("notebook", "training"): 1.3, ("notebook", "predictor"): 1.85,
    ("predictor", "core"): 3.3, ("predictor", "training"): 2.0, ("export", "predictor"): 3.3,
    ("export", "training"): 3.9, ("share", "predictor"): 4.55, ("share", "training"): 4.66, ("share", "core"): 4.78,
    ("training", "core"): 2.4, ("comparison", "core"): 7.1, ("data_prep", "core"): 9.45,
}  # fmt: skip
TITLES = {"core": "clipdec/: the paper", "data_prep": "data_prep/"}
SKIPPED = {"__init__.py", "__main__.py"}


def folder(room):
    return ROOT / {"core": "clipdec", "data_prep": "data_prep"}.get(room, f"clipdec/{room}")


def lines(*paths):
    return sum(len(path.read_text(encoding="utf8").splitlines()) for path in paths)


def files(room):
    """Its files; those of its folders too, but for the core, whose folders are the other rooms."""
    return sorted(folder(room).glob("*.py") if room == "core" else folder(room).rglob("*.py"))


def entries(room):
    """What is listed of a room: each file with its lines; and a folder as one, which has a row of its own."""
    paths = files(room)
    own = [path for path in paths if path.parent == folder(room) and path.name not in SKIPPED]
    inner = {path.parent for path in paths} - {folder(room)}
    folders = [(path.name, [file for file in paths if file.parent == path]) for path in sorted(inner)]
    return [f"{path.stem} {lines(path)}" for path in own], [
        f"{name}/ {lines(*inside)}, {sum(file.name not in SKIPPED for file in inside)} files"
        for name, inside in folders
    ]


def imported(room):
    """The other rooms that a room imports."""
    found = set()
    for path in files(room):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("clipdec"):
                parts = [*node.module.split("."), ""]
                found.add(parts[1] if parts[1] in PLACES else "core")
    return found - {room}


def arrow(room, other):
    """Where an arrow comes in, and where it leaves: straight down, through what both rooms share."""
    left, bottom, width, _ = PLACES[room]
    to_left, to_bottom, to_width, to_height = PLACES[other]
    middle = (max(left, to_left) + min(left + width, to_left + to_width)) / 2
    x = AT.get((room, other), middle)
    return (x, to_bottom + to_height), (x, bottom)


figure, axis = plt.subplots(figsize=(9.8, 7.95), layout="constrained")
axis.set(xlim=(0, 9.8), ylim=(0, 7.95))
axis.axis("off")
for room, (left, bottom, width, height) in PLACES.items():
    colour = "#cfe3f2" if room == "core" else "#f3f3f3"
    axis.add_patch(plt.Rectangle((left, bottom), width, height, facecolor=colour, edgecolor="0.4", zorder=2))
    title = f"{TITLES.get(room, room + '/')}, {lines(*files(room)):,}"
    title += " lines" if room == "core" else ""
    axis.text(left + 0.1, bottom + height - 0.1, title, fontsize=10.5, weight="bold", va="top", zorder=3)
    columns, (names, folders) = max(1, int(width / 1.3)), entries(room)
    cells = [divmod(number, columns) for number in range(len(names))]
    cells += [(-(-len(names) // columns) + number, 0) for number in range(len(folders))]
    for (row, column), name in zip(cells, names + folders):
        x, y = left + 0.1 + column * (width - 0.1) / columns, bottom + height - 0.45 - row * 0.25
        axis.text(x, y, name, fontsize=9.5, va="top", zorder=3)
    for other in imported(room) if room != "core" else ():
        axis.annotate("", *arrow(room, other), arrowprops={"arrowstyle": "->", "color": "0.35"}, zorder=1)
figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)
