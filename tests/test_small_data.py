"""Data sets as small as they come: a part that has no image, no label or no positive is said, and the rest goes on."""

import io
import json
import re

import datasets
import numpy as np
import pytest
from PIL import Image
from test_notebooks import printed

from clipdec import Config, Predictor, fit, load_data
from clipdec.comparison import ablations, report
from clipdec.comparison.statistics import difference
from clipdec.comparison.systems import run_system
from clipdec.notebook.panel import Panel
from clipdec.predictor.__main__ import show
from clipdec.training.report import result_table
from clipdec.training.run_folder import read_history, without_nan
from clipdec.training.scores import split_scores

COLOURS = {"g": (30, 160, 40), "b": (30, 50, 200), "k": (10, 10, 10), "r": (200, 30, 30), "w": (240, 240, 240)}
NAMES = {"g": "green", "b": "blue", "k": "black", "r": "red", "w": "white"}
TRAIN = "g b gb k kg bk"
SETS = {  # seen and unseen labels, the labels of each image of train, val and test ("-": none), why val decides nothing
    "empty val": ("gbk", "rw", TRAIN, "", "rg w br kw", "it holds no image"),
    "val without a positive": ("gbk", "rw", TRAIN, "- -", "rg w br", "none of its images carries a label"),
    "one seen label": ("g", "rw", "g g g", "g g", "rg w gr", "each of its images carries all labels"),
    "one unseen label": ("gbk", "r", TRAIN, "g bk", "rg b br", None),
    "no unseen label": ("gbk", "", TRAIN, "g bk", "g b bk", None),
    "no unseen label, empty val": ("gb", "", "g b gb", "", "g b", "it holds no image"),
    "no unseen positive": ("gbk", "rw", TRAIN, "g bk", "g b bk", None),
    "one image in train and val": ("gbk", "rw", "gb", "g", "rg w", None),
    "one image": ("g", "r", "g", "-", "gr", "none of its images carries a label"),
    "label without an image": ("gbk", "rw", TRAIN, "g bk", "rg r br", None),
    "no positive in test": ("gb", "r", "g b", "g b", "- -", None),
    "no image in test": ("gb", "r", "g b", "g b", "", None),
}


def picture(names):
    """A small PNG with a stripe of each colour."""
    pixels = np.concatenate([np.full((32, 12, 3), COLOURS.get(name, (128, 128, 128))) for name in names], axis=1)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """small(name): the folder of one of SETS, as a script of data_prep writes it."""

    def write(name):
        folder, (seen, unseen, *splits, _) = tmp_path_factory.mktemp("small"), SETS[name]
        kinds = {"image": datasets.Image(), "labels": datasets.Sequence(datasets.Value("int32"))}
        tables = {}
        for split, images in zip(("train", "val", "test"), splits):
            images = images.split()
            cells = [{"bytes": picture(image), "path": f"{split} {i}.png"} for i, image in enumerate(images)]
            labels = [[(seen + unseen).index(label) for label in image if label != "-"] for image in images]
            table = {"image": cells, "labels": labels}
            tables[split] = datasets.Dataset.from_dict(table, datasets.Features(kinds))
        datasets.DatasetDict(tables).save_to_disk(folder, num_shards=dict.fromkeys(tables, 1))
        parts = {"seen": [NAMES[x] for x in seen], "unseen": [NAMES[x] for x in unseen]}
        (folder / "labels.json").write_text(json.dumps(parts | {"source": "colours"}))
        return str(folder)

    return write


def settings(data, out_dir, **changes):
    return {"data": data, "out_dir": str(out_dir), "embed_dim": 16, "epochs": 1, "hold_out": 0.34} | changes


def parsed(path):
    """A JSON file; NaN and Infinity, which JSON does not have, are an error."""

    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(encoding="utf8"), parse_constant=refuse)


@pytest.mark.parametrize("name", SETS)
def test_fit_predictor_and_panel(small, tmp_path, capsys, name):
    data = load_data(small(name))
    metrics = fit(data, Config(**settings(str(data.folder), tmp_path, device="cpu")))
    assert metrics == parsed(tmp_path / "metrics.json") and "left_out" not in metrics
    check_figures(metrics, data)
    check_history(tmp_path, data)
    assert metrics["chosen_by"] == ("val_map" if data.val.targets.any() else "being the last")
    predictor, reason = Predictor.load(tmp_path), SETS[name][-1]
    assert predictor.calibration.note == metrics["calibration"]["note"]
    assert reason is None or reason in predictor.calibration.note
    if len(data.test):
        logits = split_scores(predictor.model, data.test, data, predictor.config)
        check_order(predictor, data, logits)
        check_panel(Panel(predictor, data.test, data.labels, logits), data)
        note = predictor.calibration.note
        show(predictor, [("photo.jpg", predictor(data.test.image(0)))])
        said = capsys.readouterr().out
        assert note in said and ("the best F1 on val" in said) == (not note)


def check_figures(metrics, data):
    """A figure is there where its labels, images and positives are, and only there."""
    seen, table = len(data.labels.seen), result_table(metrics)
    dashes = 0
    for part, columns, targets in (("zsl", 6, data.test.targets[:, seen:]), ("gzsl", 3, data.test.targets)):
        found = targets.any().item()
        for figures in (metrics[part], metrics["raw_clip"][part]):
            there = [figures.get(key) is not None for key in ("map", "r@5", "f1@3", "p@3")]
            assert there == [found, found, found, targets.numel() > 0]
        dashes += 0 if found else columns
    assert [line.count("–") for line in table.splitlines()[2:4]] == [dashes, dashes] and "nan" not in table


def check_history(folder, data):
    """What val measures is averaged to choose by; nan where it measures nothing."""
    [row] = read_history(folder)
    there = [row[x] for x in ("val_seen_map", "val_held_map") if not np.isnan(row.get(x, np.nan))]
    assert bool(there) == data.val.targets.any().item()
    assert row["val_map"] == pytest.approx(np.mean(there) if there else np.nan, nan_ok=True)


def check_order(predictor, data, logits):
    """Probabilities differ where logits differ, and have their order; those of kept tokens are a little rounded."""
    for i, row in enumerate(logits):
        names, probabilities = zip(*predictor(data.test.image(i)))
        assert list(probabilities) == sorted(set(probabilities), reverse=True)
        assert (row[[data.labels.names.index(name) for name in names]].diff() < 0.01).all()


def check_panel(panel, data):
    shown = lambda: [name for _, name in panel.look.options]
    assert panel.message.value == "" and set(shown()) == set(data.labels.names)
    note = panel.predictor.calibration.note
    assert note in "".join(str(widget.value) for widget in panel.controls.children[1].children)
    top = re.findall(r">(\d\.\d+)<", panel.bars.value)[0]
    assert float(top) == pytest.approx(panel.predictor(data.test.image(0))[0][1], abs=6e-4)  # no slider was moved
    panel.ranking.value = "zsl"
    if data.labels.unseen:
        assert panel.message.value == "" and set(shown()) == set(data.labels.unseen)
        occurs = data.test.targets[:, data.labels.unseen_index].any()
        assert ("no label of this ranking" in panel.thumbnails.value) == (not occurs) == (not panel.worst.options)
    else:
        assert "every label asked about is seen" in panel.message.value
    panel.ranking.value, panel.keep.value = "gzsl", "relevant"
    assert panel.message.value == "" and "nan" not in panel.figures.value


def test_a_share_that_leaves_no_label_to_train_on_is_refused(small, tmp_path):
    data = load_data(small("one seen label"))
    with pytest.raises(ValueError, match="hold_out 0.9 keeps all seen labels \\(1\\) out of the training: choose"):
        fit(data, Config(**settings(str(data.folder), tmp_path, hold_out=0.9, device="cpu")))


@pytest.mark.parametrize("name", ["no unseen label", "no unseen positive", "no image in test"])
def test_comparison(small, tmp_path, name):
    """The rows of two systems and their difference, as they are written and read again, make tables with dashes."""
    config = Config(**settings(small(name), tmp_path / "run", device="cpu"))
    ours, others = (run_system(system, config) for system in ("raw_clip", "raw_clip_softmax"))
    found = without_nan([{"systems": ["raw_clip", "raw_clip_softmax"]} | difference(2 * [ours], 2 * [others])])
    rows, found = json.loads(json.dumps([without_nan([ours[0], others[0]]), found], allow_nan=False))
    zsl, gzsl = (report.system_table(rows, task).splitlines()[2] for task in ("zsl", "gzsl"))
    images = len(load_data(config.data).test)
    assert zsl.count("–") == (5 if name == "no unseen positive" else 7) and gzsl.count("–") == (0 if images else 7)
    differences = report.difference_table(found).splitlines()[2].split("|")[2:-1]
    assert [cell.strip() == "–" for cell in differences] == 3 * [True] + 3 * [not images]


def test_an_ablation_that_leaves_no_label_to_train_on_is_left_out(small, capsys):
    data = load_data(small("no unseen label"))
    can_train = lambda share: ablations._can_train(("group", "11 %"), Config(hold_out=share), data)
    assert can_train(0.35) and not can_train(0.89)
    assert capsys.readouterr().out.startswith("group: 11 % is left out: hold_out 0.89 keeps all seen labels (3)")


def test_notebooks(small, tmp_path):
    """Those on data and runs, on the hardest sets, one after the other: no error, no warning, no nan on the page."""
    names, parts = ("no unseen label, empty val", "one image", "no unseen positive"), []
    for number, name in enumerate(names):
        data, run = small(name), {"run_folder": str(tmp_path / str(number))}
        parts += [("01", {"data": data}), ("04", settings(data, run["run_folder"])), ("05", run)]
    texts = printed(*parts, ("07", run), ("05", run | {"data": small("no positive in test")}))
    for text in texts:
        assert "Warning" not in text
        assert not re.search(r"\bnan\b", text)
    assert ["no unseen label: what is said of them" in text for text in texts[::3][:3]] == [True, False, False]
    assert ["No test image carries an unseen label" in text for text in texts[2::3]] == [True, False, True]
    assert all("the panel answers" in text for text in [*texts[2::3], texts[-1]])
    assert all("val cannot tell, as it holds no image" in text for text in texts[1:3])
    assert "needs two seen labels" in texts[3] and "\n0 pairs\n" in texts[3]
