"""Makes a Python on Linux as poor as one on Windows, where its folder is first in PYTHONPATH; processes inherit that.

Gone are modules, functions and start methods that only POSIX has. A file that is open or memory-mapped in one of the
processes started together is neither renamed, replaced nor removed, nor is a folder that holds one; a folder cannot be
opened. Text files without an encoding are cp1252, as is what is printed. Locks are filelock's soft ones, which exist
while they are held.
"""

import asyncio  # noqa: F401  on Windows it takes other modules than those that go
import builtins
import io
import multiprocessing
import multiprocessing.context
import os
import shutil
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import psutil

warnings.filterwarnings("ignore", message="only soft file lock is available")
for name in ("fcntl", "grp", "pwd", "resource"):
    sys.modules[name] = None
os.environ.setdefault("USERNAME", "somebody")  # as there
for name in ("fork", "forkpty", "getuid", "geteuid", "getpgid", "killpg", "posix_fallocate", "sched_getaffinity"):
    delattr(os, name)
os.process_cpu_count = os.cpu_count  # as there, from Python 3.13 on

CONTEXTS = multiprocessing.context._concrete_contexts
for name in ("fork", "forkserver"):
    CONTEXTS.pop(name, None)
multiprocessing.context._default_context._default_context = CONTEXTS["spawn"]
multiprocessing.get_all_start_methods = lambda: ["spawn"]

memory_info = psutil.Process.memory_info


class Memory:
    """What psutil tells on Windows."""

    def __init__(self, info):
        self.rss = self.wset = self.peak_wset = info.rss


psutil.Process.memory_info = lambda process: Memory(memory_info(process))


def opened():
    """Paths of the files that are open or memory-mapped in the processes of this session."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if os.getsid(int(process.name)) == os.getsid(0):
                yield from (os.path.realpath(link) for link in (process / "fd").iterdir())
                with real_open(process / "maps") as lines:
                    yield from (line.split(maxsplit=5)[-1].strip() for line in lines)


def refuse(path):
    path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    for other in opened():
        if other == path or other.startswith(path + os.sep):
            raise PermissionError(13, "The process cannot access the file because another process uses it", other)


def guarded(function, existing_target=None):
    def call(source, *target, **options):
        for path in (source, *target):
            refuse(path)
        if target and existing_target and existing_target(target[0]):
            raise FileExistsError(17, "Cannot create a file when that file already exists", target[0])
        return function(source, *target, **options)

    return call


def open_no_folder(path, *arguments, **options):
    if not isinstance(path, int) and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return real_os_open(path, *arguments, **options)


def open_as_cp1252(file, mode="r", buffering=-1, encoding=None, *arguments, **options):
    encoding = "cp1252" if "b" not in mode and encoding in (None, "locale") else encoding
    return real_open(file, mode, buffering, encoding, *arguments, **options)


real_open, real_os_open = io.open, os.open
os.rename = guarded(os.rename, os.path.exists)
os.replace = guarded(os.replace, os.path.isdir)
os.unlink = os.remove = guarded(os.unlink)
os.rmdir = guarded(os.rmdir)
os.open = open_no_folder
io.open = builtins.open = open_as_cp1252
shutil._use_fd_functions = False  # rmtree goes by paths
tempfile.TemporaryFile = tempfile.NamedTemporaryFile
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(encoding="cp1252")
