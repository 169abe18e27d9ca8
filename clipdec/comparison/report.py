"""Tables in Markdown of the JSON that `clipdec.comparison` writes."""

import json
from statistics import fmean, stdev

from clipdec.comparison.statistics import is_difference
from clipdec.training.config import AS_AUTHOR
from clipdec.training.report import dashed, table

NAMES = {
    "raw_clip": "raw CLIP, one prompt", "raw_clip_ensemble": "raw CLIP, mean of four prompts",
    "raw_clip_softmax": "raw CLIP, softmax over all labels", "raw_clip_patch": "raw CLIP, best patch",
    "raw_clip_5": "raw CLIP, softmax over the seen labels, 5 passes",
    "raw_clip_windows": "raw CLIP, softmax over the seen labels, 26 passes",
    "mask_clip": "MaskCLIP, value path", "tag_clip": "TagCLIP, coarse step",
    "piaa": "PIAA, unlabelled training images", "sparc": "SPARC, normalisation", "conse": "CONSE, word vectors",
    "label_em": "LabelEM", "fast0tag": "Fast0Tag", "linear_patch": "linear map of tokens, softmax pooling",
    "mlp_patch": "MLP on tokens, softmax pooling", "attention_per_label": "attention per label", "sdl": "SDL",
    "lesa": "LESA", "biam": "BiAM", "mkt": "MKT", "dualcoop": "DualCoOp",
    "recover_and_match": "Recover-and-Match, matching", "ml_decoder": "ML-Decoder, word vectors",
    "clip_decoder_author": "CLIP-Decoder, the author's points", "clip_decoder": "CLIP-Decoder, the paper's head",
    "best": "CLIP-Decoder, this repository's head",
}  # fmt: skip
PASSES = {"_5": "5 passes", "_windows": "26 passes"}  # of the tower an image, by the end of a system's name
ONCE = {"raw_clip", "raw_clip_ensemble", "raw_clip_patch", "mask_clip", "tag_clip", "conse"}
ONCE |= {"label_em", "fast0tag", "raw_clip_5", "raw_clip_windows", "ml_decoder", "clip_decoder_author"}
NAMES |= {f"{k}{end}": f"{v}, {n}" for k, v in NAMES.items() if k not in ONCE for end, n in PASSES.items()}
TASKS = "zsl", "gzsl"
EQUAL = """\
AP is lower for a rarer label at one quality of ranking. In the columns *equal* the images without a label are weighed \
so that every label is in the same share of them, that of the unseen labels on average. This takes the share out, not \
the number: AP of a label with one or two positives is too high even so (notebook 05)."""
BELIEVED = """\
Calibrated on the seen labels of val, judged on test. *Skill* is how much lower the log-loss is than that of the base \
rate everywhere, in percent. That base rate is read from test: 0 is as good as to know it and nothing else. *Gap* is \
the one between probability and share, in points, over the pairs of image and label with a probability of 0.1 or more; \
*pairs* is their part of all pairs, in percent."""
INTERVAL = """\
Paired by seed and image. The interval is the 95 % one of the mean if seeds (Student's t) and test images (bootstrap, \
500 draws) were drawn again; one seed gives none. In bold where it excludes 0: only that is called a difference."""
ABOUT = """\
Training-free: from CLIP alone, PIAA from unlabelled training images too. Transductive: from all test images at once. \
Trained on seen labels: all by one protocol (`clipdec/comparison/protocol.py`), in as many steps. The highest mean of \
a column is in bold."""
COSTS = """\
Every system has our image tower in place of its own, which is named, so a row says what its head is worth, not what \
its paper reports. Tower passes are those of an image; their seconds are left out where what they give is kept. \
NUS-WIDE: mAP as published, where its source could be read."""


def signed(value):
    """"+1.2", or a dash for a figure that does not exist."""
    return dashed(value, "+.1f")


def span(low, high):
    """"-0.1 to +1.2", or a dash."""
    return dashed(None) if low is None else f"{signed(low)} to {signed(high)}"


def mean_sd(values):
    """"41.2 ± 0.8": mean and standard deviation over the seeds; of one value, or equal ones, the value alone; a dash
    where the figure does not exist.
    """
    if None in values:
        return dashed(None)
    spread = stdev(values) if len(values) > 1 else 0
    return f"{fmean(values):.1f} ± {spread:.1f}" if spread > 1e-9 else f"{fmean(values):.1f}"


def by(rows, key):
    """[(value, its rows)] in the order in which the values come up."""
    return [(value, [row for row in rows if row[key] == value]) for value in dict.fromkeys(row[key] for row in rows)]


def figures(rows, kind=""):
    """{figure: its heading} of the rows, those that begin with `kind`: mAP, and P, R and F1 at the K of the data."""
    usual = "map p@3 r@3 f1@3 p@5 r@5 f1@5".split()
    found = next((row[task] for row in rows for task in TASKS if row[task]), usual)
    return {name: "mAP" if name == "map" else name.upper() for name in found if name.startswith(kind)}


def system_table(rows, task):
    """A task's figures of every system, mean and standard deviation over the seeds."""
    columns = figures(rows)
    cells = lambda each: [mean_sd([row[task].get(figure) for row in each]) for figure in columns]
    return table(["", *columns.values()], [[NAMES[name], *cells(each)] for name, each in by(rows, "system")])


def bench_table(rows):
    """Systems side by side, and what they learned from."""
    cells = [([NAMES[name], each[0]["block"]], each) for name, each in by(rows, "system")]
    return side_by_side(["", "learned from"], cells)


def side_by_side(heads, systems):
    """Figures of systems, the highest mean of each column in bold.

    Args: heads of the columns before; systems, [(cells of these columns, its rows, one a seed)].
    """
    rows, lines = [row for _, each in systems for row in each], [list(cells) for cells, _ in systems]
    columns = [(task, "map") for task in (*TASKS, "seen")]
    columns += [(task, figure) for task in TASKS for figure in [*figures(rows, "f1")][:1]]
    for task, figure in columns:
        found = [[row[task].get(figure) for row in each] for _, each in systems]
        means = [-1 if None in values else fmean(values) for values in found]
        for line, values, mean in zip(lines, found, means):
            mark = "**" if mean == max(means) >= 0 else ""
            line.append(f"{mark}{mean_sd(values)}{mark}")
    names = figures(rows)
    heads = [*heads, *(f"{task.upper() if task in TASKS else task} {names[figure]}" for task, figure in columns)]
    return table(heads, lines)


def cost_table(rows):
    """A system's tower elsewhere, what it takes here, and the mAP that its authors or tables report on NUS-WIDE."""
    head = ["", "its own tower", "tower passes", "weights", "training, s", "scoring, s", "NUS-WIDE ZSL", "GZSL"]
    lines = []
    for name, each in by(rows, "system"):
        first = each[0]
        seconds = [mean_sd([row[f"{what}_seconds"] for row in each]) for what in ("training", "scoring")]
        published = [dashed(first.get("published", {}).get(task), ".1f") for task in TASKS]
        takes = str(first["passes"]), f"{first['weights']:,}"
        lines.append([NAMES[name], first.get("own_tower", ""), *takes, *seconds, *published])
    return table(head, lines)


def measured(found):
    """[mean, interval] of a difference, the mean in bold if it may be called a difference."""
    return [f"**{signed(found['mean'])}**" if is_difference(found) else signed(found["mean"]), span(*found["interval"])]


def difference_table(differences):
    """Differences of mAP between systems, with their intervals."""
    title = lambda a, b: f"{NAMES[a]} − {NAMES[b]}"
    cells = lambda d: [measured(d)[0], span(d["min"], d["max"]), measured(d)[1]]
    head = ["", *(f"{task} {what}" for task in ("ZSL", "GZSL") for what in ("mean", "by seed", "95 % interval"))]
    return table(head, [[title(*d["systems"]), *cells(d["zsl"]), *cells(d["gzsl"])] for d in differences])


def calibration_table(rows):
    """GZSL F1 before and after an offset between seen and unseen labels."""
    parts, columns, lines = ("gzsl", "gzsl_calibrated"), figures(rows, "f1"), []
    for name, each in by([row for row in rows if "gzsl_calibrated" in row], "system"):
        cells = [mean_sd([row[part].get(figure) for row in each]) for figure in columns for part in parts]
        lines.append([NAMES[name], *cells, mean_sd([row["seen_offset"] for row in each])])
    heads = [head for name in columns.values() for head in (name, "calibrated")]
    return table(["", *heads, "offset, logits"], lines)


def prevalence_table(rows):
    """mAP of unseen, seen and all labels, as it is and where all labels are equally frequent."""
    parts, lines = {"zsl": "unseen", "seen": "seen", "gzsl": "all"}, []
    for name, each in by([row for row in rows if row.get("equal_prevalence")], "system"):
        cells = [mean_sd([row[part].get("map") for row in each]) for part in parts]
        equal = [mean_sd([row["equal_prevalence"][part] for row in each]) for part in parts]
        lines.append([NAMES[name], *cells, *equal])
    return table(["", *parts.values(), *(f"{kind}, equal" for kind in parts.values())], lines)


def reliability_table(rows):
    """How far the calibrated probabilities of seen and of unseen labels can be believed on test."""
    figures = {"log_loss_skill": "skill", "gap_from_0.1": "gap", "pairs_from_0.1": "pairs"}
    kinds, lines = ("seen", "unseen"), []
    for name, each in by([row for row in rows if "reliability" in row], "system"):
        found = [[row["reliability"].get(kind, {}).get(figure) for row in each] for kind in kinds for figure in figures]
        lines.append([NAMES[name], *map(mean_sd, found)])
    return table(["", *(f"{kind}: {figure}" for kind in kinds for figure in figures.values())], lines)


def ablation_table(group, ablations):
    """One group of ablations: mAP on val of the labels held out and of those in training, and on test ZSL and GZSL mAP,
    the difference to the group's first setting, and its 95 % interval.
    """
    rows, differences = ([d for d in ablations[part] if d["group"] == group] for part in ("rows", "differences"))
    found = {(d["setting"], t): measured(d[t]) for d in differences for t in TASKS}
    lines = []
    for setting, each in by(rows, "setting"):
        cells = [[mean_sd([row[t].get("map") for row in each]), *found.get((setting, t), ["", ""])] for t in TASKS]
        val = [mean_sd([row["val"].get(part) for row in each]) for part in ("held", "seen")]
        lines.append([f"`{setting}`", *val, *cells[0], *cells[1]])
    heads = [[f"{task} mAP", "difference", "95 % interval"] for task in ("ZSL", "GZSL")]
    return table(["", "val, held out", "val, in training", *heads[0], *heads[1]], lines)


def write_report(out):
    """Write OUT.md of OUT.json, with OUT_summary.json, OUT_single.json and OUT_ablations.json, if they are there."""
    paths = [out.with_name(f"{out.name}{part}.json") for part in ("", "_summary", "_single", "_ablations")]
    rows, summary, single, ablations = (json.loads(p.read_text("utf8")) if p.is_file() else None for p in paths)
    text = [f"# {'Methods side by side' if rows else 'One change at a time'}: {out.name}"]
    text += [*_systems(rows, summary), *_commands(rows, summary)] if rows else []
    text += _single_objects(single) if single else []
    text += [*_ablations(ablations), *_commands(ablations["rows"], ablations)] if ablations else []
    path = out.with_name(f"{out.name}.md")
    path.write_text("\n\n".join(text) + "\n", encoding="utf8")
    print(path)


def _systems(rows, summary):
    seeds, protocol = len(by(rows, "seed")), rows[0]["protocol"]
    author = [row["as_author"] for row in rows if "as_author" in row]
    but = ", except between plain and averaged weights in the row of the author's points" if author else ""
    about = f"""\
Written by `python -m clipdec.comparison`, which `make results` and `make results-author` run; its `--help` says how \
on other data. Figures in percent, mean ± standard deviation over {seeds} seeds. {protocol["test_images"]} test \
images, keep={protocol["keep"]}, {protocol["labels_without_positives"]} labels without a positive left out. \
Epochs, weights and offsets are chosen on val, by labels held out of the training and labels in it; test labels \
choose nothing{but}."""
    if missing := [task.upper() for task in TASKS if rows[0][task].get("map") is None]:
        about += f" No test image carries a label that {' or '.join(missing)} ranks: its figures do not exist."
    if author:
        about += f"""

The row of the author's points is the paper's head with {points(author[0])}. It trains on all seen labels, and \
so at one learning rate, as val cannot choose for it; all else, optimiser, width, batch and sampled labels too, is as \
in the other rows."""
    title = lambda passes: f"## {passes} tower pass{'es' * (passes > 1)} an image"
    benches = [part for n, each in sorted(by(rows, "passes")) for part in (title(n), bench_table(each))]
    return [
        about, ABOUT, *benches,
        "## ZSL: unseen labels ranked", system_table(rows, "zsl"),
        "## GZSL: seen and unseen labels in one list", system_table(rows, "gzsl"),
        "## What each takes", COSTS, cost_table(rows),
        "## Differences of mAP", INTERVAL, difference_table(summary["differences"]),
        "## mAP at equal prevalence", EQUAL, prevalence_table(rows),
        "## GZSL with an offset between seen and unseen labels",
        "mAP does not change: it ranks images, one label at a time.", calibration_table(rows),
        "## Probabilities", BELIEVED, reliability_table(rows),
    ]  # fmt: skip


def _single_objects(rows):
    return ["## Where raw CLIP is strong: scenes of one object",
            "The same systems trained and tested on scenes with a single object.",
            "ZSL", system_table(rows, "zsl"), "GZSL", system_table(rows, "gzsl")]  # fmt: skip


def _ablations(ablations):
    rows, seeds = ablations["rows"], len(by(ablations["rows"], "seed"))
    about = f"""One change at a time, {rows[0]["epochs"]} epochs, {seeds} seed{"s" * (seeds > 1)}. Differences are to \
the group's first row. {INTERVAL} All runs share \
{_listed(ablations["base"]) or "the settings of the preset"}."""
    if followed := [row["as_author"] for row in rows if row["setting"] == "all"]:
        about += f" `all` follows {points(followed[0])}."
    tables = [part for group, _ in by(rows, "group") for part in (f"### {group}", ablation_table(group, ablations))]
    return ["## Ablations", about, *tables]


def points(followed):
    """Which of the author's points a run follows, in words."""
    lacking = [point for point in AS_AUTHOR if point not in followed]
    but = f": all but {', '.join(lacking)}" if lacking else ""
    return f"{len(followed)} of the {len(AS_AUTHOR)} points of `as_author`{but}"


def _listed(settings):
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _commands(rows, summary):
    commands = "\n".join(["```", *dict.fromkeys(row["command"] for row in rows if row["seed"] == 0), "```"])
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    about = f"Device: {summary['device']}. Threads of a run: {summary['threads']}. Versions: {versions}."
    return ["## Commands", "Each row above again, for seed 0:", commands, about]
