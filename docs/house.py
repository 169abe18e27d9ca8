"""Draw docs/house.png: the rooms of the repository, the lines of their files, and which room imports which."""

import ast
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
PLACES = {  # room: (left, bottom, width, height); core is the paper, at the bottom
    "notebook": (0.1, 5.4, 2.1, 1.6), "export": (2.5, 5.4, 1.9, 1.6), "predictor": (1.2, 4.2, 2.1, 0.8),
    "comparison": (4.6, 4.2, 2.7, 1.8), "training": (1.6, 1.6, 5.2, 2.2), "reference": (7.6, 1.6, 2.0, 0.8),
    "core": (0.3, 0.1, 9.3, 1.1), "data_prep": (7.6, 3.0, 2.0, 4.0),
}  # fmt: skip
TITLES = {"core": "clipdec/: the paper", "data_prep": "data_prep/"}
SKIPPED = {"__init__.py", "__main__.py"}


def files(room):
    folder = ROOT / {"core": "clipdec", "data_prep": "data_prep"}.get(room, f"clipdec/{room}")
    found = folder.glob("*.py") if room == "core" else folder.rglob("*.py")
    return [(path, len(path.read_text(encoding="utf8").splitlines())) for path in sorted(found)]


def imported(room):
    """The other rooms that a room imports."""
    found = set()
    for path, _ in files(room):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("clipdec"):
                parts = [*node.module.split("."), ""]
                found.add(parts[1] if parts[1] in PLACES else "core")
    return found - {room}


def edge(room, other):
    """Where an arrow leaves a room and where it comes in."""
    left, bottom, width, _ = PLACES[room]
    to_left, to_bottom, to_width, to_height = PLACES[other]
    x = left + width / 2
    return (x, bottom), (min(max(x, to_left + 0.3), to_left + to_width - 0.3), to_bottom + to_height)


figure, axis = plt.subplots(figsize=(9.8, 7.15), layout="constrained")
axis.set(xlim=(0, 9.8), ylim=(0, 7.15))
axis.axis("off")
for room, (left, bottom, width, height) in PLACES.items():
    colour = "#cfe3f2" if room == "core" else "#f3f3f3"
    axis.add_patch(plt.Rectangle((left, bottom), width, height, facecolor=colour, edgecolor="0.4", zorder=2))
    title = f"{TITLES.get(room, room + '/')}, {sum(lines for _, lines in files(room)):,} lines"
    axis.text(left + 0.1, bottom + height - 0.1, title, fontsize=9, weight="bold", va="top", zorder=3)
    names = [f"{path.stem} {lines}" for path, lines in files(room) if path.name not in SKIPPED]
    columns = max(1, int(width / 1.5))
    for number, name in enumerate(names):
        row, column = divmod(number, columns)
        x, y = left + 0.1 + column * (width - 0.1) / columns, bottom + height - 0.42 - row * 0.21
        axis.text(x, y, name, fontsize=7.5, va="top", zorder=3)
    for other in imported(room) if room != "core" else ():
        axis.annotate("", *edge(room, other)[::-1], arrowprops={"arrowstyle": "->", "color": "0.45"}, zorder=1)
figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)
