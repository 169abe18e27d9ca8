"""Time functions side by side: in turns, in one process, the best of several rounds each; or run one apart."""

import multiprocessing
import re
import time
import traceback
from contextlib import suppress
from pathlib import Path

import psutil

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


def wait(device):
    """Return when the device has done what it was given."""
    if device != "cpu":
        import torch  # here: a process that measures the memory of others must be smaller than they

        torch.cuda.synchronize()


def apart(function, *args, method="spawn", seconds=None):
    """What function(*args) returns in a fresh process, started by a `method` of multiprocessing.

    Raises RuntimeError, with the error's text, if it fails, dies or takes longer than `seconds`. Its process has ended
    then, with all that it started.
    """
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, function, args))
    process.start()
    theirs.close()
    try:
        answer, error = ours.recv() if ours.poll(seconds) else (None, f"took longer than {seconds:.0f} s")
    except EOFError:
        answer, error = None, "its process died"
    finally:
        with suppress(psutil.NoSuchProcess):
            end(psutil.Process(process.pid))
        process.join()
    if error:
        raise RuntimeError(error)
    return answer


def end(process):
    """Kill a psutil.Process and all that it has started."""
    for each in [*process.children(recursive=True), process]:
        each.kill()


def _answer(pipe, function, args):
    try:
        pipe.send((function(*args), None))
    except Exception as error:
        traceback.print_exc()
        pipe.send((None, f"{type(error).__name__}: {error}"))


def peak_memory(function, *args):
    """Peak memory in MB of a fresh process that calls function(*args), or of the largest that it starts (which Windows
    does not tell).
    """
    return apart(_measure, function, args)


def _measure(function, args):
    function(*args)
    status = Path("/proc/self/status")  # Linux's own figure starts at the peak of the process that started this one
    high = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    own = int(high[1]) * 1024 / 1e6 if high else peak_resident_mb()
    return max(own, peak_resident_mb(children=True))
