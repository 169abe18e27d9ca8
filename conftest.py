"""Tests and notebooks keep their hands off the checkout: what they prepare and train goes to a folder of the session,
which ends with it; the last test compares the checkout with what it was. Nothing here needs a network.
"""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

collect_ignore = ["notebooks/exercises"]  # blanks, which fail; tests/test_exercises.py runs them
ROOT, HOME = Path(__file__).parent, Path(tempfile.mkdtemp(prefix="clipdec-tests-"))
os.environ["CLIPDEC_HOME"] = str(HOME)  # read when clipdec is imported, here and in the kernels of notebooks
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"  # and these by huggingface_hub and datasets
CACHES = {".git", "__pycache__", ".pytest_cache", ".ruff_cache"}
SHOW_THE_RUN = {"07_app.ipynb", "test_browser.py"}
BEFORE = pytest.StashKey()


def checkout():
    """{path: (size, time of its last change)} of the checkout's files, None for a folder, without caches and
    environments.
    """
    found = {}
    for folder, folders, files in os.walk(ROOT):
        kept = [name for name in folders if name not in CACHES and not name.endswith(".egg-info")]
        folders[:] = [name for name in kept if not Path(folder, name, "pyvenv.cfg").is_file()]
        found |= dict.fromkeys(os.path.join(folder, name) for name in folders)
        for path in (os.path.join(folder, name) for name in files):
            with suppress(FileNotFoundError):  # another program's, gone again
                about = os.lstat(path)
                found[path] = about.st_size, about.st_mtime_ns
    return found


class CheckoutIsAsItWas(pytest.Item):
    def runtest(self):
        before, after = self.config.stash[BEFORE], checkout()
        changed = [path for path in sorted(before | after) if before.get(path, ()) != after.get(path, ())]
        assert not changed, f"changed while the tests ran: {', '.join(os.path.relpath(path, ROOT) for path in changed)}"


def pytest_configure(config):
    config.stash[BEFORE] = checkout()
    config.option.nbval_kernel_startup_timeout = 600  # a guard against hanging, on a machine that is busy


def pytest_unconfigure():
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session, items):
    """The browser comes after the notebooks, one of which trains the run that it looks at; the checkout last."""
    items.sort(key=lambda item: item.path.name == "test_browser.py")
    if items:
        items.append(CheckoutIsAsItWas.from_parent(session, name="checkout_is_as_it_was"))


def pytest_runtest_setup(item):
    """Train the default run for what shows it, where no notebook before has."""
    if item.path.name in SHOW_THE_RUN and not (HOME / "runs" / "emoji" / "metrics.json").is_file():
        import clipdec
        from data_prep.emoji_scenes import prepare

        prepare(HOME / "data" / "emoji")
        clipdec.fit(clipdec.load_data("emoji"), clipdec.Config())
