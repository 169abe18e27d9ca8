"""Share a trained run on the Hugging Face hub: a model card, weights, settings, names and figures, nothing else.

Who has the run opens it with clipdec.Predictor.load("user/name"). `hf auth login` says to the hub who you are.
"""

import argparse
import sys

from clipdec.share.card import OTHER
from clipdec.share.share import share, write_shared
from clipdec.training.machine import print_anything
from clipdec.training.shared import find_run

EXAMPLES = """examples:
  python -m clipdec.share runs/emoji user/emoji-head --dry-run              # into runs/emoji-shared, to look at
  python -m clipdec.share runs/emoji user/emoji-head --license cc-by-sa-4.0 --private
"""


def main(arguments=None):
    print_anything()
    parser = argparse.ArgumentParser(
        prog="python -m clipdec.share", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    licence = "of the weights, as the hub names it, such as mit or cc-by-4.0; mind those of data and towers"
    parser.add_argument("run_folder", help="a folder that notebooks/04_train.ipynb wrote")
    parser.add_argument("name", help="repository of the hub, user/name, made if it is not there")
    parser.add_argument("--license", default=OTHER, help=f"{licence} (default {OTHER})")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--dry-run", action="store_true", help="send nothing: write what would go to a folder")
    parser.add_argument("--out", help="that folder (default RUN_FOLDER-shared)")
    args = parser.parse_args(arguments)
    if args.out and not args.dry_run:
        parser.error("--out is the folder of --dry-run: give both, or neither")
    try:
        if args.dry_run:
            out = args.out or f"{find_run(args.run_folder)}-shared"
            files = write_shared(args.run_folder, out, args.name, args.license)
            print(f"{out}: {', '.join(files)}; nothing was sent")
        else:
            print(share(args.run_folder, args.name, args.license, args.private))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
