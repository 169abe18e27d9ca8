"""The writer of prepared data sets: its layout, what is left out, what may be replaced, and what a stop leaves."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import datasets
import filelock
import numpy as np
import pytest
from PIL import Image
from samples import encode, files, names, red, reds, run

from clipdec import load_data
from data_prep import folder, writer
from data_prep.photos import make_row

ROOT = Path(__file__).resolve().parents[2]
INFO = {"seen": ["red", "blue"], "unseen": ["green"], "source": "numbers", "licence": "none"}
SIZES = {"train": 5, "val": 2, "test": 3}
FIRST = {"train": 0, "val": 100, "test": 200}  # the number of each split's first item
ALL = [f"{split}{i}" for split, n in SIZES.items() for i in range(n)]
AGAIN = dict.fromkeys(ALL, 1) | {"test0": 2, "test1": 2}  # how often each is made where test1 stops the first run
posix = pytest.mark.skipif(os.name == "nt", reason="forks, links or signals to a group of processes")
GONE = [("train", "gone.jpg", "missing", "")]


def row(item, log, broken=(), stop=None):
    """An image whose red is the item's number. Each call leaves a byte in a file, as it may run in another process."""
    name, number, *labels = item
    with open(log / name, "a") as file:
        file.write("x")
    if number == stop:
        raise RuntimeError(f"stopped at {number}")
    if number in broken:
        raise writer.LeftOut("odd", f"it is {number}")
    return {"image": {"bytes": red(number, "PNG", (2, 2)), "path": name}, "labels": labels or [number % 3]}


def changes(folder):
    """{path in the folder: time of the last change}."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def call(tmp_path, monkeypatch):
    """call(out, ...) writes ten small images in shards of two. same: {name: (another number, label)}."""
    (tmp_path / "log").mkdir()
    monkeypatch.setattr(writer, "SHARD", 2)

    def call(out="out", info=INFO, sizes=SIZES, workers=1, broken=(), stop=None, same=None, **rest):
        numbers = {f"{split}{i}": (FIRST[split] + i,) for split, n in sizes.items() for i in range(n)} | (same or {})
        items = {split: [(f"{split}{i}", *numbers[f"{split}{i}"]) for i in range(n)] for split, n in sizes.items()}
        make = partial(row, log=tmp_path / "log", broken=broken, stop=stop)
        return writer.write(tmp_path / out, info, items, make, workers, **rest)

    return call


def calls(folder):
    """{name of an item: how often it was made}."""
    return {path.name: path.stat().st_size for path in (folder / "log").iterdir()}


def test_load_from_disk_and_load_data_open_the_folder(call, out):
    assert call() == SIZES
    opened = datasets.load_from_disk(out)
    assert opened.num_rows == SIZES and opened["train"].features == writer.FEATURES
    assert opened["test"]["labels"] == [[200 % 3], [201 % 3], [202 % 3]] and str(opened["test"].split) == "test"
    data = load_data(out)
    assert data.labels.names == ["red", "blue", "green"]
    assert data.info["images"] == SIZES and data.info["left_out"] == {}
    assert data.val.targets.tolist() == [[False, True, False], [False, False, True]]  # 100 % 3 = 1, 101 % 3 = 2


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_keep_the_order_of_the_items(call, out, workers):
    call(sizes={"train": 9, "val": 1, "test": 4}, workers=workers)
    assert sorted(p.name for p in (out / "train").glob("*.arrow")) == [f"data-{i:05}-of-00005.arrow" for i in range(5)]
    data = load_data(out)
    assert (reds(data.train), reds(data.test)) == (list(range(9)), [200, 201, 202, 203])


def test_the_number_of_workers_changes_no_byte(call, tmp_path):
    call("one", workers=1, broken=(1, 201))
    call("two", workers=2, broken=(1, 201))
    one = files(tmp_path / "one")
    assert "left_out.csv" in one and one == files(tmp_path / "two")


def test_nothing_but_the_data_set_is_left(call, tmp_path, out):
    call()
    expected = {"labels.json", "dataset_dict.json"}
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        shards = [f"data-{i:05}-of-{count:05}.arrow" for i in range(count)]
        expected |= {f"{split}/{name}" for name in ("dataset_info.json", "state.json", *shards)}
    assert set(files(out)) == expected and {p.name for p in tmp_path.iterdir()} == {"out", "log"}


def test_an_empty_split_opens(call, out):
    call(sizes={"train": 3, "val": 0, "test": 2})
    data = load_data(out)
    assert (len(data.train), len(data.val), len(data.test)) == (3, 0, 2)


def test_a_shard_of_which_all_is_left_out_opens(call, out):
    assert call(broken=(2, 3)) == {"train": 3, "val": 2, "test": 3}
    assert reds(load_data(out).train) == [0, 1, 4]


def test_load_gives_what_make_is_called_with(call, out):
    asked = []

    def load(split, items):
        asked.append((split, len(items)))
        return [(name, 50 + number) for name, number in items]

    call(sizes={"train": 3, "val": 1, "test": 2}, load=load)
    assert asked == [("train", 2), ("train", 1), ("val", 1), ("test", 2)]
    assert reds(load_data(out).train) == [50, 51, 52]


def test_equal_info_does_nothing(call, tmp_path, out, capsys):
    call()
    before = changes(out)
    capsys.readouterr()
    assert call() == SIZES and capsys.readouterr().out == "out is ready\n"
    assert changes(out) == before and set(calls(tmp_path).values()) == {1}


def test_other_info_is_refused(call, out):
    call()
    before = files(out)
    with pytest.raises(FileExistsError, match=r"another data set \(other licence\)"):
        call(info=INFO | {"licence": "mine"})
    assert files(out) == before


def test_replace_names_the_source_that_may_be_replaced(call, out):
    call()
    other = INFO | {"licence": "mine"}
    with pytest.raises(FileExistsError):
        call(info=other, replace="letters")
    call(info=other, sizes=dict.fromkeys(SIZES, 1), replace="numbers")
    data = load_data(out)
    assert data.info["licence"] == "mine" and len(data.train) == 1


@pytest.mark.parametrize("replace", [None, "numbers"])
def test_a_folder_of_other_files_is_refused(call, out, replace):
    out.mkdir()
    (out / "diary.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty and not a prepared data set"):
        call(replace=replace)
    assert files(out) == {"diary.txt": b"mine"}
    (out / "diary.txt").rename(out / ".hidden")
    with pytest.raises(FileExistsError, match="not empty and not a prepared data set"):
        call(replace=replace)
    (out / ".hidden").rename(out / ".DS_Store")  # macOS leaves it where a folder was looked at
    call(replace=replace)
    assert len(load_data(out).train)


def test_a_file_in_its_place_is_refused(call, out):
    out.write_text("mine")
    with pytest.raises(FileExistsError):
        call()
    assert out.read_text() == "mine"


def test_an_empty_folder_is_used(call, out):
    out.mkdir()
    call()
    assert len(load_data(out).train) == 5


def test_what_is_left_out_is_listed_and_counted(call, out, capsys):
    assert call(broken=(1, 201), left_out=GONE) == {"train": 4, "val": 2, "test": 2}
    header, gone, *odd = (out / "left_out.csv").read_bytes().decode().splitlines()
    assert (header, gone) == ("split,image,reason,detail", "train,gone.jpg,missing,")
    assert odd == ["train,train1,odd,it is 1", "test,test1,odd,it is 201"]
    info = json.loads((out / "labels.json").read_text())
    assert info["left_out"] == {"odd": 2, "missing": 1} and info["images"] == {"train": 4, "val": 2, "test": 2}
    assert "out: 4 train, 2 val, 2 test images kept; left out: 3 (2 odd, 1 missing)" in capsys.readouterr().out


def test_nothing_left_out_is_said_too(call, out, capsys):
    call()
    assert "images kept; left out: 0\n" in capsys.readouterr().out and not (out / "left_out.csv").exists()


def test_too_much_left_out_is_an_error(call, tmp_path, out):
    with pytest.raises(ValueError, match=r"2 of 10 images \(20 %\).*--max-missing 19"):
        call(broken=(1, 201), max_missing=19)
    assert not out.exists() and len((tmp_path / "out.partial" / "left_out.csv").read_text().splitlines()) == 3


def test_the_limit_itself_is_allowed(call):
    assert call(broken=(1, 201), max_missing=20) == {"train": 4, "val": 2, "test": 2}


def test_too_much_missing_is_an_error_before_the_work(call, tmp_path):
    with pytest.raises(ValueError, match="1 of 11 images"):
        call(left_out=GONE, max_missing=0)
    assert calls(tmp_path) == {}


def test_a_higher_limit_makes_only_the_shard_with_what_was_left_out_again(call, tmp_path):
    with pytest.raises(ValueError):
        call(broken=(1,), max_missing=0)
    assert call(broken=(1,), max_missing=50)["train"] == 4
    assert calls(tmp_path) == {name: 1 + (name in ("train0", "train1")) for name in ALL}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_leaves_no_data_set(call, tmp_path, out, workers):
    with pytest.raises(RuntimeError, match="stopped at 201"):
        call(stop=201, workers=workers)
    assert not out.exists() and (tmp_path / "out.partial").is_dir()
    for name in ("out", "out.partial"):
        with pytest.raises(FileNotFoundError):
            load_data(tmp_path / name)


@pytest.mark.parametrize("info, made", [(INFO, AGAIN), (INFO | {"seed": 1}, {"train0": 2})])
def test_the_next_call_makes_only_what_lacks_and_uses_no_shard_of_another_data_set(call, tmp_path, out, info, made):
    with pytest.raises(RuntimeError):
        call(stop=201)
    assert call(info=info) == SIZES and calls(tmp_path) | made == calls(tmp_path)
    call("undisturbed", info=info)
    assert files(out) == files(tmp_path / "undisturbed")


def test_a_second_run_at_once_is_refused(call, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "FileLock", lambda path, timeout: filelock.FileLock(path, timeout=0.1))
    hold = "import filelock, sys\nwith filelock.FileLock(sys.argv[1]):\n print('held', flush=True)\n sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path / "out.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match="another process is writing"):
            call()
        assert calls(tmp_path) == {}
    assert call() == SIZES  # the other has ended


def test_the_lock_is_held_until_the_folder_has_its_name(call, tmp_path, monkeypatch):
    rename, codes = Path.rename, []
    take = "import filelock, sys; filelock.FileLock(sys.argv[1], timeout=0).acquire()"
    command = [sys.executable, "-c", take, tmp_path / "out.lock"]

    def spy(self, target):
        codes.append(subprocess.run(command, capture_output=True).returncode)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", spy)
    call()
    assert codes == [1]  # the other process did not get it


def test_a_run_that_waited_finds_the_data_set_ready(call, tmp_path, monkeypatch, capsys):
    def wait(path, timeout):
        monkeypatch.setattr(writer, "FileLock", filelock.FileLock)
        call()  # the run that was waited for
        return filelock.FileLock(path, timeout=timeout)

    monkeypatch.setattr(writer, "FileLock", wait)
    assert call() == SIZES and set(calls(tmp_path).values()) == {1} and "out is ready" in capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} == {"out", "log"}


def in_use(path):
    """Whether this process has a file at or below a path open, or mapped to memory."""
    path, open_files = os.path.abspath(path), map(os.path.realpath, Path("/proc/self/fd").iterdir())
    held = [*filter(os.path.isfile, open_files), *Path("/proc/self/maps").read_text().split()]
    return any(name == path or name.startswith(path + os.sep) for name in held)


@pytest.fixture
def windows(monkeypatch):
    """As on Windows: what is in use is neither renamed nor removed, and processes are spawned."""
    if sys.platform == "win32":
        return
    if not Path("/proc/self/maps").is_file():
        pytest.skip("what is in use is known on Linux")

    def guarded(path, *rest, call, **options):
        if "dir_fd" not in options and in_use(path):
            raise PermissionError(errno.EACCES, "used by another process", str(path))
        return call(path, *rest, **options)

    for name in ("rename", "replace", "unlink", "remove", "rmdir"):
        monkeypatch.setattr(os, name, partial(guarded, call=getattr(os, name)))
    spawn = multiprocessing.get_context("spawn")
    monkeypatch.setattr(writer, "ProcessPoolExecutor", partial(writer.ProcessPoolExecutor, mp_context=spawn))


def test_windows_replaces_a_data_set_when_it_is_closed(tmp_path, out, windows):
    """A notebook that has it open keeps all of it."""
    def call(licence):
        splits = {"train": [("a", red(1), [0])], "val": [], "test": [("b", red(2), [1])]}
        make = partial(make_row, size=8)
        return writer.write(out, INFO | {"licence": licence}, splits, make, replace="numbers")

    call("none")
    before, opened = files(out), datasets.load_from_disk(out)
    assert in_use(out) or sys.platform == "win32"
    with pytest.raises(PermissionError, match=r"out is in use \(.*\): close the notebooks"):
        call("mine")
    assert files(out) == before and opened["test"]["labels"] == [[1]]
    del opened
    assert call("mine") == {"train": 1, "val": 0, "test": 1} and load_data(out).info["licence"] == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("platform, count", [("win32", 61), ("linux", 80)])
def test_windows_waits_for_61_processes_at_most(call, monkeypatch, platform, count):
    pool, asked = writer.ProcessPoolExecutor, []
    monkeypatch.setattr(writer, "sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr(writer, "ProcessPoolExecutor", lambda n, **rest: asked.append(n) or pool(1, **rest))
    call(sizes={"train": 160, "val": 0, "test": 1}, workers=80)
    assert asked == [count]


def test_a_stop_before_the_renaming_loses_no_work(call, tmp_path, monkeypatch):
    def fail(self, target):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(Path, "rename", fail)
        call()
    assert call() == SIZES and set(calls(tmp_path).values()) == {1}


@pytest.mark.parametrize("renamings", [1, 2])
def test_a_stop_while_the_old_one_is_replaced_loses_neither(call, tmp_path, out, monkeypatch, renamings):
    """Killed before the old one goes aside, and before the new one gets its name."""
    call()
    old, made, rename, left = files(out), calls(tmp_path), Path.rename, [None] * (renamings - 1)
    other = {"info": INFO | {"licence": "mine"}, "replace": "numbers"}

    def stop(self, target):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", stop)
        call(**other)
    assert files(out if renamings == 1 else tmp_path / "out.replaced") == old
    twice = {name: 2 * count for name, count in made.items()}
    assert call(**other) == SIZES and calls(tmp_path) == twice and load_data(out).info["licence"] == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {"out", "log"}


@posix
def test_a_link_stays_one(call, tmp_path, out):
    (tmp_path / "disk").mkdir()
    out.symlink_to(tmp_path / "disk")
    call()
    assert out.is_symlink() and files(tmp_path / "disk") == files(out) and len(load_data(out).train) == 5


def test_a_foreign_folder_of_the_partial_name_is_left_alone(call, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "diary.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="out.partial is not the work of a preparation"):
        call()
    assert files(tmp_path / "out.partial") == {"diary.txt": b"mine"}


def test_what_is_ready_is_whole(call, out):
    call()
    (out / "test" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(FileExistsError, match="lacks test.data-00001-of-00002.arrow: remove the folder"):
        call()


def test_half_written_files_of_a_killed_process_do_not_stay(call, tmp_path, out):
    with pytest.raises(RuntimeError):
        call(stop=201)
    for name in ("labels.json.7", "plan.json.7", "train/state.json.7", "train/data-00001-of-00003.arrow.7"):
        (tmp_path / "out.partial" / name).write_text("{")
    call()
    call("undisturbed")
    assert files(out) == files(tmp_path / "undisturbed")


@pytest.mark.parametrize("sizes", [{"train": 0, "val": 1, "test": 1}, {"train": 1, "val": 0, "test": 0}])
def test_an_empty_train_or_test_is_no_data_set(call, tmp_path, sizes):
    with pytest.raises(ValueError, match="there is no image for (train|test)"):
        call(sizes=sizes)
    assert {p.name for p in tmp_path.iterdir()} == {"log"}


ALL_OF = {split: range(FIRST[split], FIRST[split] + n) for split, n in SIZES.items()}


@pytest.mark.parametrize("broken, lost", [
    (ALL_OF["train"], r"train \(5 odd\): the first is train0 of train \(odd, it is 0\)"), (ALL_OF["val"], "val"),
    ([*ALL_OF["train"], *ALL_OF["val"], *ALL_OF["test"]], r"train and val and test \(10 odd\)"),
])
def test_a_split_that_loses_all_its_images_is_an_error(call, tmp_path, out, broken, lost):
    with pytest.raises(ValueError, match=f"no image is left for {lost}.*left_out.csv lists all"):
        call(broken=broken)
    assert not out.exists()
    assert call() == SIZES and not (out / "left_out.csv").exists()  # the files are mended


def test_val_may_be_left_empty_on_purpose(call, capsys):
    assert call(sizes={"train": 2, "val": 0, "test": 1})["val"] == 0
    assert "val holds no image, as was asked for" in capsys.readouterr().out


def killed(item):
    """A process that the kernel ends."""
    os._exit(9)


def test_a_process_that_is_ended_is_a_message(call, tmp_path, monkeypatch):
    with pytest.raises(ChildProcessError, match="fewer --workers; the same command goes on"):
        writer.write(tmp_path / "out", INFO, {"train": [("a", 1)], "val": [], "test": [("b", 2)]}, killed)


# equal images: their number is another one's, and each has a label of its own
SAME = {"test0": (200, 2), "train1": (200, 0), "val1": (200, 1), "val0": (100, 2), "train3": (100, 1)}
SAME |= {"train0": (0, 0), "train4": (0, 2), "test1": (201, 0), "test2": (201, 1)}
COPIES = {"train1": "test0 of test", "val1": "test0 of test", "train3": "val0 of val", "train4": "train0 of train"}
COPIES |= {"test2": "test1 of test"}


def test_an_image_stands_once_and_has_the_labels_of_all_its_copies(call, out, capsys):
    assert call(same=SAME, max_missing=0) == {"train": 2, "val": 1, "test": 2}
    data, found = load_data(out), {}
    for split in (data.train, data.val, data.test):
        found |= {name: (number, row.nonzero().flatten().tolist())
                  for name, number, row in zip(names(split), reds(split), split.targets)}
    expected = {"train0": (0, [0, 2]), "train2": (2, [2]), "val0": (100, [1, 2]), "test1": (201, [0, 1])}
    assert found == expected | {"test0": (200, [0, 1, 2])}
    lines = {f"{name[:-1]},{name},duplicate,equal to {other}" for name, other in COPIES.items()}
    assert set((out / "left_out.csv").read_text().splitlines()[1:]) == lines
    assert data.info["left_out"] == {"duplicate": 5} and data.info["images"] == {"train": 2, "val": 1, "test": 2}
    assert "5 of the images equal another one: one of each stays, in test before val" in capsys.readouterr().out
    listed = {path.name for path in (out / "train").glob("*.arrow")}
    state = json.loads((out / "train" / "state.json").read_text())
    assert listed == {file["filename"] for file in state["_data_files"]}


def test_a_stop_while_duplicates_are_removed_loses_nothing(call, tmp_path, out, monkeypatch):
    call("undisturbed", same=SAME)
    write_whole, made = writer.write_whole, calls(tmp_path)

    def stop(path, content):
        if path.name == "data-00001-of-00003-unique.arrow":
            raise KeyboardInterrupt
        write_whole(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writer, "write_whole", stop)
        call(same=SAME)
    assert list((tmp_path / "out.partial").rglob("*-unique.arrow"))  # the stop came amid the work
    call(same=SAME)
    assert files(out) == files(tmp_path / "undisturbed")
    assert calls(tmp_path) == {name: 2 * count for name, count in made.items()}


def test_val_that_is_all_in_test_is_an_error(call, out):
    with pytest.raises(ValueError, match=r"no image is left for val \(2 duplicate\).*\(duplicate, equal to test0"):
        call(same={"val0": (200, 0), "val1": (201, 0)})
    assert not out.exists()


@posix
@pytest.mark.parametrize("name", ["plan.json", "data-00001-of-00003.arrow", "labels.json"])
def test_a_full_disk_ends_with_its_error(call, out, monkeypatch, name):
    write_whole = writer.write_whole

    def full(path, content):
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_whole(path, content)

    fork = multiprocessing.get_context("fork")  # so that a worker has `full`
    pool = partial(writer.ProcessPoolExecutor, mp_context=fork)
    with monkeypatch.context() as patch, pytest.raises(OSError) as error:
        patch.setattr(writer, "write_whole", full)
        patch.setattr(writer, "ProcessPoolExecutor", pool)
        call()
    assert error.value.errno == errno.ENOSPC and not out.exists()
    assert call() == SIZES and len(load_data(out).train) == 5


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """Arguments of data_prep.folder for some hundreds of photos, and the files of a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("album")
    (root / "photos").mkdir()
    rng, count = np.random.default_rng(0), 600
    for i in range(count // 8):
        noise = Image.fromarray(rng.integers(0, 256, (300, 400, 3), np.uint8))
        data = encode(noise.resize((800, 600)), "JPEG")
        for k in range(8):  # each way round is a photo of its own
            exif = Image.Exif()
            exif[0x0112] = k + 1
            segment = b"\xff\xe1" + (2 + len(exif.tobytes())).to_bytes(2, "big") + exif.tobytes()
            (root / "photos" / f"{8 * i + k}.jpg").write_bytes(data[:2] + segment + data[2:])
    lines = [f"{i}.jpg,{'abcdefghij'[i % 10]}" for i in range(count)]
    (root / "labels.csv").write_text("\n".join(["image,labels", *lines]))
    options = "--hold-out 0.2 --size 200 --workers 2".split()
    arguments = ["--images", root / "photos", "--labels", root / "labels.csv", *options]
    run(folder, *arguments, "--out", root / "undisturbed")
    return arguments, files(root / "undisturbed")


WAITING = """
import signal, sys, time
from pathlib import Path
from data_prep import folder, photos

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it, and all that it starts

go, real = Path(sys.argv.pop(1)), photos.make_row

def make_row(item, size):
    while list(go.parent.glob("out.partial/*/*.arrow")) and not go.exists():
        time.sleep(0.01)
    return real(item, size)

photos.make_row = make_row
folder.main()
"""


@pytest.fixture
def start(album, tmp_path, out):
    """start() runs data_prep.folder in a group of processes of its own, until it has written a shard of several; then
    it waits for the file `go`.
    """
    running = []

    def start():
        command = [sys.executable, "-c", WAITING, tmp_path / "go", *album[0], "--out", out]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
        running.append(process)
        while not list((tmp_path / "out.partial").glob("*/*.arrow")):
            assert process.poll() is None, "the run ended before it could be stopped"
            time.sleep(0.005)
        return process

    yield start
    for process in running:
        with suppress(ProcessLookupError):  # all its processes are gone
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@posix
def test_a_killed_run_goes_on(start, album, out, capsys):
    """Killed as by the kernel: nothing can be tidied up."""
    partial_, process = out.with_name("out.partial"), start()
    process.kill()  # the parent only
    process.communicate(timeout=100)  # ends when no worker holds the pipe
    whole = {name: t for name, t in changes(partial_).items() if name.endswith(".arrow")}
    assert 1 <= len(whole) < 6 and not out.exists()
    for path in (out, partial_):
        with pytest.raises(FileNotFoundError):
            load_data(path)
    run(folder, *album[0], "--out", out)
    assert "images are there already" in capsys.readouterr().out
    assert {name: changes(out)[name] for name in whole} == whole
    assert files(out) == album[1] and not partial_.exists()
    assert load_data(out).info["images"]["test"] > 128  # several shards


@posix
def test_ctrl_c_says_that_the_same_command_goes_on(start, album, tmp_path, out):
    process, shards = start(), lambda: len(list((tmp_path / "out.partial").glob("*/*.arrow")))
    before = shards()
    os.killpg(process.pid, signal.SIGINT)
    (tmp_path / "go").touch()
    output, _ = process.communicate(timeout=100)
    assert output.splitlines()[-1] == "stopped: the same command goes on from here" and process.returncode == 1
    assert "Traceback" not in output and not out.exists()
    assert shards() >= before + 2  # what was given to the two workers is kept
    run(folder, *album[0], "--out", out)
    assert files(out) == album[1]
