"""Time functions side by side: in turns, in one process, the best of several rounds each."""

import multiprocessing
import re
import time
from pathlib import Path

from clipdec.training.memory import peak_resident_mb


def side_by_side(functions, rounds=5):
    """{name: seconds} of {name: function}; every function is called once before it is timed."""
    return both_clocks(functions, rounds)[0]


def both_clocks(functions, rounds=5):
    """({name: seconds}, {name: seconds of the processor, all threads together}), the best of each."""
    clocks = time.perf_counter, time.process_time
    best = [dict.fromkeys(functions, float("inf")) for _ in clocks]
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            began = [clock() for clock in clocks]
            function()
            for seconds, clock, start in zip(best, clocks, began):
                seconds[name] = min(seconds[name], clock() - start)
    return best


def peak_memory(function, *args):
    """Peak memory in MB of a fresh process that calls function(*args), or of the largest that it starts (which Windows
    does not tell).
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(theirs, function, args))
    process.start()
    theirs.close()
    peak = ours.recv()
    process.join()
    return peak


def _measure(pipe, function, args):
    function(*args)
    status = Path("/proc/self/status")  # Linux's own figure starts at the peak of the process that started this one
    high = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    own = int(high[1]) * 1024 / 1e6 if high else peak_resident_mb()
    pipe.send(max(own, peak_resident_mb(children=True)))
