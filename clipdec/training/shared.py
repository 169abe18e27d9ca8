"""Runs by name: a folder that is there, or a repository of the Hugging Face hub."""

import json
import re
from pathlib import Path, PureWindowsPath

import open_clip
from huggingface_hub import snapshot_download

from clipdec.data import at_home

VECTORS = "label_vectors.npz"  # label vectors that came from a file, beside the config.json of a shared run
SHARED = ["checkpoint.safetensors", "config.json", "labels.json", "metrics.json", VECTORS]
ON_HUB = re.compile(r"(\w[\w.-]*/[\w.-]+)(?:@(.+))?")  # user/name, user/name@revision
HERE = "runs/"  # where runs are written: what begins so is never asked of the hub, or a slip would open another's
FILES = {"image_weights", "label_embeddings"}  # settings that name one
TOWERS = "image_tower", "text_tower", "sentence_tower"
TRAIN = "train one with notebooks/04_train.ipynb"


def find_run(run, revision=None, start=None):
    """The folder of a run.

    Args:
        run: a folder that is there, or below `runs/`; else a text such as "user/name" or "user/name@revision", a
            repository of the Hugging Face hub. Of that the files SHARED are downloaded where the cache lacks them.
        revision: branch, tag or commit of the repository, by default its main branch.
        start: where a relative path begins; by default the working directory, or HOME if it is not there.

    Returns: its path. One that can be no repository is given back even if nothing is there.
    Raises: FileNotFoundError, in both readings of the text, if the hub gives no such repository; ValueError for a
        revision of a folder, or settings that would open files of this machine.
    """
    folder = Path(start or "") / Path(run).expanduser()
    if start is None and not folder.is_dir() and at_home(run).is_dir():
        folder = at_home(run)
    name = ON_HUB.fullmatch(run) if isinstance(run, str) else None
    if folder.is_dir() or not name or run.startswith(HERE):
        if revision:
            raise ValueError(f"{run} is no repository of the hub, which alone has revisions: leave {revision!r} out")
        return folder
    repository, behind = name.groups()
    if revision and behind:
        raise ValueError(f"{run} names a revision already: leave {revision!r} out, or {behind!r}")
    try:
        found = Path(snapshot_download(repository, revision=revision or behind, allow_patterns=SHARED))
    except Exception as error:  # the hub's library and the network raise errors of many kinds
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        hub = f"the Hugging Face hub gave no repository {run} ({reason.rstrip('.')})"
        raise FileNotFoundError(f"there is no run folder {folder}, and {hub}: {TRAIN}, or give another name") from None
    check_foreign(found, run)
    return found


def is_local(tower):
    """Whether a tower, by its name, is a file or folder of one machine."""
    kind, _, rest = tower.partition(":")
    published = "/" in rest and open_clip.get_pretrained_cfg(*rest.split("/", 1))
    return kind == "local-dir" or (kind == "open_clip" and not published)


def check_foreign(folder, name):
    """Raises ValueError if the settings of a run from elsewhere would open files of this machine."""
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf8")) if path.is_file() else {}
    named = {key: str(settings[key]) for key in (*FILES, *TOWERS) if settings.get(key)}
    wrong = [text for key, text in named.items() if key in FILES and PureWindowsPath(text).name != text]
    if wrong := wrong + [text for key, text in named.items() if key in TOWERS and is_local(text)]:
        raise ValueError(f"the run {name} names {wrong[0]}, a file of another machine: clipdec.share did not write it")


def beside(path, folder):
    """The file of a setting, or the one of its name in a run folder, which a shared run brings along."""
    own = Path(folder) / PureWindowsPath(path).name
    return str(own.absolute()) if own.is_file() else path
