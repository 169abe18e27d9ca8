"""Runs side by side as tables, AP of their labels as a CSV, and the curves of their training in one picture."""

import csv
from statistics import fmean

from matplotlib.figure import Figure

from clipdec.comparison.report import measured, side_by_side
from clipdec.comparison.runs import TASKS
from clipdec.training.report import CURVES, label_table, table
from clipdec.training.run_folder import read_history, whole

STYLES = "-", "--", "-.", ":"
ABOUT = """\
Figures in percent, of runs with several seeds mean ± standard deviation. {test_images} test images, keep={keep}, \
{labels_without_positives} labels without a positive left out. The highest mean of a column is in bold."""
INTERVAL = """\
mAP minus that of {first}, paired by image, and by seed where both have it. The interval is the 95 % one of the mean \
if test images were drawn again (bootstrap, 500 draws), and with several pairs of runs seeds too (Student's t): with \
one pair it speaks of these weights, not of another training. In bold where it excludes 0: only that is called a \
difference."""


def names_of(groups):
    """A name for each group: its first folder's, the whole path where two folders have one name."""
    short = [group[0].folder.name for group in groups]
    return short if len({*short}) == len(short) else [str(group[0].folder) for group in groups]


def runs_report(groups, found):
    """The tables as Markdown: figures, settings that are not the same, and `differences`."""
    names, first = names_of(groups), groups[0][0]
    systems = [([name, seeds(group)], [run.metrics for run in group]) for name, group in zip(names, groups)]
    parts = [ABOUT.format(**first.metrics["protocol"]), side_by_side(["", "seeds"], systems)]
    if lines := settings_lines(groups):
        parts += ["Settings that are not the same:", table(["", *names], lines)]
    if found:
        heads = [
            head for task in TASKS for head in (f"{task.upper() if task != 'seen' else task} mAP", "95 % interval")
        ]
        lines = [
            [name, *(cell for task in TASKS for cell in measured(each[task]))] for name, each in zip(names[1:], found)
        ]
        lines = [[*line, str(each["pairs"])] for line, each in zip(lines, found)]
        parts += [INTERVAL.format(first=names[0]), table(["", *heads, "pairs"], lines)]
    return "\n\n".join(parts)


def seeds(group):
    return ", ".join(str(run.seed) for run in group)


def settings_lines(groups):
    """A line for each setting, seed apart, that is not the same in all groups."""
    every = []
    for run in (group[0] for group in groups):
        method = {"method": run.made_of.get("system", "CLIP-Decoder")}  # methods of the field write run folders, too
        every.append(method | run.config.decisive() | {"label_embeddings": run.config.label_embeddings})
    keys = [key for key in every[0] if key != "seed" and len({str(settings[key]) for settings in every}) > 1]
    return [[f"`{key}`", *(f"{settings[key]}" for settings in every)] for key in keys]


def write_label_ap(path, groups, data):
    """A CSV with a line for each label: kind, test images that carry it, and its AP in percent in each group, the mean
    over the seeds; nan without a positive.
    """
    test, rows = data.test, []
    of = lambda run: label_table(run.scores, test.targets, data.labels, test.known)
    names, tables = names_of(groups), [[of(run) for run in group] for group in groups]
    for lines in zip(*(zip(*each) for each in tables)):  # of one label, a tuple of seeds for each group
        facts = {key: value for key, value in lines[0][0].items() if key != "ap"}
        rows.append(facts | {f"ap {name}": fmean(line["ap"] for line in each) for name, each in zip(names, lines)})
    with whole(path) as aside, open(aside, "w", newline="", encoding="utf8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def draw_curves(path, groups):
    """mAP on val by epoch, of each run a line, those of a group in one colour; a dot where the epoch was chosen.

    Returns: whether there was a history to draw.
    """
    kept = [[(run, read_history(run.folder)) for run in group if has_history(run)] for group in groups]
    shown = {column for each in kept for _, rows in each for column in rows[0] if column in CURVES}
    if not shown:
        return False
    figure = Figure(figsize=(4.4 * len(shown), 3.4), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, column in zip(axes, sorted(shown, key=[*CURVES].index)):
        for number, (name, each) in enumerate(zip(names_of(groups), kept)):
            style = {"color": f"C{number % 10}", "linestyle": STYLES[number // 10 % 4]}
            draw_group(axis, column, [(run, rows) for run, rows in each if column in rows[0]], name, style)
        axis.set(xlabel="epoch", ylabel="mAP on val, %", title=CURVES[column])
        axis.legend(fontsize=8)
    with whole(path) as aside:
        figure.savefig(aside, dpi=150, format="png")
    return True


def has_history(run):
    return (run.folder / "history.csv").is_file()


def draw_group(axis, column, histories, name, style):
    """The lines of a group's runs, [(run, rows of its history)]; the legend names the first."""
    for number, (run, rows) in enumerate(histories):
        values, best = [row[column] for row in rows], run.metrics["best_epoch"]
        axis.plot(range(1, len(rows) + 1), values, label=None if number else name, linewidth=1.3, **style)
        axis.plot(best, values[best - 1], "o", color=style["color"], markersize=5)
