"""Run notebook 05 under papermill many times in a row, and count the runs that stall or fail.

    python -m benchmarks.stalls                 # 50 times, after make demo
    python -m benchmarks.stalls --times 10 --seconds 120

Widgets that wait for messages of their own can hang a headless run now and then; one that ends tells nothing.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.timing import end

ROOT = Path(__file__).resolve().parents[1]


def run(folder, seconds):
    """(how it ended, seconds) of one run, in a process of its own; one that takes longer is killed with its kernel."""
    notebook, out = str(ROOT / "notebooks" / "05_evaluate.ipynb"), str(Path(folder) / "out.ipynb")
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", notebook, out]
    began = time.perf_counter()
    with open(Path(folder) / "log.txt", "w") as log:
        process = psutil.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = process.wait(seconds)
        except psutil.TimeoutExpired:
            end(process)
            process.wait()
            return "stalled", time.perf_counter() - began
    return ("passed" if code == 0 else "failed"), time.perf_counter() - began


def main():
    options = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], **options)
    parser.add_argument("--times", type=int, default=50, help="how many runs")
    parser.add_argument("--seconds", type=float, default=300, help="after how long a run counts as stalled")
    args = parser.parse_args()
    outcomes, taken = {"passed": 0, "failed": 0, "stalled": 0}, []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, args.times + 1):
            outcome, seconds = run(folder, args.seconds)
            outcomes[outcome] += 1
            taken.append(seconds)
            print(f"run {number}: {outcome} in {seconds:.1f} s", flush=True)
            if outcome == "failed":
                print((Path(folder) / "log.txt").read_text()[-2000:])
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    print(f"{counts} of {args.times} runs, median {statistics.median(taken):.1f} s, longest {max(taken):.1f} s")
    sys.exit(outcomes["passed"] < args.times)


if __name__ == "__main__":
    main()
