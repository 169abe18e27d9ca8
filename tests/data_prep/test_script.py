"""The command lines of all scripts: bounds before any work, ~ in every path, defaults, names on any console."""

import io
import re
import sys

import pytest
from samples import run

from data_prep import coco, embeddings, emoji_scenes, folder, hub, mini_clip, nus_wide, script, word_vectors

PHOTOS = {coco: "--root x --out x", nus_wide: "--root x", folder: "--images x --labels x --unseen x"}
PHOTOS[hub] = "--dataset x --unseen x"
REQUIRED = PHOTOS | {embeddings: "--vectors x --names x --out x", emoji_scenes: "", mini_clip: "", word_vectors: ""}
COUNTS, SEED, SHARE = ["0", "-1", "1.5", "x"], ["-1", str(2**64), str(2**32), "x"], ["-0.5", "1", "1.5", "nan", "x"]
WRONG = {(each, option): values for each in PHOTOS for option, values in (
    ("--size", COUNTS), ("--workers", COUNTS), ("--val", SHARE), ("--seed", SEED),
    ("--max-missing", ["-1", "101", "nan"]),
)}  # fmt: skip
WRONG |= {(coco, "--limit"): COUNTS, (hub, "--limit"): COUNTS, (folder, "--test"): SHARE}
WRONG[word_vectors, "--seed"] = SEED
WRONG |= {(word_vectors, option): COUNTS for option in ("--captions", "--width")}
WRONG |= {(emoji_scenes, option): COUNTS for option in ("--train", "--val", "--test", "--workers", "--objects")}
WRONG |= {(emoji_scenes, "--seed"): SEED, (mini_clip, "--seed"): SEED, (mini_clip, "--workers"): ["-1", "x"]}
WRONG |= {(mini_clip, "--steps"): ["0", "19"], (mini_clip, "--batch-size"): ["1", "336"]}
WRONG |= {(mini_clip, "--lr"): ["0", "-1", "nan", "inf"]}


@pytest.mark.parametrize("module, option", WRONG, ids=lambda part: getattr(part, "__name__", part))
def test_an_option_out_of_bounds_is_one_sentence(capsys, module, option):
    for value in WRONG[module, option]:
        with pytest.raises(SystemExit) as error:
            run(module, *REQUIRED[module].split(), option, value)
        message = capsys.readouterr().err.splitlines()[-1]
        assert error.value.code == 2 and f"argument {option}: " in message and repr(value).strip("'") in message


@pytest.mark.parametrize("value", ["-0.5", "0", "1", "1.5", "nan"])
@pytest.mark.parametrize("module, options", [(folder, "--images x --labels x"), (hub, "--dataset x")])
def test_a_share_of_labels_is_above_0_and_below_1(capsys, module, options, value):
    with pytest.raises(SystemExit):
        run(module, *options.split(), "--hold-out", value)
    assert f"argument --hold-out: '{value}' is not a share above 0 and below 1" in capsys.readouterr().err


@pytest.mark.parametrize("form", [["--out", "~/x"], ["--out=~/x"]])
@pytest.mark.parametrize("module", REQUIRED, ids=lambda module: module.__name__)
def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path, module, form):
    """In every path of every script; stopped as soon as the command line is parsed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    parse, found = script.argparse.ArgumentParser.parse_args, {}
    monkeypatch.setattr(
        script.argparse.ArgumentParser, "parse_args",
        lambda self: found.update(vars(parse(self))) or sys.exit("parsed"),
    )  # fmt: skip
    paths = REQUIRED[module].replace(" x", "=~/x" if len(form) == 1 else " ~/x").split()
    with pytest.raises(SystemExit, match="parsed"):
        run(module, *paths, *form)
    given = {name.strip("-").split("=")[0] for name in [*paths, *form] if name.startswith("--")}
    assert {str(found[name]).strip("[']") for name in given} == {str(tmp_path / "x")}


@pytest.mark.parametrize("module", REQUIRED, ids=lambda module: module.__name__)
def test_help_shows_the_defaults_that_there_are(capsys, module):
    with pytest.raises(SystemExit):
        run(module, "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "(default: None)" not in shown
    assert module is embeddings or re.search(r"\(default: \d", shown)


def test_a_name_that_the_console_lacks_is_printed(monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    script.parser("Trees.", "out")
    print("naïve 猫", flush=True)
    assert console.buffer.getvalue().decode("cp1252").strip() == "naïve \\u732b"


def test_the_help_says_how_it_is_called_and_what_must_lie_where(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/a/path/coco.py", "--help"])
    with pytest.raises(SystemExit):
        coco.main()
    told = capsys.readouterr().out
    assert told.startswith("usage: python -m data_prep.coco ")
    assert "COCO holds `annotations/instances_{train,val}{year}.json`" in told
