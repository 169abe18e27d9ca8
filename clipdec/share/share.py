"""`share`: write the files of a run that others need, and send them to the Hugging Face hub."""

import json
import shutil
import tempfile
from pathlib import Path, PureWindowsPath

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

from clipdec.data import load_data
from clipdec.predictor.predictor import Predictor
from clipdec.share.card import OTHER, model_card, slug
from clipdec.training.config import read_settings
from clipdec.training.run_folder import visible
from clipdec.training.shared import SHARED, TOWERS, TRAIN, VECTORS, find_run, is_local

FILES = ["README.md", *SHARED]


def share(run, name, licence=OTHER, private=False):
    """Upload a run to a repository of the hub, which is made if it is not there: the repository's address.

    What goes are the model card and those of SHARED that the run has; states, logs and scores stay.
    Raises: ValueError or OSError as `write_shared`, or of the hub.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_shared(run, folder, name, licence)
        api = HfApi()
        address = api.create_repo(name, exist_ok=True, **({"private": True} if private else {}))
        if private and not api.repo_info(name).private:  # one that is there stays as it is
            raise ValueError(f"{name} is there, and public: make it private on its page, or give another name")
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=FILES, commit_message="A run of clipdec")
    return str(address)


def check_name(name):
    """Raises ValueError if the hub cannot have a repository of this name."""
    validate_repo_id(name)  # raises one, too
    if "/" not in name:
        raise ValueError(f"{name} names no user of the hub: write user/name")


def write_shared(run, folder, name, licence=OTHER):
    """Write what is shared of a run to a folder, made if it is not there: the names of the files.

    Raises: FileNotFoundError or ValueError if the run does not open, or would not elsewhere; FileExistsError if the
    folder holds anything else.
    """
    check_name(name)
    run, folder = find_run(run), Path(folder).expanduser()
    check_folder(folder, run)
    predictor = Predictor.load(run)  # what does not open is not shared
    config, metrics = predictor.config, read_settings(run / "metrics.json")
    check_towers(config)
    settings, info = shared_settings(config), about_data(config, metrics)
    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        (folder / file).unlink(missing_ok=True)
    for file in ("checkpoint.safetensors", "labels.json"):
        shutil.copyfile(run / file, folder / file)
    if config.label_embeddings:
        shutil.copyfile(config.path("label_embeddings"), folder / VECTORS)
    metrics = shared_metrics(metrics, settings)
    for file, content in (("config.json", settings), ("metrics.json", metrics)):
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        (folder / file).write_text(text, encoding="utf8")
    card = model_card(name, config, metrics, predictor.labels, info, licence)
    (folder / "README.md").write_text(card, encoding="utf8")
    return sorted(visible(folder))


def check_folder(folder, run):
    """Raises FileNotFoundError if `run` is no folder, FileExistsError if `folder` is, or holds anything but a shared
    run.
    """
    if not run.is_dir():
        raise FileNotFoundError(f"{run} is not a run folder: {TRAIN}")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: give another folder")
    names = visible(folder)
    if folder.resolve() == run.resolve() or names - {*FILES} or names and "README.md" not in names:
        raise FileExistsError(f"{folder} is not empty, and no shared run: give another folder; nothing was changed")


def check_towers(config):
    """Raises ValueError if a tower is a file or folder of this machine; of that the checkpoint holds the name, too."""
    for tower in filter(is_local, filter(None, (getattr(config, name) for name in TOWERS))):
        remedy = "train with a published one, open_clip:<model>/<pretrained tag>, to share the run"
        raise ValueError(f"the tower {tower} is a file or folder of this machine, which others do not have: {remedy}")


def shared_settings(config):
    """The settings of a run that mean something elsewhere: what decides its results, and files by their name alone.

    The data keep their name, so that who has them can name another folder; label vectors lie beside.
    """
    found = {"preset": config.preset, "data": slug(config.data)} | config.decisive()
    if config.image_weights:
        found["image_weights"] = PureWindowsPath(config.image_weights).name
    return found | ({"label_embeddings": VECTORS} if config.label_embeddings else {})


def shared_metrics(metrics, settings):
    """metrics.json with the shared settings; of an error that left a part out its kind: its text may name files."""
    kinds = {part: reason.partition(":")[0] for part, reason in metrics.get("left_out", {}).items()}
    left_out = {"left_out": kinds} if kinds else {}
    return metrics | {"data": settings["data"], "config": settings} | left_out


def about_data(config, metrics):
    """What a run's data set says of itself; {} where it is not there, or another one by now."""
    try:
        data = load_data(config.data)
    except (OSError, ValueError):
        return {}
    images = {name: len(getattr(data, name)) for name in ("train", "val", "test")}
    return data.info | {"images": images} if metrics.get("inputs", {}).get("data") == data.fingerprint else {}
