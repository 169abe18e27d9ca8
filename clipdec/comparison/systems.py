"""The methods side by side on one data set: untouched CLIP, CONSE, ML-Decoder, CLIP-Decoder and this repository's head.

    python -m clipdec.comparison --word-vectors data/emoji/word_vectors.npz --out results/emoji                # the table
    python -m clipdec.comparison --word-vectors data/emoji/word_vectors.npz --out results/emoji --ablations    # one change at a time
    python -m clipdec.comparison --config run.json --word-vectors glove.npz --out results/coco                 # your data and towers

`make results` makes everything in results/. No figure depends on test labels: epochs and offsets are chosen on val.
"""

import argparse
import contextlib
import json
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from clipdec.comparison.methods.raw_clip import PROMPTS, conse_scores, patch_projection, raw_clip_patch_scores, raw_clip_scores, raw_clip_softmax_scores
from clipdec.training.config import Config
from clipdec.data import DATA, encode_images, load_data
from clipdec.evaluation import full_report, split_scores
from clipdec.metrics import resampled_map
from clipdec.model import load_run
from clipdec.comparison.report import write_report
from clipdec.towers import ImageTower
from clipdec.training.run import fit, versions

BASELINES = {
    "raw_clip": raw_clip_scores,
    "raw_clip_ensemble": partial(raw_clip_scores, prompts=PROMPTS),
    "raw_clip_softmax": raw_clip_softmax_scores,
    "raw_clip_patch": raw_clip_patch_scores,
    "conse": conse_scores,
}
DEFECTS = ("train_projections", "learn_scale", "mask_equal", "choose_on_val", "keep_best", "drop_unlabelled")
TRAINED = {  # what each sets otherwise than the run's Config; WORDS stands for the file of word vectors
    "ml_decoder": {"head": "ml_decoder", "alpha": 0.0, "label_embeddings": "WORDS"},
    "clip_decoder_author": {"head": "ml_decoder", "hold_out": 0.0} | dict.fromkeys(DEFECTS, False),
    "clip_decoder": {"head": "ml_decoder"},
    "best": {},
}
SYSTEMS = [*BASELINES, *TRAINED]
ABLATIONS = {  # group: {setting: what it sets otherwise than the group's first setting}
    "head": {"residual": {}, "matching": {"head": "matching"}, "linear": {"head": "linear"}, "ml_decoder": {"head": "ml_decoder"}},
    "prompt": {"a photo of {}": {}, "{}": {"prompt": "{}"}, "one more sentence about {} here": {"prompt": "one more sentence about {} here"}},
    "label vectors": {"CLIP": {}, "word vectors": {"label_embeddings": "WORDS"}},
    "alpha, beta": {"1, 1": {}, "0, 1": {"alpha": 0.0}, "0.2, 1": {"alpha": 0.2}, "5, 1": {"alpha": 5.0}},
    "seen labels in training": {"95 %": {}, "65 %": {"hold_out": 0.35}, "32 %": {"hold_out": 0.68}, "11 %": {"hold_out": 0.89}},
    "decoder width": {"96": {}, "48": {"embed_dim": 48}, "192": {"embed_dim": 192}},
    "image tower": {"frozen": {}, "trained, lr 5e-4": {"train_image_tower": True, "lr": 5e-4}},
    "defects of the author's code, with the paper's head": {"none": {"head": "ml_decoder"}}
    | {f"{name} False": {"head": "ml_decoder", name: False} for name in DEFECTS},
}
PAIRS = [*(("best", other) for other in (*BASELINES, "ml_decoder", "clip_decoder_author", "clip_decoder")), ("clip_decoder", "ml_decoder")]
TASKS = ("zsl", "gzsl")
RUNS = Path("runs/comparison")  # from the repository's root


def run_all(tasks, jobs):
    """The results of `run_system` for each of `tasks`, its arguments, in their order; `jobs` run at a time and share the cores."""
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        running = [pool.submit(run_system, *task) for task in tasks]
        for task, run in zip(tasks, running):
            row, maps = run.result()
            print(f"{task[2].name}: " + ", ".join(f"{name} mAP {row[name]['map']:.1f}" for name in TASKS), flush=True)
            yield row, maps


def run_system(name, config, folder, resume=False):
    """One system with one seed: (its row of results, mAP of every bootstrap sample for each task).

    The folder holds scores.npy, the scores [M, L] of test; log.txt, what was printed; and of a trained system its run.
    """
    data, folder = load_data(config.data), DATA.parent / folder
    kept = folder / "scores.npy"
    folder.mkdir(parents=True, exist_ok=True)
    if not (resume and kept.is_file()):
        with open(folder / "log.txt", "w", encoding="utf8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            np.save(kept, _scores(name, data, config))
    scores, targets = torch.from_numpy(np.load(kept)), data.test.targets
    report = full_report(scores, targets, data.labels)
    row = {"system": name, "seed": config.seed} | {part: report[part] for part in ("zsl", "gzsl", "seen", "zsl_without_twins", "protocol")}
    if name in TRAINED:
        metrics = json.loads((folder / "metrics.json").read_text())
        row |= {key: metrics[key] for key in ("gzsl_calibrated", "seen_offset", "clip_weight", "best_epoch", "seconds") if key in metrics}
    weights, groups = bootstrap_weights(len(targets)), {"zsl": data.labels.unseen_index, "gzsl": torch.arange(len(data.labels.names))}
    return row, {task: 100 * resampled_map(scores[:, index], targets[:, index], weights) for task, index in groups.items()}


def _scores(name, data, config):
    if name in BASELINES:
        return BASELINES[name](data, config).numpy()
    fit(data, config)
    return split_scores(load_run(config.path("out_dir"))[1], data.test, data, config).numpy()


def encode_all(config):
    """Tokens of all images, once, before several processes ask for them."""
    data, towers = load_data(config.data), [ImageTower(config.text_tower)]
    if config.image_tower != config.text_tower and not config.train_image_tower:
        towers.append(ImageTower(config.image_tower, config.path("image_weights"), config.image_weights_by_order))
    for tower in towers:
        for split in (data.train, data.val, data.test):
            encode_images(tower, split, data.folder / "tokens", num_workers=config.num_workers, device=config.device)


def compare(base, word_vectors, seeds, folder, systems=SYSTEMS, jobs=1, resume=False):
    """Run `systems` with every seed: (rows of results, differences).

    Args:
        base: the settings that all share, as of a Config's JSON.
        word_vectors: .npz of label vectors that no image taught, for `ml_decoder` and `conse`.
        folder: a folder a run goes below it; a relative path starts at the repository's root.
        jobs: how many run at a time.
        resume: take the runs that are there.

    Returns: rows {"system", "seed", "zsl", "gzsl", ..., "command"}, and for each of PAIRS the difference of mAP, see `difference`.
    """
    encode_all(Config(**base))
    if patch_projection(Config(**base)) is None and "raw_clip_patch" in systems:
        systems = [name for name in systems if name != "raw_clip_patch"]
        print("raw_clip_patch is left out: this CLIP has no projection for its patches", flush=True)
    names = [(name, seed) for seed in range(seeds) for name in systems]
    tasks = [(name, system_config(name, base, word_vectors, seed, here := folder / f"{name}-{seed}"), here, resume) for name, seed in names]
    rows, maps = [], {}
    for (name, seed), (row, resampled) in zip(names, run_all(tasks, jobs)):
        rows.append(row | {"command": command(name, base, word_vectors, seed)})
        maps[name, seed] = resampled
    figures = {(row["system"], row["seed"]): row for row in rows}
    pairs = [pair for pair in PAIRS if set(pair) <= set(systems)]
    rows.sort(key=lambda row: systems.index(row["system"]))
    return rows, [{"systems": [a, b]} | difference(a, b, figures, maps, range(seeds)) for a, b in pairs]


def difference(a, b, figures, maps, seeds):
    """a minus b in mAP: for each task the mean over the seeds, the least and the largest, and the 95 % interval of the mean when
    the test images are drawn again.

    An image that is drawn twice raises AP a little. So the draws are taken around their own mean, and laid around the measured one.

    Args: figures {(name, seed): {task: {"map"}}}, maps {(name, seed): {task: mAP of every draw}}.
    """
    found = {}
    for task in TASKS:
        each = [figures[a, seed][task]["map"] - figures[b, seed][task]["map"] for seed in seeds]
        resampled = torch.stack([maps[a, seed][task] - maps[b, seed][task] for seed in seeds]).mean(0)
        mean = sum(each) / len(each)
        interval = (resampled - resampled.mean()).quantile(torch.tensor([0.025, 0.975], dtype=resampled.dtype)) + mean
        found[task] = {"mean": mean, "min": min(each), "max": max(each), "interval": interval.tolist()}
    return found


def bootstrap_weights(images, draws=500, seed=0):
    """How often each image is in each of `draws` samples of as many, drawn with replacement: [draws, images]."""
    drawn = torch.randint(images, (draws, images), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(draws, images, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(draws, images, dtype=torch.float64))


def ablate(base, word_vectors, seeds, folder, jobs=1, resume=False):
    """Run ABLATIONS, equal settings of several groups once: (rows {"group", "setting", "seed", "epochs", "zsl", "gzsl", "command"},
    differences {"group", "setting", "zsl", "gzsl"} to the group's first setting, see `difference`)."""
    encode_all(Config(**base))
    listed, tasks = [], {}
    for group, settings in ABLATIONS.items():
        for setting, changes in settings.items():
            for seed in range(seeds):
                changed = {k: word_vectors if v == "WORDS" else v for k, v in changes.items()}
                here = folder / "-".join([*(f"{k}={Path(v).stem if v == word_vectors else v}" for k, v in changed.items()), str(seed)])
                tasks[here] = ("best", Config(**base | changed | {"seed": seed, "out_dir": str(here)}), here, resume)
                listed.append((here, {"group": group, "setting": setting, "seed": seed, "command": notebook_command(base | changed, seed)}))
    done = dict(zip(tasks, run_all(list(tasks.values()), jobs)))
    rows = [row | {"epochs": tasks[here][1].epochs} | {k: done[here][0][k] for k in (*TASKS, "seconds")} for here, row in listed]
    figures, maps = ({((row["group"], row["setting"]), row["seed"]): done[here][part] for here, row in listed} for part in (0, 1))
    differences = []
    for group, (first, *others) in ABLATIONS.items():
        for setting in others:
            found = difference((group, setting), (group, first), figures, maps, range(seeds))
            differences.append({"group": group, "setting": setting} | found)
    return rows, differences


def system_config(name, base, word_vectors, seed, folder):
    """The Config of a system."""
    changes = TRAINED.get(name, {"label_embeddings": "WORDS"} if name == "conse" else {})
    changes = {k: word_vectors if v == "WORDS" else v for k, v in changes.items()}
    return Config(**base | changes | {"seed": seed, "out_dir": str(folder)})


def command(name, base, word_vectors, seed):
    """What makes a row again; settings of `base` that have no option of their own go into a --config."""
    if name in BASELINES:
        options = {"--systems": name, "--seeds": seed + 1} | ({"--data": base["data"]} if "data" in base else {})
        options |= ({"--word-vectors": word_vectors} if name == "conse" else {}) | {"--out": "runs/again"}
        return "python -m clipdec.comparison " + shlex.join(str(part) for option in options.items() for part in option)
    changes = {k: word_vectors if v == "WORDS" else v for k, v in TRAINED[name].items()}
    return notebook_command(base | changes, seed)


def notebook_command(settings, seed):
    listed = "".join(f" -p {k} {shlex.quote(str(v))}" for k, v in settings.items())
    return f"papermill notebooks/04_train.ipynb out.ipynb{listed} -p seed {seed} -p out_dir runs/again"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="JSON file with a preset and any parameters of notebook 04 that all systems share, data among them")
    parser.add_argument("--data", help="prepared data set, in place of the config's")
    parser.add_argument("--word-vectors", help=".npz of label vectors for ml_decoder and conse: data_prep.word_vectors or data_prep.embeddings makes one")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, metavar="SYSTEM", help=f"by default all: {', '.join(SYSTEMS)}")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... (default 5)")
    parser.add_argument("--epochs", type=int, help="in place of the config's")
    parser.add_argument("--ablations", action="store_true", help="run the ablations instead of the systems")
    parser.add_argument("--out", default="results/emoji", help="writes OUT.json and OUT_summary.json, or OUT_ablations.json (default results/emoji)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores (default 1)")
    parser.add_argument("--resume", action="store_true", help="keep the runs that are there, in runs/comparison")
    args = parser.parse_args(arguments)
    base = json.loads(Path(args.config).read_text(encoding="utf8")) if args.config else {}
    base |= {k: v for k, v in (("data", args.data), ("epochs", args.epochs)) if v is not None}
    needs_words = args.ablations or {"ml_decoder", "conse"} & set(args.systems)
    if needs_words and not args.word_vectors:
        parser.error("ml_decoder, conse and the ablations need --word-vectors; for the emoji scenes `python -m data_prep.word_vectors` makes them")
    out = Path(args.out)
    folder = RUNS / (out.name + "_ablations" * args.ablations)
    out.parent.mkdir(parents=True, exist_ok=True)
    if args.ablations:
        rows, differences = ablate(base, args.word_vectors, args.seeds, folder, args.jobs, args.resume)
        write(out.with_name(f"{out.name}_ablations.json"), {"rows": rows, "differences": differences})
    else:
        rows, differences = compare(base, args.word_vectors, args.seeds, folder, args.systems, args.jobs, args.resume)
        write(out.with_name(f"{out.name}.json"), rows)
        summary = {"differences": differences, "threads": torch.get_num_threads() // args.jobs, "versions": versions()}
        write(out.with_name(f"{out.name}_summary.json"), summary)
        write_report(out)


def write(path, content):
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
    print(path)


if __name__ == "__main__":
    sys.exit(main())
