"""The model card of a run, README.md of its repository: what it is, its figures, how it is opened, and its limits."""

import hashlib
import html
import importlib.metadata
import os
from pathlib import PureWindowsPath

import open_clip
import timm
from huggingface_hub import EvalResult, ModelCardData

from clipdec.training.report import dashed, table
from clipdec.training.scores import held_labels

TASK = "zero-shot-image-classification"  # the hub has no name for several labels an image
TAGS = ["clip", "multi-label", "zero-shot", "ml-decoder"]
OTHER = "other"  # the hub's name of a licence that it has no name for
UNKNOWN = "not known: the data were not at hand, or are others by now, when this card was written"


def model_card(name, config, metrics, labels, info, licence):
    """The text of a model card.

    Args: name, user/name; the run's Config, metrics.json and LabelSpace; info, what `load_data` says of its data, or
        {}; licence, as the hub names it.
    """
    parts = {
        "": about(config, labels), "How to load it": loading(name, config), "Data": data(config, labels, info),
        "Figures": figures(metrics), "Probabilities": probabilities(metrics), "Towers": towers(config),
        "Limits": limits(config, metrics), "Licence": licences(info, licence),
    }  # fmt: skip
    text = "\n\n".join(f"## {title}\n\n{part}" if title else part for title, part in parts.items())
    front = front_matter(name, config, metrics, licence)
    return f"---\n{front}\n---\n\n# {name.partition('/')[2]}\n\n{text}\n"


def front_matter(name, config, metrics, licence):
    """What the hub reads, as YAML, the figures among it."""
    results = [
        EvalResult(TASK, slug(config.data), slug(config.data), kind, value, metric_name=title, dataset_split="test")
        for title, kind, value in measured(metrics)
    ]
    model_name, base = name.partition("/")[2], base_models(config)
    facts = {"library_name": "clipdec", "license": licence, "tags": TAGS, "pipeline_tag": TASK}
    facts |= {"base_model": base} if base else {}
    facts |= {"eval_results": results, "model_name": model_name} if results else {}
    return ModelCardData(**facts).to_yaml()


def measured(metrics):
    """[(name, the hub's kind of figure, value)]: mAP and the first F1@K of ZSL and of GZSL, those that exist."""
    found = []
    for task in ("zsl", "gzsl"):
        for figure in ("map", first_f1(metrics)):
            title = f"{task.upper()} {'mAP' if figure == 'map' else figure.upper()}, percent"
            found.append((title, "map" if figure == "map" else "f1", metrics.get(task, {}).get(figure)))
    return [row for row in found if row[2] is not None]


def first_f1(metrics):
    """ "f1@3", or the first of the data's own K."""
    return next((figure for figure in metrics.get("gzsl", {}) if figure.startswith("f1@")), "f1@3")


def slug(data):
    """The name of a data set, without the folder that it lies in."""
    return PureWindowsPath(data).name  # of which either slash parts folders


def base_models(config):
    """The repositories of the hub that the towers are from, each once; the packaged mini CLIP is in none."""
    found = []
    for tower in filter(None, (config.image_tower, config.text_tower, config.sentence_tower)):
        kind, _, rest = tower.partition(":")
        if kind == "open_clip":
            found.append(open_clip.get_pretrained_cfg(*rest.split("/", 1)).get("hf_hub", "").rpartition("/")[0])
        elif kind == "timm" and not config.image_weights:
            found.append(timm.get_pretrained_cfg(rest).hf_hub_id)
    return [*dict.fromkeys(filter(None, found))]


def about(config, labels):
    addresses = importlib.metadata.metadata("clipdec").get_all("Project-URL") or []
    clipdec = f"[clipdec]({addresses[0].split(', ')[1]})" if addresses else "clipdec"
    trained, held = map(len, held_labels(labels, config))
    return f"""\
A CLIP-Decoder (Ali and Khan, ICCV 2023 Workshops, arXiv 2406.14830) trained with {clipdec}. It says which of any \
labels are in an image, each label's vector looking for itself in the image's tokens. The head (`head` {config.head}) \
was trained with {trained:,} of {trained + held:,} seen labels; zero-shot figures are of {len(labels.unseen):,} \
unseen ones. All settings are in `config.json`, all figures in `metrics.json`."""


def loading(name, config):
    lines = f"""\
```python
import clipdec
predictor = clipdec.Predictor.load("{name}")
predictor("photo.jpg", ["dog", "pizza"])  # [(label, probability), ...], the most probable first
```"""
    if config.label_embeddings:
        lines += "\n\nLabels are those of `label_vectors.npz`: it can be asked about the names in that file."
    if config.image_weights:
        path = config.path("image_weights")
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        lines += f"""\n
It needs a file that is not here, the weights of its image tower: `{path.name}`, SHA-256 `{sha}`. Put it where clipdec \
keeps `data/` and `runs/`: in its checkout, or the folder that `CLIPDEC_HOME` names."""
    return lines


def data(config, labels, info):
    """The data of a run: where they are from, how many images, which labels."""
    lines = [f"{verbatim(slug(config.data))}: {verbatim(info['source']) if 'source' in info else UNKNOWN}."]
    if images := info.get("images"):
        lines.append(f"{', '.join(f'{count:,} {split}' for split, count in images.items())} images.")
    for kind in ("seen", "unseen"):
        if names := getattr(labels, kind):
            lines.append(f"{len(names):,} {kind} labels, such as {', '.join(map(verbatim, names[:5]))}.")
    return " ".join(lines) + " Images are not part of this repository; `labels.json` has all names."


def without_folders(text):
    """A text whose absolute paths are their last part only."""
    whole = lambda word: os.path.isabs(word) or PureWindowsPath(word).is_absolute()
    return " ".join(PureWindowsPath(word).name if whole(word) else word for word in text.split())


def verbatim(text):
    """A data set's text as code, in which Markdown and HTML mean nothing."""
    return f"`{without_folders(text).replace('`', chr(39))}`"


def figures(metrics):
    """How the run was judged, and its figures with those of raw CLIP beside them."""
    f1, protocol = first_f1(metrics), metrics.get("protocol", {})
    columns = [(task, figure) for task in ("zsl", "gzsl") for figure in ("map", f1)] + [("seen", "map")]
    heads = [f"{t.upper() if t != 'seen' else t} {'mAP' if f == 'map' else f.upper()}" for t, f in columns]
    rows = [
        [title, *(dashed(report.get(task, {}).get(figure)) for task, figure in columns)]
        for title, report in (("this run", metrics), ("raw CLIP", metrics.get("raw_clip", {})))
    ]
    chosen = "test, so these figures flatter" if metrics.get("chosen_by") == "test_map" else "val"
    known = protocol.get("known_pairs")
    notes = f" AP is over the {known:.2g} % of pairs of image and label that are known." if known else ""
    notes += "".join(f" Not computed: {part}." for part in metrics.get("left_out", {}))
    return f"""\
In percent, on {protocol.get("test_images", 0):,} test images (keep={protocol.get("keep")}); \
{protocol.get("labels_without_positives", 0)} labels without a positive are left out. ZSL ranks the unseen labels \
alone, GZSL seen and unseen ones in one list. The epoch ({metrics.get("best_epoch")} of {metrics.get("epochs")}, seed \
{metrics.get("seed")}) was chosen on {chosen}. Raw CLIP is the untouched text tower's CLIP on the whole image, one \
prompt.{notes}

{table(["", *heads], rows)}"""


def probabilities(metrics):
    """What they are calibrated to, from where on a label is predicted, and how far they can be believed."""
    found, reliability = metrics["calibration"], metrics.get("reliability", {})
    start = f"{found['threshold']:.3f}"
    if found.get("note"):
        return f"Plain sigmoids, not calibrated: {found['note']}. A label is predicted from {start} on."
    gaps = [
        f"{part['gap_from_0.1']:.0f} points for {kind} labels" for kind, part in reliability.items()
        if part.get("gap_from_0.1") is not None
    ]  # fmt: skip
    judged = f" On test, where they are 0.1 or more, the gap to the share that is there is {', '.join(gaps)}."
    return f"""\
Calibrated to the seen labels of val, each of which is in {100 * found["base_rate"]:.2g} % of its images on average: \
say how common yours are, `Predictor.load(..., base_rate=0.05)`. `predictor.threshold`, {start}, is where predicted \
labels have the best F1 there.{judged if gaps else ""}"""


def towers(config):
    """Which towers it has, and whether their weights are here."""
    where = "was trained; its weights are in `checkpoint.safetensors`"
    if not config.train_image_tower:
        where = "is frozen and not part of the checkpoint: clipdec loads it by its name"
    looks = f", with windows of the image (`windows` {config.windows})" if config.windows else ""
    vectors = f"text tower `{config.text_tower}`, prompt `{config.prompt}`"
    if config.label_embeddings:
        vectors = "a file, here as `label_vectors.npz`"
    text = f"The image tower `{config.image_tower}`{looks} {where}. Label vectors: {vectors}."
    links = [f"[{name}](https://huggingface.co/{name})" for name in base_models(config)]
    return f"{text} On the hub: {', '.join(links)}." if links else text


def limits(config, metrics):
    """What its figures do not say."""
    twins, rest = metrics.get("protocol", {}).get("unseen_with_twin"), metrics.get("zsl_without_twins", {}).get("map")
    lines = [
        "It was trained and judged on the data above; how it does on other images was not measured.",
        "Unseen means: not carried by a training image of the head. The CLIP behind it may have met those things.",
        "Each label is answered for by itself. It finds things, it does not count or outline them.",
    ]
    if twins:
        alone = f"; without them ZSL mAP is {rest:.1f}" if rest is not None else ""
        lines.insert(2, f"{twins} unseen labels have a seen one whose name all but gives them away{alone}.")
    if config.hold_out:
        held = f"{100 * config.hold_out:.2g} % of the seen labels were kept out of the training, to choose by"
        lines.append(f"{held}; in GZSL they count as seen.")
    return "\n".join(f"- {line}" for line in lines)


def licences(info, licence):
    """Of what is in the repository, and of what it was made with."""
    weights = "not named by who shared it" if licence == OTHER else f"`{licence}`"
    data = verbatim(info["licence"]) if "licence" in info else UNKNOWN
    text = f"Weights of this repository: {weights}. Data: {data}."
    if info.get("attribution"):
        named = html.escape(without_folders(info["attribution"]), quote=False)  # it has links, as licences ask for
        text += f" {named.replace('![', '[')}"
    return f"{text} The towers have their own licences, clipdec is under the MIT licence."
