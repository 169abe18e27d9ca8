"""The methods side by side on one data set. No figure depends on test labels: epochs and offsets are chosen on val.

    python -m clipdec.comparison --word-vectors data/emoji/word_vectors.npz                      # in `make results`
    python -m clipdec.comparison --config run.json --word-vectors glove.npz --out results/coco   # your data and towers

Or runs that are there, in seconds; those that differ by their seed alone stand together.

    python -m clipdec.comparison runs/a runs/b                       # figures and differences, printed
    python -m clipdec.comparison runs/a-* runs/b-* --out results/ab  # and a folder with AP of each label and the curves
"""

import argparse
import json
import sys
from pathlib import Path

from clipdec.comparison.ablations import ABLATIONS, ablate
from clipdec.comparison.report import write_report
from clipdec.comparison.runs import by_settings, check_alike, data_of, differences, read_run
from clipdec.comparison.runs_report import draw_curves, runs_report, write_label_ap
from clipdec.comparison.systems import CHANGES, SYSTEMS, WORDS, compare
from clipdec.training.config import Config, read_settings, without_switches
from clipdec.training.machine import print_anything
from clipdec.training.run_folder import without_nan

RUNS = Path("runs/comparison")  # from the repository's root


def main(arguments=None):
    print_anything()
    args = _arguments(arguments)
    try:
        compare_runs(args) if args.runs else run(args)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def run(args):
    base = without_switches(read_settings(args.config)) if args.config else {}
    base |= {name: value for name, value in (("data", args.data), ("epochs", args.epochs)) if value is not None}
    Config.from_parameters(base)  # a misspelt name ends here
    out, asked = Path(args.out or "results/emoji").expanduser(), (base, args.word_vectors, args.seeds)
    out.parent.mkdir(parents=True, exist_ok=True)
    if args.ablations:
        where = RUNS / f"{out.name}_ablations"
        _write(f"{out}_ablations.json", ablate(*asked, where, args.jobs, args.resume, args.groups))
    else:
        rows, summary = compare(*asked, RUNS / out.name, args.systems, args.jobs, args.resume, args.config)
        _write(f"{out}.json", rows)
        _write(f"{out}_summary.json", summary)
    write_report(out)


def compare_runs(args):
    """Print runs side by side; with --out write a folder of the same, AP of each label, and the curves."""
    runs = [read_run(folder) for folder in args.runs]
    check_alike(runs)
    data, groups = data_of(runs, args.data), by_settings(runs)
    text = runs_report(groups, differences(groups, data))
    print(text)
    if args.out:
        out = Path(args.out).expanduser()
        out.mkdir(parents=True, exist_ok=True)
        write_label_ap(out / "label_ap.csv", groups, data)
        drawn = draw_curves(out / "curves.png", groups)
        parts = [f"# Runs side by side: {out.name}", text, *(["![mAP on val by epoch](curves.png)"] if drawn else [])]
        (out / "runs.md").write_text("\n\n".join(parts) + "\n", encoding="utf8")
        print(f"\n{out}: runs.md, label_ap.csv{', curves.png' if drawn else ''}")


def _arguments(arguments):
    parser = argparse.ArgumentParser(
        "python -m clipdec.comparison", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="run folders that are compared as they are; then only --data and --out")
    add("--config", help="JSON file: a preset and any parameters of notebook 04, which all systems share; data, too")
    add("--data", help="prepared data set, in place of the config's")
    add("--word-vectors", help=".npz for ml_decoder and conse, by data_prep.word_vectors or data_prep.embeddings")
    add("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, metavar="NAME", help=f"of {', '.join(SYSTEMS)}")
    add("--seeds", type=int, default=5, help="seeds 0, 1, ... (default 5)")
    add("--epochs", type=int, help="in place of the config's")
    add("--ablations", action="store_true", help="run the ablations instead of the systems; writes OUT_ablations.json")
    named = ", ".join(ABLATIONS)
    add("--groups", nargs="+", choices=ABLATIONS, metavar="GROUP", help=f"ablations, of {named}")
    out = "writes OUT.json, OUT_summary.json and OUT.md (default results/emoji); of RUNs a folder, by default none"
    add("--out", help=out)
    add("--jobs", type=int, default=1, help="runs at a time; they share the cores (default 1)")
    add("--resume", action="store_true", help="keep the runs of the same in runs/comparison, and run the rest")
    args = parser.parse_args(arguments)
    if args.runs:
        given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
        if others := given - {"runs", "data", "out"}:
            parser.error(f"runs are compared as they are: leave out --{', --'.join(sorted(others)).replace('_', '-')}")
        if len(args.runs) < 2:
            parser.error("runs are compared with each other: name two at least")
        return args
    if args.seeds < 1 or args.jobs < 1:
        parser.error(f"--seeds and --jobs must be at least 1, got {args.seeds} and {args.jobs}")
    asked = {*(args.groups or ABLATIONS)} if args.ablations else {*args.systems}
    needing = asked & {"label vectors", *(name for name in SYSTEMS if WORDS.items() <= CHANGES[name].items())}
    if needing and not args.word_vectors:
        made = "as data_prep.word_vectors or data_prep.embeddings makes them"
        parser.error(f"{', '.join(sorted(needing))} need --word-vectors, {made}")
    return args


def _write(path, content):
    Path(path).write_text(json.dumps(without_nan(content), indent=1, allow_nan=False) + "\n", encoding="utf8")
    print(path)


if __name__ == "__main__":
    main()
