"""Train a CLIP-Decoder and write its run folder."""

import argparse
import sys
from dataclasses import fields

from clipdec.data import load_data
from clipdec.training.config import AS_AUTHOR, PRESETS, Config, read_settings
from clipdec.training.machine import print_anything
from clipdec.training.processes import is_main
from clipdec.training.report import result_table
from clipdec.training.run import fit
from clipdec.training.run_folder import InUse

EXAMPLES = """examples:
  python -m clipdec.training --config run.json                                            # one process
  accelerate launch --multi_gpu --num_processes 2 -m clipdec.training --config run.json   # several, one for each GPU

run.json holds a preset and any of these settings, {"preset": "clip", "epochs": 20}; defaults are those of mini:
"""


def main(arguments=None):
    print_anything()
    default = lambda setting: setting.default if setting.default is not None else PRESETS["mini"].get(setting.name)
    about = lambda setting: f"{setting.metadata['help']} (default {default(setting)!r})"
    settings = "\n".join(f"  {setting.name:26}{about(setting)}" for setting in fields(Config))
    points = "\n".join(f"  {name:26}{meaning}" for name, meaning in AS_AUTHOR.items())
    parser = argparse.ArgumentParser(
        prog="python -m clipdec.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"{EXAMPLES}{settings}\n\nnames of as_author, what the author's code does:\n{points}",
    )  # fmt: skip
    parser.add_argument("--config", required=True, help="JSON file of settings, such as the config.json of a run")
    parser.add_argument("--resume", action="store_true", help="go on from the state in the run folder")
    args = parser.parse_args(arguments)
    try:
        settings = read_settings(args.config)
        config = Config.from_parameters(settings | ({"resume": True} if args.resume else {}))
        metrics = fit(load_data(config.data), config)
    except (OSError, ValueError, FloatingPointError, InUse) as error:
        sys.exit(f"error: {error}")
    if is_main():
        print(result_table(metrics))


if __name__ == "__main__":
    sys.exit(main())
