"""The report of a model's scores, with and without what leaks between names, and its table."""

from clipdec.labels import LabelSpace
from clipdec.metrics import average_precision, zsl_report
from clipdec.training.leakage import leakage

CURVES = {"val_seen_map": "labels in training", "val_held_map": "labels held out"}  # columns of history.csv
HEADINGS = {"zsl": "ZSL", "zsl_without_twins": "ZSL without twins", "gzsl": "GZSL"}


def full_report(scores, targets, labels, keep="all", known=None):
    """`zsl_report`, as `zsl_without_twins` its ZSL figures for the unseen labels that have no seen twin, and as
    `equal_prevalence` mAP where all labels are equally frequent. Where not all pairs of image and label are `known`,
    the protocol says which percentage is.
    """
    twins = leakage(labels)
    alone = [i for i in labels.unseen_index.tolist() if labels.names[i] not in twins]
    space = LabelSpace([], [labels.names[i] for i in alone])
    columns = [None if x is None else x[:, alone] for x in (scores, targets, known)]
    rest = zsl_report(*columns[:2], space, keep, columns[2])["zsl"] if alone else {}
    report = zsl_report(scores, targets, labels, keep, known) | {"zsl_without_twins": rest}
    report["protocol"]["unseen_with_twin"] = len(twins)
    if known is not None:
        report["protocol"]["known_pairs"] = 100 * known.sum().item() / known.numel()
    return report | {"equal_prevalence": equal_prevalence(scores, targets, labels, known)}


def equal_prevalence(scores, targets, labels, known=None):
    """mAP if each label were in the same share of the images, in percent: {"prevalence", "zsl", "gzsl", "seen"}.

    The share is the mean of the unseen labels, to which the others are brought by weights of the images without them
    (`average_precision`). AP is lower for a rarer label at one quality of ranking, which this takes out. What stays: a
    positive counts itself, so AP of a label with one or two positives is too high. Empty where no image carries an
    unseen label. Where not all pairs of image and label are known, all this is said of those that are.
    """
    unseen = targets[:, labels.unseen_index]
    unseen = unseen if known is None else unseen[known[:, labels.unseen_index]]
    share = unseen.double().mean().item()
    if not share > 0:
        return {}
    ap = 100 * average_precision(scores, targets, share, known)
    parts = {"zsl": ap[labels.unseen_index], "gzsl": ap, "seen": ap[labels.seen_index]}
    return {"prevalence": 100 * share} | {part: each.nanmean().item() for part, each in parts.items()}


def label_table(scores, targets, labels, known=None):
    """The rows of label_ap.csv: of each label its kind, in how many images it is, and its AP in percent or nan."""
    ap = 100 * average_precision(scores, targets, known=known)
    rows = zip(labels.names, targets.sum(0).tolist(), ap.tolist())
    return [{"label": name, "kind": labels.kind(name), "positives": n, "ap": ap} for name, n, ap in rows]


def result_table(metrics):
    """The figures of metrics.json as a text table, in percent; a dash where one does not exist."""
    ranked = [name for name in metrics.get("gzsl") or ("f1@3", "f1@5") if name.startswith("f1@")]
    columns = {"map": "mAP"} | {name: name.upper() for name in ranked}
    lines = [
        f"{'':14}" + "".join(f"{name:^24}" for name in HEADINGS.values()),
        f"{'':14}" + "".join(f"{name:>8}" for name in columns.values()) * len(HEADINGS),
    ]
    for name, report in (("CLIP-Decoder", metrics), ("raw CLIP", metrics.get("raw_clip", {}))):
        figures = [report.get(task, {}).get(column) for task in HEADINGS for column in columns]
        lines.append(f"{name:14}" + "".join(f"{dashed(value):>8}" for value in figures))
    if protocol := metrics.get("protocol"):
        images = f"{protocol['test_images']} test images, keep={protocol['keep']}"
        without = f"{protocol['labels_without_positives']} labels without a positive left out"
        lines.append(f"{images}, {without}; {protocol['unseen_with_twin']} unseen labels have a seen twin")
        if known := protocol.get("known_pairs"):
            lines.append(f"AP over {known:.2g} % of all pairs of image and label, the others are not known")
    if metrics.get("chosen_by") == "test_map":
        lines.append("the epoch was chosen on test, so these figures flatter")
    note = metrics.get("calibration", {}).get("note")
    lines += [note] if note else []
    lines += [f"left out: {part} ({reason})" for part, reason in metrics.get("left_out", {}).items()]
    return "\n".join(lines)


def table(head, rows):
    """A Markdown table; the first column is text, the others are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def dashed(value, form=".1f"):
    """A figure as text: a dash for nan or None, which stand for one that does not exist."""
    return "–" if value is None or value != value else format(value, form)
