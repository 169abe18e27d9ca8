"""Run all benchmarks and write benchmarks/results.md.

    python -m benchmarks                  # all of them; make bench
    python -m benchmarks head metrics     # some: printed only
    python -m benchmarks --device cuda
"""

import argparse
import datetime
import importlib
import os
import platform
from pathlib import Path

import open_clip
import timm
import torch

NAMES = ("head", "metrics", "bootstrap", "training", "photos", "predictor", "panel", "tagging")


def machine(device):
    card = "" if device == "cpu" else f", {torch.cuda.get_device_name()}"
    return (
        f"{datetime.date.today()}, {processor()}, {os.cpu_count()} cores{card}; python {platform.python_version()}, "
        f"torch {torch.__version__}, timm {timm.__version__}, open_clip {open_clip.__version__}"
    )


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=NAMES, help=f"which: {', '.join(NAMES)}; all by default")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    args = parser.parse_args()
    print(machine(args.device))
    rows = []
    for name in args.names:
        for what, value, note in importlib.import_module(f"benchmarks.{name}").figures(args.device):
            rows.append(f"| {what} | {value:.3g} | {note} |" if value < 100 else f"| {what} | {value:.0f} | {note} |")
            print(rows[-1], flush=True)
    if args.names == NAMES:
        printed = f"Printed by `make bench`: {machine(args.device)}."
        turns = "Times that are compared were measured in turns, in one run."
        text = ["# Benchmarks", "", printed, turns, ""]
        table = ["| measured | figure | of which |", "|---|---|---|", *rows]
        (Path(__file__).parent / "results.md").write_text("\n".join(text + table) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
