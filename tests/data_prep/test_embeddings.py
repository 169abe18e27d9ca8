"""Label vectors from word vectors and from arrays."""

import numpy as np
import pytest
from samples import run

from clipdec.training.embeddings import load_label_embeddings
from data_prep import embeddings
from data_prep.embeddings import average_words, convert, read_words, words_of

WORDS = {"teddy": [1, 2, 3], "bear": [3, 0, -1], "red": [0, 2, 0], "Paris": [5, 5, 5], "paris": [1, 0, 0]}
WORDS |= {"oak": [0, 0, 4], "-": [9, 9, 9]}
MEANS = {
    "red": [0, 2, 0], "red teddy bear": [4 / 3, 4 / 3, 2 / 3], "red red oak": [0, 4 / 3, 4 / 3],
    **dict.fromkeys(["teddy bear", "teddy-bear", "teddy_bear", " teddy  - bear "], [2, 1, 1]),
    "Paris": [5, 5, 5], "paris": [1, 0, 0],  # as they are
    "Oak": [0, 0, 4], "RED Oak": [0, 1, 2],  # in lower case
}
GLOVE = "".join(f"{word} {' '.join(map(str, v))}\n" for word, v in WORDS.items())


def words(folder, text=GLOVE):
    """A file of word vectors."""
    (folder / "words.txt").write_text(text, encoding="utf8", errors="surrogateescape")
    return folder / "words.txt"


@pytest.mark.parametrize("name", MEANS)
def test_a_name_has_the_mean_of_its_words(tmp_path, name):
    assert np.allclose(average_words([name], words(tmp_path)), [MEANS[name]])


def test_words_are_separated_by_spaces_hyphens_and_underscores():
    assert words_of("a b-c_d\te") == ["a", "b", "c", "d", "e"] and words_of(" - ") == []


def test_the_rows_are_in_the_order_of_the_names(tmp_path):
    assert average_words(["oak", "teddy", "oak"], words(tmp_path)).tolist() == [[0, 0, 4], [1, 2, 3], [0, 0, 4]]


FORMS = {
    "a header": "7 3\n" + GLOVE,  # fastText
    "spaces at the ends": GLOVE.replace("\n", " \n"),  # fastText ends lines with a space
    "CRLF": GLOVE.replace("\n", "\r\n"), "a word twice": GLOVE + "red 7 7 7\n",  # the first counts
    "a word of spaces": GLOVE + ". . . 1 2 3\n",  # as in glove.840B
    "tabs": GLOVE.replace(" ", "\t"), "a byte-order mark": "\ufeffoak 0 0 4\n" + GLOVE.replace("oak 0 0 4\n", ""),
    "a word of two parts": GLOVE + "at name@domain.com 1 2 3\n", "a byte that is no text": "caf\udce9 1 2 3\n" + GLOVE,
}


@pytest.mark.parametrize("form", FORMS)
def test_files_of_word_vectors_are_read_as_they_are_found(tmp_path, form):
    found = read_words(words(tmp_path, FORMS[form]), {"red", "oak", "none"})
    assert {word: v.tolist() for word, v in found.items()} == {"red": [0, 2, 0], "oak": [0, 0, 4]}


def test_utf16_is_read(tmp_path):
    (tmp_path / "words.txt").write_bytes(GLOVE.encode("utf-16"))
    assert average_words(["oak"], tmp_path / "words.txt").tolist() == [[0, 0, 4]]


def test_a_file_that_is_no_text_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", names=["oak"], vectors=np.ones((1, 3)))
    with pytest.raises(ValueError, match="a.npz is no text: unpack it"):
        average_words(["oak"], tmp_path / "a.npz")


def test_all_names_that_lack_a_word_are_listed(tmp_path):
    with pytest.raises(ValueError, match="no vector for a word of 3 names: blue oak, zebra, --;"):
        average_words(["red", "blue oak", "zebra", "teddy bear", "--"], words(tmp_path))


DAMAGED = r"words.txt, line 3: \d numbers where the first line has 3: the file is damaged"
LINES = {"red 0 2\n": DAMAGED, "red 0 2 0 5\n": DAMAGED, "red 0 2 x\n": "no vector for a word of 1 names: red"}


@pytest.mark.parametrize("line", LINES)
def test_a_damaged_line_is_named_and_a_number_that_is_none_leaves_the_word_out(tmp_path, line):
    with pytest.raises(ValueError, match=LINES[line]):
        average_words(["red"], words(tmp_path, GLOVE.replace("red 0 2 0\n", line)))


def test_the_file_is_what_label_embeddings_reads(tmp_path, capsys):
    convert(words(tmp_path), ["teddy bear", "red", "oak"], tmp_path / "new" / "out.npz")
    assert "3 names, 3 dimensions" in capsys.readouterr().out
    rows = load_label_embeddings(tmp_path / "new" / "out.npz", ["oak", "teddy bear"])
    assert np.allclose(rows, [[0, 0, 4], [2, 1, 1]])


def test_the_vectors_are_not_scaled(tmp_path):
    convert(words(tmp_path), ["oak", "red"], tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as file:
        assert file["names"].tolist() == ["oak", "red"] and file["vectors"].tolist() == [[0, 0, 4], [0, 2, 0]]
        assert file["vectors"].dtype == np.float32


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int64])
def test_an_array_has_one_row_a_name(tmp_path, kind):
    np.save(tmp_path / "a.npy", np.array([[3, 4], [0, 2]], kind))
    convert(tmp_path / "a.npy", ["x", "teddy bear"], tmp_path / "out.npz")
    assert np.allclose(load_label_embeddings(tmp_path / "out.npz", ["teddy bear", "x"]), [[0, 2], [3, 4]])


@pytest.mark.parametrize("array, message", [
    (np.ones((3, 4)), r"has the shape \(3, 4\) and the type float64, but there are 2 names"),
    (np.ones((1, 4)), r"has the shape \(1, 4\)"), (np.ones(2), r"has the shape \(2,\)"),
    (np.ones((2, 2, 2)), r"has the shape \(2, 2, 2\)"),
    (np.array([[1, 1], [1, np.nan]]), "no usable vector .* for b$"),
    (np.array([[np.inf, 1], [1, 1]]), "no usable vector .* for a$"),
    (np.array([[0, 0], [1, 1]]), "no usable vector .* for a$"), (np.zeros((2, 3)), "no usable vector .* for a, b$"),
    (np.array([["1", "2"], ["3", "4"]], object), "is no array of numbers .*(?i:pickle)"),
    (np.array([["1", "2"], ["3", "4"]]), "the type <U1"), (np.array([[1j, 1], [1, 1]]), "the type complex128"),
    (np.array([[1, 1e99], [1, 1]]), "no usable vector .* for a$"),
])
def test_an_unusable_array_is_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "a.npy", ["a", "b"], tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_a_zero_word_vector_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no usable vector .* for red"):
        convert(words(tmp_path, GLOVE.replace("red 0 2 0", "red 0 0 0")), ["oak", "red"], tmp_path / "out.npz")


def test_lists_of_names_are_joined_in_order(tmp_path):
    seen, unseen, out = (tmp_path / name for name in ("seen.txt", "unseen.txt", "out.npz"))
    seen.write_text("# seen\nred\noak\n")
    unseen.write_text("teddy bear\n")
    run(embeddings, "--vectors", words(tmp_path), "--names", seen, unseen, "--out", out)
    with np.load(out) as file:
        assert file["names"].tolist() == ["red", "oak", "teddy bear"]
        assert file["vectors"].tolist() == [[0, 2, 0], [0, 0, 4], [2, 1, 1]]


@pytest.mark.parametrize("cut", [0, 20, 100])
def test_an_array_that_is_cut_is_refused(tmp_path, cut):
    np.save(tmp_path / "a.npy", np.ones((2, 2)))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:cut])
    with pytest.raises(ValueError, match="a.npy is no array of numbers"):
        convert(tmp_path / "a.npy", ["a", "b"], tmp_path / "out.npz")


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    convert(words(tmp_path), ["oak"], tmp_path / "out.vec")  # the name that was asked for, without a suffix
    before = (tmp_path / "out.vec").read_bytes()
    monkeypatch.setattr("os.fsync", lambda file: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert(words(tmp_path), ["red"], tmp_path / "out.vec")
    assert (tmp_path / "out.vec").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.vec", "words.txt"]


@pytest.mark.parametrize("name, text, message", [
    ("words.txt", "red\noak\nRED\n", "is there already"),
    ("words.txt", "zebra\n", "no vector for a word of 1 names: zebra"),
    ("words.txt", "# none\n", "holds no name"), ("none.txt", "red\n", "none.txt"),
])
def test_an_error_is_a_message(tmp_path, capsys, name, text, message):
    words(tmp_path)
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(SystemExit):
        run(embeddings, "--vectors", tmp_path / name, "--names", tmp_path / "names.txt", "--out", tmp_path / "out.npz")
    assert message in capsys.readouterr().err and not (tmp_path / "out.npz").exists()


def test_a_name_in_two_lists_is_a_message(tmp_path, capsys):
    for name, text in (("a.txt", "red\noak\n"), ("b.txt", "Oak\n")):
        (tmp_path / name).write_text(text)
    lists = (tmp_path / "a.txt", tmp_path / "b.txt")
    with pytest.raises(SystemExit):
        run(embeddings, "--vectors", words(tmp_path), "--names", *lists, "--out", tmp_path / "out.npz")
    assert "b.txt holds 'Oak', which stands in another list" in capsys.readouterr().err
