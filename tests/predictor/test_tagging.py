"""A folder of photos: which are found, the CSV that goes on where it was stopped, and side-car files."""

import csv
import os
import sys
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pytest
from PIL import Image

from clipdec import Predictor
from clipdec.images import ImageError
from clipdec.predictor import predictor as module
from clipdec.predictor.__main__ import check_tags, listed, main
from clipdec.predictor.photos import TagsFile, found, write_sidecar
from data_prep.folder import read_table

LABELS = ["pizza", "key", "rainbow"]


@pytest.fixture
def photos(tiny, tmp_path):
    """Two photos, one of them a folder deeper, a broken one, and what is no photo."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    tiny.test.image(0).save(folder / "a.png")
    tiny.test.image(1).save(folder / "more" / "b.JPG", "JPEG")
    (folder / "c.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no photo")
    return folder


def tagged(run, photos, *more):
    """(exit code, rows of the CSV) after the command."""
    table = photos.parent / "tags.csv"
    with pytest.raises(SystemExit) as ended:
        main([str(run), str(photos), "--csv", str(table), "--device", "cpu", *more])
    with open(table, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return ended.value.code, list(csv.DictReader(file))


def test_labels_are_cleaned_and_each_asked_once(tmp_path):
    (tmp_path / "names.txt").write_text("key\nred  apple\n")
    assert listed(["pizza", " Pizza", f"@{tmp_path / 'names.txt'}", "KEY"]) == ["pizza", "key", "red apple"]
    assert listed(None) is None


def test_photos_of_folders_and_patterns_each_once(photos):
    inside = [str(photos / name) for name in ("a.png", "c.jpg", "more/b.JPG")]
    assert found([str(photos)]) == inside
    (photos / ".trash").mkdir()
    for hidden in (".trash/x.png", "._a.png"):
        (photos / hidden).write_bytes(b"hidden")
    around = str(photos / "more" / ".." / "a.png")
    assert found([str(photos / "*.png"), str(photos), "gone.jpg", around]) == [*inside, "gone.jpg"]
    assert found([str(photos / "*[!t]")]) == inside[:2]  # and no folder


def test_a_folder_without_photos_is_an_error_and_heic_is_named(photos, capsys):
    with pytest.raises(ValueError, match="no image file in .*empty"):
        (photos / "empty").mkdir()
        found([str(photos / "empty")])
    (photos / "empty" / "x.HEIC").write_bytes(b"")
    assert found([str(photos / "empty")]) == [str(photos / "empty" / "x.HEIC")]


def test_tags_are_those_of_the_predictor(tiny_run, photos, capsys):
    predictor = Predictor.load(tiny_run[0], device="cpu")
    code, rows = tagged(tiny_run[0], photos, "--labels", *LABELS, "--top-k", "2")
    assert code == 1 and "c.jpg cannot be read as an image" in capsys.readouterr().err
    assert [row["image"] for row in rows] == [str(photos / "a.png"), str(photos / "more" / "b.JPG")]
    for row in rows:
        answer = predictor(row["image"], LABELS, top_k=2)
        assert row["labels"] == ";".join(name for name, _ in answer)
        assert [float(p) for p in row["probabilities"].split(";")] == pytest.approx([p for _, p in answer], abs=1e-4)
    _, rows = tagged(tiny_run[0], photos, "--labels", *LABELS)
    assert len(rows) == 2  # they were there already


def test_without_top_k_they_are_the_predicted_ones(tiny_run, photos):
    predictor = Predictor.load(tiny_run[0], device="cpu")
    for row in tagged(tiny_run[0], photos)[1]:
        answer = predictor(row["image"])
        assert row["labels"] == ";".join(name for name, p in answer if p >= predictor.threshold)


def test_the_csv_goes_on_where_it_was_stopped_and_can_be_trained_on(tiny_run, photos, capsys):
    _, rows = tagged(tiny_run[0], photos, "--top-k", "2")
    table = photos.parent / "tags.csv"
    whole = table.read_bytes()
    table.write_bytes(whole[: whole.rindex(b"b.JPG") + 3])  # stopped within the second line
    asked = []
    original = module.Predictor._pixels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Predictor, "_pixels", lambda self, image: asked.append(image) or original(self, image))
        again = tagged(tiny_run[0], photos, "--top-k", "2")[1]
    assert table.read_bytes() == whole and again == rows and str(photos / "a.png") not in asked
    assert "has 1 of the photos already" in capsys.readouterr().out
    read = dict(read_table(table, photos))
    assert sorted(read) == ["a.png", "more/b.JPG"] and read["a.png"] == rows[0]["labels"].split(";")


def test_tags_are_read_whole_from_where_they_were_written(tiny_run, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    with pytest.raises(SystemExit):
        main([str(tiny_run[0]), "photos", "--csv", "t.csv", "--labels", "crane, bird", "kite, bird", "--top-k", "1"])
    read = dict(read_table("t.csv", "photos"))
    assert sorted(read) == ["a.png", "more/b.JPG"]
    assert {name for names in read.values() for name in names} <= {"crane, bird", "kite, bird"}
    table = photos.parent / "t.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("photos/", ""), "utf-8")  # as somebody may have done
    assert dict(read_table("t.csv", "photos")) == read


def test_photos_that_get_no_label_are_counted(tiny_run, photos, capsys):
    for _ in range(2):  # at first, and where the CSV has them already
        tagged(tiny_run[0], photos, "--labels", "zeppelin", "--base-rate", "0.0001")
        assert "2 of 3 photos have their tags; 2 of them have none, no label reached" in capsys.readouterr().out
    (photos.parent / "tags.csv").unlink()
    tagged(tiny_run[0], photos, "--labels", "zeppelin", "--top-k", "1")
    assert "of them have none" not in capsys.readouterr().out


def test_tags_that_were_corrected_come_to_the_side_cars(tiny_run, photos):
    _, rows = tagged(tiny_run[0], photos, "--top-k", "1", "--write-xmp")
    table = photos.parent / "tags.csv"
    table.write_text(table.read_text("utf-8").replace(f"a.png,{rows[0]['labels']},", "a.png, my own ;;,"), "utf-8")
    tagged(tiny_run[0], photos, "--top-k", "1", "--write-xmp")
    assert [e.text for e in ET.parse(photos / "a.png.xmp").iter() if e.tag.endswith("li")] == 2 * ["my own"]
    before = (photos / "a.png.xmp").stat().st_mtime_ns
    tagged(tiny_run[0], photos, "--top-k", "1", "--write-xmp")
    assert (photos / "a.png.xmp").stat().st_mtime_ns == before  # nothing new, nothing written


@pytest.mark.parametrize("text", ["image,labels\na.png,dog\n", "name,age\nann,3\nbob,4", "no table"])
def test_a_csv_of_something_else_stays_as_it_is(tiny_run, photos, text):
    table = photos.parent / "tags.csv"
    table.write_text(text)
    with pytest.raises(SystemExit, match="other columns than image,labels,probabilities,asked"):
        main([str(tiny_run[0]), str(photos), "--csv", str(table), "--device", "cpu"])
    assert table.read_text() == text


@pytest.mark.parametrize("start", [b"", b"image,lab"])
def test_a_csv_that_was_stopped_before_its_first_line_begins_anew(tmp_path, start):
    (tmp_path / "tags.csv").write_bytes(start)
    tags = TagsFile(tmp_path / "tags.csv", "x")
    assert not tags.rows and tags.path.read_bytes() == b"image,labels,probabilities,asked\n"


def test_a_csv_of_another_question_is_refused(tiny_run, photos):
    tagged(tiny_run[0], photos, "--top-k", "2")
    whole = (photos.parent / "tags.csv").read_bytes()
    others = [[tiny_run[0], "--top-k", "1"], [tiny_run[0], "--top-k", "2", "--labels", "key"]]
    others += [[tiny_run[0], "--top-k", "2", "--base-rate", "0.2"], ["mini", "--top-k", "2"]]
    for run, *options in others:
        with pytest.raises(SystemExit, match="tags by another model or of another question"):
            main([str(run), str(photos), "--csv", str(photos.parent / "tags.csv"), "--device", "cpu", *options])
    assert (photos.parent / "tags.csv").read_bytes() == whole


def test_a_line_may_be_long_and_a_name_may_have_joiners(tmp_path):
    names = [f"label {i} \u0645\u06cc\u200c\u062e" for i in range(20_000)]
    check_tags(SimpleNamespace(threshold=0.5), names, None)
    TagsFile(tmp_path / "tags.csv", "x").add("a.jpg", [(name, 0.5) for name in names])
    assert TagsFile(tmp_path / "tags.csv", "x").tags("a.jpg") == names
    (tmp_path / "a.jpg").write_bytes(b"")
    assert dict(read_table(tmp_path / "tags.csv", tmp_path)) == {"a.jpg": sorted(names)}


def test_a_csv_that_a_spreadsheet_saved_goes_on(tmp_path):
    TagsFile(tmp_path / "tags.csv", "x").add("ä.jpg", [("dog", 0.5), ("a, b", 0.25)])
    data = (tmp_path / "tags.csv").read_bytes()
    (tmp_path / "tags.csv").write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"))
    assert TagsFile(tmp_path / "tags.csv", "x").tags("./ä.jpg") == ["dog", "a, b"]


def test_side_cars_follow_a_csv(tiny_run, photos):
    _, rows = tagged(tiny_run[0], photos, "--top-k", "2")
    assert not list(photos.rglob("*.xmp"))
    assert tagged(tiny_run[0], photos, "--top-k", "2", "--write-xmp")[1] == rows
    for row in rows:
        names = [e.text for e in ET.parse(f"{row['image']}.xmp").iter() if e.tag.endswith("li")]
        assert names == 2 * row["labels"].split(";")


def test_side_cars_hold_the_tags_and_the_photos_stay(tiny_run, photos):
    before = {path: path.read_bytes() for path in found([str(photos)]) and photos.rglob("*") if path.is_file()}
    _, rows = tagged(tiny_run[0], photos, "--write-xmp", "--top-k", "2")
    assert all(path.read_bytes() == data for path, data in before.items())
    for row in rows:
        tree = ET.parse(row["image"] + ".xmp")
        spaces = {"rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "dc": "http://purl.org/dc/elements/1.1/"}
        spaces["digiKam"] = "http://www.digikam.org/ns/1.0/"
        [about] = tree.findall("./rdf:RDF/rdf:Description", spaces)
        for place in ("dc:subject/rdf:Bag", "digiKam:TagsList/rdf:Seq"):
            assert [li.text for li in about.findall(f"{place}/rdf:li", spaces)] == row["labels"].split(";")
    assert not (photos / "c.jpg.xmp").exists()


def test_a_side_car_of_another_program_stays_and_markup_is_text(photos, tiny_run, capsys):
    photo = photos / "a.png"
    write_sidecar(photo, ["<b> & friends"])
    write_sidecar(photo, ["rock & roll"])  # our own is written anew
    assert [e.text for e in ET.parse(f"{photo}.xmp").iter() if e.tag.endswith("li")] == 2 * ["rock & roll"]
    other = photos / "a.png.xmp"
    other.write_text('<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2"/>')
    code, rows = tagged(tiny_run[0], photos, "--write-xmp", "--top-k", "1")
    assert code == 1 and "another program's and stays" in capsys.readouterr().err
    assert "Exiv2" in other.read_text() and [row["image"] for row in rows] == [str(photos / "more" / "b.JPG")]


def test_a_photo_whose_side_car_cannot_be_written_is_named_and_left_out(tiny_run, photos, capsys):
    (photos / "a.png.xmp").mkdir()
    code, rows = tagged(tiny_run[0], photos, "--write-xmp", "--top-k", "1")
    assert code == 1 and f"{photos / 'a.png'} gets no tags" in capsys.readouterr().err
    assert [row["image"] for row in rows] == [str(photos / "more" / "b.JPG")]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode there")
def test_a_name_that_is_no_unicode(tiny_run, photos):
    name = os.fsdecode(b"caf\xe9.png")
    (photos / "a.png").rename(photos / name)
    _, rows = tagged(tiny_run[0], photos, "--top-k", "1")
    assert any(row["image"] == str(photos / name) for row in rows)
    assert tagged(tiny_run[0], photos, "--top-k", "1")[1] == rows


def test_what_cannot_be_tagged(photos, capsys):
    with pytest.raises(SystemExit, match="or give --top-k"):
        main(["mini", str(photos), "--csv", str(photos.parent / "tags.csv")])
    with pytest.raises(SystemExit, match="holds a semicolon"):
        main(["mini", str(photos), "--csv", str(photos.parent / "x.csv"), "--labels", "a;b", "--top-k", "1"])
    with pytest.raises(SystemExit, match="a spreadsheet would take the label '=1\\+1' for a formula"):
        main(["mini", str(photos), "--csv", str(photos.parent / "x.csv"), "--labels", "=1+1", "--top-k", "1"])
    with pytest.raises(SystemExit, match="holds a control character"):
        main(["mini", str(photos), "--write-xmp", "--labels", "bell\x07", "--top-k", "1"])
    with pytest.raises(SystemExit):
        main(["mini", str(photos), "--csv", "x.csv", "--json"])
    assert "choose one of them" in capsys.readouterr().err


def test_a_stream_opens_no_more_than_it_needs(tiny_run, tiny):
    """Of an endless row of images it takes two batches ahead at most."""
    predictor, taken = Predictor.load(tiny_run[0], device="cpu"), []

    def endless():
        while True:
            taken.append(Image.new("RGB", (8, 8)) if len(taken) != 1 else "gone.jpg")
            yield taken[-1]

    stream = predictor.stream(endless(), LABELS)
    (_, first), (name, error) = next(stream), next(stream)
    assert (
        dict(first) == pytest.approx(dict(predictor(taken[0], LABELS)), abs=1e-5)
        and name == "gone.jpg"
        and isinstance(error, ImageError)
    )
    assert len(taken) == 2 * module.BATCH


def test_a_side_car_that_lacks_beside_a_csv_is_no_success(tiny_run, photos, capsys, monkeypatch):
    photo = str(photos / "a.png")
    command = [str(tiny_run[0]), photo, "--csv", str(photos.parent / "t.csv"), "--top-k", "1", "--device", "cpu"]
    with pytest.raises(SystemExit) as first:
        main(command)
    monkeypatch.setattr("clipdec.predictor.__main__.write_sidecar", lambda *_: os.mkdir("/"))  # an OSError
    with pytest.raises(SystemExit) as second:
        main([*command, "--write-xmp"])
    assert (first.value.code, second.value.code) == (0, 1)
    assert "0 of 1 photos have their tags" in capsys.readouterr().out
