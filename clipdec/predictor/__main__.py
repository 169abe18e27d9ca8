"""Print the labels of photos, the most probable first, and a tick at those that are predicted."""

import argparse
import glob
import json
import os
import sys

from clipdec.labels import read_names
from clipdec.predictor.predictor import Predictor
from clipdec.training.processes import progress

EXAMPLES = """examples:
  python -m clipdec.predictor runs/emoji photo.jpg --labels "dog face" pizza
  python -m clipdec.predictor runs/emoji photos/*.jpg --json --labels @names.txt     # names.txt: a label a line
"""


def answer_table(predictor, answer):
    """Labels with their probabilities as text; a tick marks those that are predicted."""
    width = max(len(name) for name, _ in answer)
    ticks = ["✓" if p >= predictor.threshold else " " for _, p in answer]
    rows = zip(ticks, answer)
    return "\n".join(f"  {tick} {name:{width}}  {p:.3f}  {predictor.labels.kind(name)}" for tick, (name, p) in rows)


def answer_json(predictor, photo, answer):
    """The same for JSON."""
    rows = [
        {"label": name, "probability": round(p, 6), "predicted": p >= predictor.threshold,
         "kind": predictor.labels.kind(name)} for name, p in answer
    ]  # fmt: skip
    return {"image": photo, "labels": rows}


def ask(predictor, photos, labels, top_k):
    """{photo: its answer}; a photo that cannot be read becomes a line on stderr."""
    answers = {}
    for photo in progress(photos, "photos"):
        try:
            answers[photo] = predictor(photo, labels, top_k or (None if labels else 10))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
    return answers


def found(patterns):
    """The paths that patterns such as photos/*.jpg stand for, which not every shell expands; else the text itself."""
    for pattern in map(os.path.expanduser, patterns):
        yield from [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern)) or [pattern]


def listed(labels):
    """The labels of a command line, those of the files @FILE among them, or None."""
    lists = [read_names(label[1:])[0] if label.startswith("@") else [label] for label in labels or []]
    return [name for names in lists for name in names] or None


def show(predictor, answers):
    print("\n\n".join(f"{photo}\n{answer_table(predictor, answer)}" for photo, answer in answers.items()))
    calibration = predictor.calibration
    rate = f"for labels in {100 * calibration.base_rate:.2g} % of the photos (--base-rate)"
    basis = f"; {calibration.note}" if calibration.note else f", the best F1 on val; {rate}"
    told = calibration.threshold < 1  # untouched CLIP predicts none
    print(f"✓ predicted: at least {calibration.threshold:.3f}{basis}" if told else calibration.note)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m clipdec.predictor", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    base_rate = "share of your photos that carry a label which you ask about, such as 0.05; by default that of val"
    top_k = "how many labels to print for each photo; by default 10, of those given by --labels all"
    run_help = "a folder that notebooks/04_train.ipynb wrote, or a CLIP, open_clip:<model>/<pretrained tag or file>"
    parser.add_argument("run_folder", help=run_help)
    parser.add_argument("photos", nargs="+", help="image files")
    parser.add_argument("--labels", nargs="+", help="names, or @FILE of names; by default those of the run")
    parser.add_argument("--top-k", type=int, help=top_k)
    parser.add_argument("--base-rate", type=float, help=base_rate)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, or mps on a Mac")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args(arguments)
    if args.top_k is not None and args.top_k < 1:
        parser.error(f"--top-k must be at least 1, got {args.top_k}")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a pipe of Windows may have no tick
    try:
        labels, photos = listed(args.labels), list(dict.fromkeys(found(args.photos)))
        predictor = Predictor.load(args.run_folder, args.base_rate, args.device)
        predictor.vectors(labels or predictor.labels.names)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    answers = ask(predictor, photos, labels, args.top_k)
    if args.json:
        records = [answer_json(predictor, photo, answer) for photo, answer in answers.items()]
        print(json.dumps(records, indent=1, ensure_ascii=False))
    elif answers:
        show(predictor, answers)
    sys.exit(int(len(answers) < len(photos)))


if __name__ == "__main__":
    main()
