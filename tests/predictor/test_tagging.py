"""A folder of photos: which are found, the CSV that goes on where it was stopped, and side-car files."""

import csv
import xml.etree.ElementTree as ET

import pytest
from PIL import Image

from clipdec import Predictor
from clipdec.images import ImageError
from clipdec.predictor import predictor as module
from clipdec.predictor.__main__ import main
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
    with open(table, encoding="utf-8", newline="") as file:
        return ended.value.code, list(csv.DictReader(file))


def test_photos_of_folders_and_patterns_each_once(photos):
    inside = [str(photos / name) for name in ("a.png", "c.jpg", "more/b.JPG")]
    assert found([str(photos)]) == inside
    assert found([str(photos / "*.png"), str(photos), "gone.jpg"]) == [*inside, "gone.jpg"]


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
    short = photos.parent / "short.csv"
    short.write_text(table.read_text(encoding="utf-8").replace(f"{photos}/", "").replace(f"{photos}\\", ""), "utf-8")
    read = dict(read_table(short))
    assert sorted(read) == ["a.png", "more/b.JPG"] and read["a.png"] == rows[0]["labels"].split(";")


def test_a_csv_of_something_else_stays_as_it_is(tiny_run, photos):
    table = photos.parent / "tags.csv"
    table.write_text("image,labels\na.png,dog\n")
    with pytest.raises(SystemExit, match="other columns than image,labels,probabilities"):
        main([str(tiny_run[0]), str(photos), "--csv", str(table), "--device", "cpu"])
    assert table.read_text() == "image,labels\na.png,dog\n"
    table.write_bytes(b"")
    assert TagsFile(table).done == set() and table.read_text() == "image,labels,probabilities\n"


def test_side_cars_hold_the_tags_and_the_photos_stay(tiny_run, photos):
    before = {path: path.read_bytes() for path in found([str(photos)]) and photos.rglob("*") if path.is_file()}
    _, rows = tagged(tiny_run[0], photos, "--write-xmp", "--top-k", "2")
    assert all(path.read_bytes() == data for path, data in before.items())
    for row in rows:
        tree = ET.parse(row["image"] + ".xmp")
        spaces = {"rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "dc": "http://purl.org/dc/elements/1.1/"}
        spaces["digiKam"] = "http://www.digikam.org/ns/1.0/"
        [about] = tree.findall("./rdf:RDF/rdf:Description", spaces)
        for listed in ("dc:subject/rdf:Bag", "digiKam:TagsList/rdf:Seq"):
            assert [li.text for li in about.findall(f"{listed}/rdf:li", spaces)] == row["labels"].split(";")
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


def test_what_cannot_be_tagged(photos, capsys):
    with pytest.raises(SystemExit, match="or give --top-k"):
        main(["mini", str(photos), "--csv", str(photos.parent / "tags.csv")])
    with pytest.raises(SystemExit, match="holds a semicolon"):
        main(["mini", str(photos), "--csv", str(photos.parent / "x.csv"), "--labels", "a;b", "--top-k", "1"])
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
