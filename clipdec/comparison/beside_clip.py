"""Print a run's figures beside those of untouched CLIP, asked about the whole image and about windows of it."""

import argparse
import sys
from dataclasses import replace

from clipdec.comparison.methods.raw_clip import window_scores
from clipdec.data import load_data
from clipdec.metrics import zsl_report
from clipdec.towers import windows_of
from clipdec.training.build import load_run
from clipdec.training.config import read_settings
from clipdec.training.machine import print_anything
from clipdec.training.report import dashed
from clipdec.training.shared import find_run

COLUMNS = {"ZSL mAP": ("zsl", "map"), "ZSL F1@3": ("zsl", "f1@3"), "GZSL mAP": ("gzsl", "map")}
COLUMNS |= {"GZSL F1@3": ("gzsl", "f1@3")}


def beside_clip(run_folder, windows=(0, 4), data=None):
    """Rows (system, tower passes an image, {"zsl": figures, "gzsl": figures}) of the run's test images: the plain
    cosine, the softmax over the seen labels with each of `windows`, and the run.

    data: the folder of its data, by default where the run had them.
    Raises FileNotFoundError or ValueError if the run or its data cannot be had, or the data are others by now.
    """
    folder = find_run(run_folder)
    config, model = load_run(folder)
    path = folder / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run_folder} has no metrics.json, it is not finished: go on with it, resume True")
    metrics = read_settings(path)
    data, keep = load_data(data or config.data), metrics.get("protocol", {}).get("keep", "all")
    if metrics.get("inputs", {}).get("data") != data.fingerprint:
        raise ValueError(f"the data in {data.folder} are not those of {run_folder}: name their folder, --data")
    rows = [("raw CLIP, cosine", 1, metrics.get("raw_clip", {}))]
    for each in windows:
        scores = window_scores(data, replace(config, windows=each))
        report = zsl_report(scores, data.test.targets, data.labels, keep, data.test.known)
        rows.append(("raw CLIP, softmax", 1 + len(windows_of(each)), report))
    return [*rows, ("CLIP-Decoder", model.tower.passes, metrics)]


def table(rows):
    """The rows as a text table, in percent."""
    lines = [f"{'':20}{'passes':>8}" + "".join(f"{name:>12}" for name in COLUMNS)]
    for name, passes, report in rows:
        figures = "".join(f"{dashed(report.get(task, {}).get(figure)):>12}" for task, figure in COLUMNS.values())
        lines.append(f"{name:20}{passes:>8}{figures}")
    return "\n".join(lines)


def main(arguments=None):
    print_anything()
    parser = argparse.ArgumentParser(prog="python -m clipdec.comparison.beside_clip", description=__doc__)
    parser.add_argument("run_folder", help="a folder that notebooks/04_train.ipynb wrote, or user/name of the hub")
    looks = "looks of untouched CLIP: 0, the whole image alone, 4, 25, or sizes and strides"
    number = lambda text: int(text) if text.isdigit() else text
    parser.add_argument("--windows", nargs="+", type=number, default=[0, 4], help=looks)
    parser.add_argument("--data", help="the folder of its data, by default where the run had them")
    args = parser.parse_args(arguments)
    try:
        print(table(beside_clip(args.run_folder, args.windows, args.data)))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
