"""Tables in Markdown of the JSON that `clipdec.comparison` writes."""

import json
from itertools import groupby
from statistics import fmean, stdev

NAMES = {
    "raw_clip": "raw CLIP, one prompt", "raw_clip_ensemble": "raw CLIP, mean of four prompts", "raw_clip_softmax": "raw CLIP, softmax over all labels",
    "raw_clip_patch": "raw CLIP, best patch", "conse": "CONSE, word vectors", "ml_decoder": "ML-Decoder, word vectors",
    "clip_decoder_author": "CLIP-Decoder, the author's code", "clip_decoder": "CLIP-Decoder, the paper's head", "best": "CLIP-Decoder, this repository's head",
}  # fmt: skip
FIGURES = ("map", "p@3", "r@3", "f1@3", "p@5", "r@5", "f1@5")
HEADINGS = ("mAP", "P@3", "R@3", "F1@3", "P@5", "R@5", "F1@5")


def table(head, rows):
    """A Markdown table; the first column is text, the others are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def mean_sd(values):
    """"41.2 ± 0.8": mean and standard deviation over the seeds; of one value, or where all are equal, the value alone."""
    spread = stdev(values) if len(values) > 1 else 0
    return f"{fmean(values):.1f} ± {spread:.1f}" if spread > 1e-9 else f"{fmean(values):.1f}"


def system_table(rows, task):
    """A task's figures of every system, mean and standard deviation over the seeds."""
    return table(["", *HEADINGS], [[NAMES[name], *(mean_sd([r[task][f] for r in each]) for f in FIGURES)] for name, each in by(rows, "system")])


def difference_table(differences):
    """Differences of mAP between systems, with their intervals."""
    cell = lambda d: [f"{d['mean']:+.1f}", span((d["min"], d["max"])), span(d["interval"])]
    head = ["", *(f"{task} {what}" for task in ("ZSL", "GZSL") for what in ("mean", "by seed", "95 % interval"))]
    return table(head, [[f"{NAMES[d['systems'][0]]} − {NAMES[d['systems'][1]]}", *cell(d["zsl"]), *cell(d["gzsl"])] for d in differences])


def calibration_table(rows):
    """GZSL F1 before and after an offset between seen and unseen labels."""
    lines = []
    for name, each in by([r for r in rows if "gzsl_calibrated" in r], "system"):
        cells = [mean_sd([r[part][f] for r in each]) for f in ("f1@3", "f1@5") for part in ("gzsl", "gzsl_calibrated")]
        lines.append([NAMES[name], *cells, mean_sd([r["seen_offset"] for r in each])])
    return table(["", "F1@3", "calibrated", "F1@5", "calibrated", "offset, logits"], lines)


def ablation_table(group, ablations):
    """One group of ablations: mAP, the difference to the group's first setting, and its 95 % interval."""
    rows = [row for row in ablations["rows"] if row["group"] == group]
    differences = {d["setting"]: d for d in ablations["differences"] if d["group"] == group}
    lines = []
    for setting, each in by(rows, "setting"):
        cells = []
        for task in ("zsl", "gzsl"):
            d = differences.get(setting, {}).get(task)
            cells += [mean_sd([r[task]["map"] for r in each]), *([f"{d['mean']:+.1f}", span(d["interval"])] if d else ["", ""])]
        lines.append([f"`{setting}`", *cells])
    return table(["", "ZSL mAP", "difference", "95 % interval", "GZSL mAP", "difference", "95 % interval"], lines)


def span(pair):
    return f"{pair[0]:+.1f} to {pair[1]:+.1f}"


def by(rows, key):
    """[(value, its rows)] in the order in which the values come up."""
    order = list(dict.fromkeys(row[key] for row in rows))
    return [(value, list(each)) for value, each in groupby(sorted(rows, key=lambda r: order.index(r[key])), lambda r: r[key])]


def commands(rows):
    """The command behind each row, those of the first seed, as a block of text."""
    lines = dict.fromkeys(row["command"] for row in rows if row["seed"] == 0)
    return "\n".join(["```", *lines, "```"])


def write_report(out):
    """Write OUT.md from OUT.json, OUT_summary.json and, where they are there, OUT_single.json and OUT_ablations.json."""
    read = lambda suffix: json.loads(path.read_text()) if (path := out.with_name(out.name + suffix)).is_file() else None
    rows, summary, ablations, single = read(".json"), read("_summary.json"), read("_ablations.json"), read("_single.json")
    seeds = len({row["seed"] for row in rows})
    protocol = rows[0]["protocol"]
    text = [
        f"# Methods side by side: {out.name}",
        f"Written by `make results`; `python -m clipdec.comparison --help` says how on other data. Figures in percent, mean ± standard deviation over {seeds} seeds. "
        f"{protocol['test_images']} test images, keep={protocol['keep']}, {protocol['labels_without_positives']} labels without a positive left out. "
        "Epochs, weights and offsets are chosen on val, by labels held out of the training and labels in it; test labels choose nothing.",
        "## ZSL: unseen labels ranked", system_table(rows, "zsl"),
        "## GZSL: seen and unseen labels in one list", system_table(rows, "gzsl"),
        "## Differences of mAP", "Paired by seed and image. The interval is that of the mean over the seeds when the test images are drawn again (bootstrap, 500 draws).",
        difference_table(summary["differences"]),
        "## GZSL with an offset between seen and unseen labels", "mAP does not change: it ranks images, one label at a time.", calibration_table(rows),
    ]  # fmt: skip
    if single:
        text += ["## Where raw CLIP is strong: scenes of one object", "The same systems trained and tested on scenes with a single object.",
                 "ZSL", system_table(single, "zsl"), "GZSL", system_table(single, "gzsl")]  # fmt: skip
    if ablations:
        made = ablations["rows"]
        count = len({row["seed"] for row in made})
        text += ["## Ablations", f"One change at a time, {made[0]['epochs']} epochs, {count} seed{'s' * (count > 1)}. Differences are to the group's first row. The interval is that of "
                 "the test images; how far seeds differ, the first tables say."]  # fmt: skip
        for group, _ in by(made, "group"):
            text += [f"### {group}", ablation_table(group, ablations)]
    text += ["## Commands", "Each row again, for seed 0:", commands(rows + (ablations["rows"] if ablations else []))]
    text += [f"Threads of a run: {summary['threads']}. Versions: " + ", ".join(f"{k} {v}" for k, v in summary["versions"].items()) + "."]
    path = out.with_name(f"{out.name}.md")
    path.write_text("\n\n".join(text) + "\n", encoding="utf8")
    print(path)
