"""The systems that are compared, methods of the field and trained heads, by name; and running them."""

import shlex
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context

import torch

from clipdec.comparison import field
from clipdec.comparison.field import BUDGETS, FREE, METHODS, budget
from clipdec.comparison.methods.raw_clip import patch_projection
from clipdec.comparison.protocol import FACTORS, PROTOCOL, count_weights, trained_scores
from clipdec.comparison.statistics import difference, resampled_maps
from clipdec.data import load_data
from clipdec.metrics import average_precision
from clipdec.towers import ImageTower, windows_of
from clipdec.training.author import followed
from clipdec.training.build import image_tower, load_run
from clipdec.training.config import Config, read_settings
from clipdec.training.inputs import changed, inputs_of
from clipdec.training.machine import device_name, versions
from clipdec.training.report import dashed, full_report
from clipdec.training.run import fit
from clipdec.training.run_folder import RunFolder, check_out_dir, read_history, read_scores, write_scores
from clipdec.training.scores import split_scores
from clipdec.training.tokens import encode_split

WORDS = {"label_embeddings": "WORDS"}  # `with_words` puts the file of word vectors there
PAPER = {"head": "ml_decoder"}
TRAINED = {  # heads that `fit` trains, and what each sets otherwise than the run's Config
    "ml_decoder": PAPER | {"alpha": 0.0} | WORDS | BUDGETS[""],
    "clip_decoder_author": PAPER | {"hold_out": 0.0, "patience": 0, "as_author": "all"} | BUDGETS[""],
    "clip_decoder": PAPER | BUDGETS[""],
    "clip_decoder_5": PAPER | BUDGETS["_5"],
    "clip_decoder_windows": PAPER | BUDGETS["_windows"],
    "best": BUDGETS[""],
    "best_5": BUDGETS["_5"],
    "best_windows": BUDGETS["_windows"],
}
CHANGES = {name: field.settings(name) for name in FREE | METHODS} | TRAINED
CHANGES["conse"] |= WORDS
SYSTEMS = list(CHANGES)
TUNED = METHODS.keys() | TRAINED.keys() - {"clip_decoder_author"}  # which choose their learning rate by the protocol
PAIRS = [(f"best{end}", name) for end in BUDGETS for name in SYSTEMS if budget(name) == end and name != f"best{end}"]
PAIRS += [("clip_decoder", "ml_decoder"), ("clip_decoder", "clip_decoder_author")]
KEPT = "zsl gzsl seen zsl_without_twins equal_prevalence protocol gzsl_calibrated seen_offset reliability".split()
KEPT += "clip_weight best_epoch val_map val_maps seconds weights training_seconds scoring_seconds".split()


def compare(base, word_vectors, seeds, folder, systems=SYSTEMS, jobs=1, resume=False, settings_file=None):
    """Run `systems` with every seed: (rows of results, {"differences" of PAIRS and what `machine` says}).

    Those of TUNED run with seed 0 at each learning rate of the protocol first, and with the other seeds at the one that
    val prefers. Those of FREE have no seed: they run once.

    Args: base, the settings that all share; word_vectors, .npz of label vectors that no image taught; folder, from the
    repository's root, of a folder a run; jobs, how many run at a time; resume, whether to take the runs that are there;
    settings_file, where `base` was read, for the commands in the rows.
    """
    systems = [name for name in systems if _can_run(name, Config(**base))]
    encode_all(base, [CHANGES[name]["windows"] for name in systems])

    def run(runs):
        """{(system, seed, factor of the learning rate): what `run_system` gives}."""
        tasks = []
        for name, seed, factor in runs:
            where = folder / f"{name}-{seed}{'' if factor == 1 else f'-{factor:g}lr'}"
            tasks.append((name, system_config(name, base, word_vectors, seed, factor, where)))
        return dict(zip(runs, run_all(tasks, jobs, resume)))

    found = run([(name, 0, factor) for name in systems for factor in (FACTORS if name in TUNED else [1.0])])
    # where val measures nothing, val_map is None and the method's own rate is taken
    judged = lambda name: lambda factor: (found[name, 0, factor][0]["val_map"] or 0, factor == 1)
    chosen = {name: max(FACTORS, key=judged(name)) if name in TUNED else 1.0 for name in systems}
    found |= run([(name, seed, chosen[name]) for seed in range(1, seeds) for name in systems if name not in FREE])
    results = {name: [] for name in systems}
    for name in systems:
        for seed in range(seeds):
            row, maps = found[name, 0 if name in FREE else seed, chosen[name]]
            again = command(name, base, word_vectors, seed, settings_file, chosen[name])
            results[name].append((row | {"seed": seed, "command": again}, maps))
    differences = [{"systems": [a, b]} | difference(results[a], results[b]) for a, b in PAIRS if {a, b} <= {*systems}]
    return [row for each in results.values() for row, _ in each], {"differences": differences} | machine(base, jobs)


def machine(base, jobs):
    """What the results say of the machine that they were made on."""
    device, threads = device_name(Config(**base).device), max(1, torch.get_num_threads() // jobs)
    return {"device": device, "threads": threads, "versions": versions()}


def _can_run(name, config):
    """Whether the run's towers have what a system needs; says so if not."""
    missing, of_patches = "", name in field.OF_PATCHES or name in field.OF_ONE_CLIP and not budget(name)
    if name in FREE and config.label_embeddings and config.image_tower != config.text_tower:
        missing = "no CLIP is asked here, as label vectors come from a file"
    elif of_patches and patch_projection(config) is None:
        missing = "this CLIP has no projection for its patches"
    if name in field.OF_ONE_CLIP and (config.image_tower != config.text_tower or config.label_embeddings):
        missing = "images and labels are not encoded by one CLIP"
    if missing:
        print(f"{name} is left out: {missing}", flush=True)
    return not missing


def encode_all(base, looks):
    """Tokens of all images for each of `looks`, values of `windows`, before several processes ask for them."""
    for config in [Config(**base | {"windows": windows}) for windows in dict.fromkeys(looks)]:
        data, towers = load_data(config.data), [ImageTower(config.text_tower, windows=config.windows)]
        if config.image_tower != config.text_tower and not config.train_image_tower:
            towers.append(image_tower(config))
        for tower in towers:
            for split in (data.train, data.val, data.test):
                encode_split(tower, split, data, config)


def run_all(tasks, jobs, resume):
    """Yield what `run_system` gives for each (name, Config) of `tasks`; `jobs` run at a time and share the cores."""
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        running = [pool.submit(run_system, *task, resume) for task in tasks]
        try:
            for (_, config), run in zip(tasks, running):
                row, maps = run.result()
                figures = ", ".join(f"{task} mAP {dashed(row[task].get('map'))}" for task in maps)
                print(f"{config.path('out_dir').name}: {figures}", flush=True)
                yield row, maps
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C those that wait are not begun


def run_system(name, config, resume=False):
    """One system with one seed: (its row of results, {task: mAP of every bootstrap sample, [R]}).

    Its out_dir holds scores.npz, the scores [M, L] of test and what they were made of; metrics.json, their figures and
    costs; log.txt, what was printed; of a trained head its run. With `resume` scores that were made of the same are
    taken as they are.
    """
    data, path = load_data(config.data), config.path("out_dir")
    made_of = ingredients(name, data, config)
    metrics, scores = kept(path, made_of) if resume else (None, None)
    if metrics is None:
        check_out_dir(path)
        path.mkdir(parents=True, exist_ok=True)
        with open(path / "log.txt", "w", encoding="utf8") as log, redirect_stdout(log), redirect_stderr(log):
            scores, costs = (fitted if name in TRAINED else computed)(name, data, config)
        metrics = _keep(path, name, config, made_of, scores, costs, data)
    return _row(name, config, metrics, scores, data), resampled_maps(scores, data.test, data.labels)


def kept(path, made_of):
    """(metrics, scores [M, L] of test) of a run that ended and was made of the same, or (None, None)."""
    metrics = read_settings(path / "metrics.json") if (path / "metrics.json").is_file() else {}
    found = read_scores(path, "test") if "scoring_seconds" in metrics else None  # metrics.json is written last
    if found is None:
        return None, None
    scores, before = found
    if others := changed(before, made_of):
        print(f"{path.name} runs again: it was made with another {others}", flush=True)
        return None, None
    return metrics, scores


def _row(name, config, metrics, scores, data):
    row = {"system": name, "seed": config.seed, "block": block(name), "lr": config.lr}
    row |= {"passes": 1 + len(windows_of(config.windows))} | {key: metrics[key] for key in KEPT if key in metrics}
    if field.stem(name) in field.OWN_TOWER:
        row["own_tower"] = field.OWN_TOWER[field.stem(name)]
    if name in field.PUBLISHED:
        row["published"] = dict(zip(("zsl", "gzsl"), field.PUBLISHED[name]))
    if config.as_author:
        row["as_author"] = metrics["config"]["as_author"]  # of "all", those that the settings and the data allow
    unseen = data.labels.unseen_index
    ap = 100 * average_precision(scores, data.test.targets, known=data.test.known)[unseen]
    return row | {"unseen_ap": {name: round(value, 2) for name, value in zip(data.labels.unseen, ap.tolist())}}


def block(name):
    """What a system had to learn from."""
    if name in FREE:
        return "training-free" if name in field.TRAINING_FREE else "transductive"
    return "trained on seen labels"


def ingredients(name, data, config):
    """{what: value} that the scores of a system depend on."""
    if name in TRAINED:
        return followed(config, data).decisive() | inputs_of(config, data.labels, image_tower(config), data)
    return {"system": name} | config.decisive() | inputs_of(config, data.labels, data=data)


def computed(name, data, config):
    """(scores [M, L] of test, costs) of a method of the field."""
    if name in METHODS:
        return trained_scores(METHODS[name], data, config)
    began = time.perf_counter()
    scores = FREE[name](data, config)
    return scores, {"weights": 0, "training_seconds": 0.0, "scoring_seconds": time.perf_counter() - began}


def fitted(name, data, config):
    """(scores [M, L] of test, costs) of a head, after `fit`."""
    best, path = fit(data, config)["best_epoch"], config.path("out_dir")
    model, history, began = load_run(path)[1].to(config.device), read_history(path), time.perf_counter()
    scores = split_scores(model, data.test, data, config)
    costs = {"weights": count_weights(model), "training_seconds": sum(row["seconds"] for row in history)}
    maps = [row["val_map"] for row in history]
    return scores, costs | {"scoring_seconds": time.perf_counter() - began, "val_map": maps[best - 1], "val_maps": maps}


def _keep(path, name, config, made_of, scores, costs, data):
    """Write down what came out, and return what is in metrics.json then."""
    folder = RunFolder(path)
    if name in TRAINED:
        figures = read_settings(path / "metrics.json")
    else:
        folder.write_json("config.json", config.as_dict())
        write_scores(path / "scores.npz", made_of, test=scores)
        figures = full_report(scores, data.test.targets, data.labels, known=data.test.known)
    metrics = folder.write_json("metrics.json", figures | costs)
    folder.close()
    return metrics


def with_words(changes, word_vectors):
    return changes | {"label_embeddings": word_vectors} if WORDS.items() <= changes.items() else changes


def system_config(name, base, word_vectors, seed, factor, folder):
    """The Config of a system, its learning rate multiplied with `factor`."""
    settings = PROTOCOL | base | with_words(CHANGES[name], word_vectors)
    lr = factor * Config(**settings).lr
    return Config(**settings | {"lr": lr, "seed": seed, "out_dir": str(folder)})


def command(name, base, word_vectors, seed, settings_file=None, factor=1.0):
    """What makes a row again."""
    if name in TRAINED:
        chosen = {"lr": system_config(name, base, word_vectors, seed, factor, "").lr} if factor != 1 else {}
        return notebook_command(PROTOCOL | base | with_words(TRAINED[name], word_vectors) | chosen, seed)
    options = ["--systems", name, "--seeds", str(seed + 1), *(["--data", base["data"]] if "data" in base else [])]
    options += ["--config", settings_file] if settings_file else []
    options += ["--epochs", str(base["epochs"])] if "epochs" in base else []
    options += ["--word-vectors", word_vectors] if name == "conse" else []
    return "python -m clipdec.comparison " + shlex.join([*options, "--out", "runs/again"])


def notebook_command(settings, seed):
    listed = "".join(f" -p {k} {shlex.quote(str(v))}" for k, v in settings.items())
    return f"papermill notebooks/04_train.ipynb out.ipynb{listed} -p seed {seed} -p out_dir runs/again"
