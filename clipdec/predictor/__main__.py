"""Print the labels of photos, the most probable first, and a tick at those that are predicted."""

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial

from tqdm import tqdm

from clipdec.labels import CONTROL, clean_name, read_names, same_name
from clipdec.predictor.photos import TagsFile, found, write_sidecar
from clipdec.predictor.predictor import Predictor
from clipdec.training.inputs import digest
from clipdec.training.machine import print_anything
from clipdec.training.processes import progress

SOME = 10  # labels of a run that are printed for a photo
EXAMPLES = """examples:
  python -m clipdec.predictor runs/emoji photo.jpg --labels "dog face" pizza
  python -m clipdec.predictor runs/emoji photos/*.jpg --json --labels @names.txt     # names.txt: a label a line
  python -m clipdec.predictor runs/coco photos/ --csv tags.csv --write-xmp             # PHOTO.xmp beside each photo
  python -m clipdec.predictor open_clip:ViT-B-32/laion2b_s34b_b79k photos/ --top-k 5 --csv tags.csv   # no training
"""


def answer_table(predictor, answer):
    """Labels with their probabilities as text; a tick marks those that are predicted."""
    width = max(len(name) for name, _ in answer)
    ticks = ["✓" if p >= predictor.threshold else " " for _, p in answer]
    rows = (f"  {tick} {name:{width}}  {p:<8.3g}  {kind_of(predictor, name)}" for tick, (name, p) in zip(ticks, answer))
    return "\n".join(map(str.rstrip, rows))


def kind_of(predictor, name):
    """"seen", "unseen" or "new"; "" for untouched CLIP, which was trained on no label."""
    return predictor.labels.kind(name) if predictor.labels.seen else ""


def print_json(predictor, answers):
    """The same as JSON; how many there were."""
    row = lambda name, p: {"label": name, "probability": float(f"{p:.6g}"), "predicted": p >= predictor.threshold}
    kind = lambda name: {"kind": kind_of(predictor, name)} if predictor.labels.seen else {}
    rows = lambda answer: [row(name, p) | kind(name) for name, p in answer]
    records = [{"image": photo, "labels": rows(answer)} for photo, answer in answers]
    print(json.dumps(records, indent=1))  # ASCII, whatever a pipe of Windows takes
    return len(records)


def ask(predictor, photos, labels, top_k):
    """Yield (photo, answer) as they come; a photo that cannot be read becomes a line on stderr."""
    for photo, answer in progress(predictor.stream(photos, labels, top_k), "photos", total=len(photos)):
        if isinstance(answer, ValueError):
            tqdm.write(f"error: {answer}", file=sys.stderr)  # above the bar
        else:
            yield photo, answer


def check_tags(predictor, labels, top_k):
    """Raises ValueError where tags could not be chosen, or not be told apart in a list."""
    if predictor.threshold >= 1 and not top_k:
        raise ValueError(f"{predictor.calibration.note}; or give --top-k, how many labels each photo gets")
    for name in labels:
        if ";" in name:
            raise ValueError(f"the label {name!r} holds a semicolon, which separates labels: write it without")
        if CONTROL.search(name):
            raise ValueError(f"the label {name!r} holds a control character: write it without")
        if name[0] in "=@":
            raise ValueError(f"a spreadsheet would take the label {name!r} for a formula: write it without {name[0]}")


def question(predictor, labels, top_k):
    """A short text, another one for another model, other labels or another way to choose among them."""
    return digest(json.dumps([labels, top_k, asdict(predictor.calibration)]), predictor.identity())


def tag(predictor, photos, labels, args):
    """Write the tags of photos to a CSV, side-car files, or both: how many photos have theirs now."""
    kept = TagsFile(args.csv, question(predictor, labels, args.top_k)) if args.csv else None
    known = {photo: tags for photo in photos if kept and (tags := kept.tags(photo)) is not None}
    if known:
        print(f"{args.csv} has {len(known)} of the photos already")
    lacking = [photo for photo, names in known.items() if args.write_xmp and not has_sidecar(photo, names)]
    count, empty = len(known) - len(lacking), sum(not known[photo] for photo in known.keys() - lacking)
    for photo, answer in ask(predictor, [photo for photo in photos if photo not in known], labels, args.top_k):
        tags = answer if args.top_k else [(name, p) for name, p in answer if p >= predictor.threshold]
        if args.write_xmp and not has_sidecar(photo, [name for name, _ in tags]):
            continue
        if kept:
            kept.add(photo, tags)  # last: what stands there is done
        count, empty = count + 1, empty + (not tags)
    why = "" if args.top_k else f", no label reached {predictor.threshold:.3g} (--base-rate, or --top-k)"
    print(f"{count} of {len(photos)} photos have their tags{f'; {empty} of them have none{why}' if empty else ''}")
    return count


def has_sidecar(photo, names):
    """Write the side-car file of a photo: whether it could be. Why not is a line on stderr."""
    try:
        write_sidecar(photo, names)
    except OSError as error:
        tqdm.write(f"error: {photo} gets no tags: {error}", file=sys.stderr)
        return False
    return True


def listed(labels):
    """The labels of a command line, those of the files @FILE among them, each once, or None."""
    found = {}
    for label in labels or []:
        for name in read_names(label[1:])[0] if label.startswith("@") else [clean_name(label)]:
            found.setdefault(same_name(name), name)
    return list(found.values()) or None


def show(predictor, answers, basis="val"):
    """Print the table of each photo as it comes, and below what its ticks mean, `basis` being what the threshold was
    fitted on; how many there were.
    """
    count = 0
    for photo, answer in answers:
        print("\n" * bool(count) + f"{photo}\n{answer_table(predictor, answer)}")
        count += 1
    calibration = predictor.calibration
    rate = f"for labels in {100 * calibration.base_rate:.2g} % of the photos (--base-rate)"
    meaning = f"; {calibration.note}" if calibration.note else f", the best F1 on {basis}; {rate}"
    told = calibration.threshold < 1  # untouched CLIP predicts none
    print(f"✓ predicted: at least {calibration.threshold:.3g}{meaning}" if told else calibration.note)
    return count


def main(arguments=None):
    print_anything()
    args = parsed(arguments)
    try:
        labels, photos = listed(args.labels), found(args.photos)
        predictor = Predictor.load(args.run_folder, args.base_rate, args.device, calibration=args.calibration)
        predictor.vectors(labels or predictor.labels.names)
        if args.csv or args.write_xmp:
            asked = labels or predictor.labels.names
            check_tags(predictor, asked, args.top_k)
            count = tag(predictor, photos, asked, args)
        else:
            answers = ask(predictor, photos, labels, args.top_k or (None if labels else SOME))
            shown = print_json if args.json else partial(show, basis=args.calibration or "val")
            count = shown(predictor, answers)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.exit(int(count < len(photos)))


def parsed(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m clipdec.predictor", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    run = "a folder that notebooks/04_train.ipynb wrote, user/name or user/name@revision of the Hugging Face hub, or "
    run += "a CLIP, open_clip:<model>/<pretrained tag or file>"
    top_k = (
        "how many labels each photo gets; by default 10, of those given by --labels all, in files the predicted ones"
    )
    base_rate = "share of your photos that carry a label you ask about, such as 0.05; by default the calibration's"
    parser.add_argument("run_folder", help=run)
    parser.add_argument("photos", nargs="+", help="image files, folders of them, or patterns such as photos/*.jpg")
    parser.add_argument("--labels", nargs="+", help="names, or @FILE of names; by default those of the run")
    parser.add_argument("--top-k", type=int, help=top_k)
    parser.add_argument("--base-rate", type=float, help=base_rate)
    parser.add_argument("--calibration", help="a file of Predictor.save_calibration, in place of the run's own")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, or mps on a Mac")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--csv", help="write the tags to this file, a line a photo; goes on where it was stopped")
    parser.add_argument("--write-xmp", action="store_true", help="write PHOTO.xmp beside each photo, with its tags")
    args = parser.parse_args(arguments)
    if args.top_k is not None and args.top_k < 1:
        parser.error(f"--top-k must be at least 1, got {args.top_k}")
    if args.json and (args.csv or args.write_xmp):
        parser.error("--json prints, --csv and --write-xmp write: choose one of them")
    return args


if __name__ == "__main__":
    main()
