"""The systems that are compared, methods of the field and trained heads, by name; and running them."""

import json
import shlex
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context

import torch

from clipdec.comparison.methods import conse, raw_clip
from clipdec.comparison.statistics import bootstrap_weights, difference, resampled_ap
from clipdec.data import load_data
from clipdec.metrics import average_precision
from clipdec.towers import ImageTower
from clipdec.training.author import followed
from clipdec.training.build import image_tower, load_run
from clipdec.training.config import Config
from clipdec.training.inputs import changed, inputs_of
from clipdec.training.machine import device_name, versions
from clipdec.training.report import dashed, full_report
from clipdec.training.run import fit
from clipdec.training.run_folder import check_out_dir, read_scores, write_scores
from clipdec.training.scores import raw_clip_scores, run_scores
from clipdec.training.tokens import encode_split

BASELINES = {
    "raw_clip": raw_clip_scores, "raw_clip_ensemble": raw_clip.ensemble_scores,
    "raw_clip_softmax": raw_clip.softmax_scores, "raw_clip_patch": raw_clip.patch_scores, "conse": conse.conse_scores,
}  # fmt: skip
WORDS = {"label_embeddings": "WORDS"}  # `with_words` puts the file of word vectors there
PAPER = {"head": "ml_decoder"}
TRAINED = {  # what each sets otherwise than the run's Config
    "ml_decoder": PAPER | {"alpha": 0.0} | WORDS,
    "clip_decoder_author": PAPER | {"hold_out": 0.0, "as_author": "all"},
    "clip_decoder": PAPER, "best": {},
}  # fmt: skip
CHANGES = dict.fromkeys(BASELINES, {}) | {"conse": WORDS} | TRAINED
SYSTEMS = list(CHANGES)
PAIRS = [*(("best", other) for other in SYSTEMS if other != "best"), ("clip_decoder", "ml_decoder")]
PAIRS += [("clip_decoder", "clip_decoder_author")]
KEPT = "zsl gzsl seen zsl_without_twins equal_prevalence protocol gzsl_calibrated seen_offset reliability".split()
KEPT += "clip_weight best_epoch seconds".split()


def compare(base, word_vectors, seeds, folder, systems=SYSTEMS, jobs=1, resume=False, settings_file=None):
    """Run `systems` with every seed: (rows of results, {"differences" of PAIRS and what `machine` says}).

    Args: base, the settings that all share; word_vectors, .npz of label vectors that no image taught; folder, from the
    repository's root, of a folder a run; jobs, how many run at a time; resume, whether to take the runs that are there;
    settings_file, where `base` was read, for the commands in the rows.
    """
    encode_all(Config(**base))
    if "raw_clip_patch" in systems and raw_clip.patch_projection(Config(**base)) is None:
        systems = [name for name in systems if name != "raw_clip_patch"]
        print("raw_clip_patch is left out: this CLIP has no projection for its patches", flush=True)
    runs = [(name, seed) for seed in range(seeds) for name in systems]
    tasks = [(name, system_config(name, base, word_vectors, seed, folder / f"{name}-{seed}")) for name, seed in runs]
    results = {name: [] for name in systems}
    for (name, seed), (row, maps) in zip(runs, run_all(tasks, jobs, resume)):
        results[name].append((row | {"command": command(name, base, word_vectors, seed, settings_file)}, maps))
    differences = [{"systems": [a, b]} | difference(results[a], results[b]) for a, b in PAIRS if {a, b} <= {*systems}]
    return [row for each in results.values() for row, _ in each], {"differences": differences} | machine(base, jobs)


def machine(base, jobs):
    """What the results say of the machine that they were made on."""
    device, threads = device_name(Config(**base).device), max(1, torch.get_num_threads() // jobs)
    return {"device": device, "threads": threads, "versions": versions()}


def encode_all(config):
    """Tokens of all images, once, before several processes ask for them."""
    data, towers = load_data(config.data), [ImageTower(config.text_tower)]
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
        for (_, config), run in zip(tasks, running):
            row, maps = run.result()
            figures = ", ".join(f"{task} mAP {dashed(row[task].get('map'))}" for task in maps)
            print(f"{config.path('out_dir').name}: {figures}", flush=True)
            yield row, maps


def run_system(name, config, resume=False):
    """One system with one seed: (its row of results, {task: mAP of every bootstrap sample, [R]}).

    Its out_dir holds scores.npz, the scores [M, L] of test and what they were made of; log.txt, what was printed; of a
    trained system its run. With `resume` kept scores are taken; ValueError if they were made of something else.
    """
    data, folder = load_data(config.data), config.path("out_dir")
    made_of = ingredients(name, data, config)
    finished = name in BASELINES or (folder / "metrics.json").is_file()
    kept = read_scores(folder, "test") if resume and finished else None
    if kept:
        scores, before = kept
        if others := changed(before, made_of):
            found = f"{folder / 'scores.npz'} was made with another {others}"
            raise ValueError(f"{found}: compare without --resume, or with another --out")
    else:
        check_out_dir(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log.txt", "w", encoding="utf8") as log, redirect_stdout(log), redirect_stderr(log):
            scores = BASELINES.get(name, trained_scores)(data, config)
        if name in BASELINES:
            write_scores(folder / "scores.npz", made_of, test=scores)
    targets, known = data.test.targets, data.test.known
    report = lambda: full_report(scores, targets, data.labels, known=known)
    found = json.loads((folder / "metrics.json").read_text(encoding="utf8")) if name in TRAINED else report()
    row = {"system": name, "seed": config.seed} | {key: found[key] for key in KEPT if key in found}
    if config.as_author:
        row["as_author"] = found["config"]["as_author"]  # of "all", those that the settings and the data allow
    unseen = data.labels.unseen_index
    ap = 100 * average_precision(scores, targets, known=known)[unseen]
    row["unseen_ap"] = {name: round(value, 2) for name, value in zip(data.labels.unseen, ap.tolist())}
    precisions = 100 * resampled_ap(scores, targets, bootstrap_weights(len(targets)), known)  # [L, R]
    return row, {"zsl": precisions[unseen].nanmean(0), "gzsl": precisions.nanmean(0)}


def ingredients(name, data, config):
    """{what: value} that the scores of a system depend on."""
    if name in BASELINES:
        return {"system": name} | config.decisive() | inputs_of(config, data.labels, data=data)
    return followed(config, data).decisive() | inputs_of(config, data.labels, image_tower(config), data)


def trained_scores(data, config):
    fit(data, config)
    return run_scores(config.path("out_dir"), load_run(config.path("out_dir"))[1], data, config)


def with_words(changes, word_vectors):
    return changes | {"label_embeddings": word_vectors} if WORDS.items() <= changes.items() else changes


def system_config(name, base, word_vectors, seed, folder):
    return Config(**base | with_words(CHANGES[name], word_vectors) | {"seed": seed, "out_dir": str(folder)})


def command(name, base, word_vectors, seed, settings_file=None):
    """What makes a row again."""
    if name in TRAINED:
        return notebook_command(base | with_words(TRAINED[name], word_vectors), seed)
    options = ["--systems", name, "--seeds", str(seed + 1), *(["--data", base["data"]] if "data" in base else [])]
    options += ["--config", settings_file] if settings_file else []
    options += ["--word-vectors", word_vectors] if name == "conse" else []
    return "python -m clipdec.comparison " + shlex.join([*options, "--out", "runs/again"])


def notebook_command(settings, seed):
    listed = "".join(f" -p {k} {shlex.quote(str(v))}" for k, v in settings.items())
    return f"papermill notebooks/04_train.ipynb out.ipynb{listed} -p seed {seed} -p out_dir runs/again"
