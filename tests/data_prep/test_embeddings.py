"""Label vectors from word vectors and from arrays."""

import sys

import numpy as np
import pytest

from clipdec.towers import load_label_embeddings
from data_prep import embeddings
from data_prep.embeddings import average_words, convert, read_words, words_of

WORDS = {"teddy": [1, 2, 3], "bear": [3, 0, -1], "red": [0, 2, 0], "Paris": [5, 5, 5], "paris": [1, 0, 0], "oak": [0, 0, 4], "-": [9, 9, 9]}
GLOVE = "".join(f"{word} {' '.join(map(str, v))}\n" for word, v in WORDS.items())


@pytest.fixture
def vectors(tmp_path):
    """vectors(text) writes a file of word vectors."""

    def vectors(text=GLOVE, name="words.txt"):
        (tmp_path / name).write_text(text, encoding="utf8")
        return tmp_path / name

    return vectors


# ---- word vectors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, vector",
    [
        ("red", [0, 2, 0]),
        ("teddy bear", [2, 1, 1]),
        ("teddy-bear", [2, 1, 1]),
        ("teddy_bear", [2, 1, 1]),
        (" teddy  - bear ", [2, 1, 1]),
        ("red teddy bear", [4 / 3, 4 / 3, 2 / 3]),
        ("red red oak", [0, 4 / 3, 4 / 3]),
        ("Paris", [5, 5, 5]),  # as it is
        ("paris", [1, 0, 0]),
        ("Oak", [0, 0, 4]),  # in lower case
        ("RED Oak", [0, 1, 2]),
    ],
)
def test_a_name_has_the_mean_of_its_words(vectors, name, vector):
    assert np.allclose(average_words([name], vectors()), [vector])


def test_words_are_separated_by_spaces_hyphens_and_underscores():
    assert words_of("a b-c_d\te") == ["a", "b", "c", "d", "e"] and words_of(" - ") == []


def test_the_rows_are_in_the_order_of_the_names(vectors):
    assert average_words(["oak", "teddy", "oak"], vectors()).tolist() == [[0, 0, 4], [1, 2, 3], [0, 0, 4]]


@pytest.mark.parametrize(
    "text",
    [
        "7 3\n" + GLOVE,  # fastText
        GLOVE.replace("\n", " \n"),  # fastText ends lines with a space
        GLOVE.replace("\n", "\r\n"),
        GLOVE + "red 7 7 7\n",  # the first counts
        GLOVE + ". . . 1 2 3\n",  # as in glove.840B
        GLOVE + "at name@domain.com 1 2 3\n",
    ],
    ids=["a header", "spaces at the ends", "CRLF", "a word twice", "a word of spaces", "a word of two parts"],
)
def test_files_of_word_vectors_are_read_as_they_are_found(vectors, text):
    found = read_words(vectors(text), {"red", "oak", "none"})
    assert {word: v.tolist() for word, v in found.items()} == {"red": [0, 2, 0], "oak": [0, 0, 4]}


def test_bytes_that_are_no_text_do_not_end_the_reading(tmp_path):
    (tmp_path / "words.txt").write_bytes(b"caf\xe9 1 2 3\n" + GLOVE.encode())
    assert read_words(tmp_path / "words.txt", {"oak"})["oak"].tolist() == [0, 0, 4]


def test_all_names_that_lack_a_word_are_listed(vectors):
    with pytest.raises(ValueError, match="no vector for a word of 3 names: blue oak, zebra, --;"):
        average_words(["red", "blue oak", "zebra", "teddy bear", "--"], vectors())


@pytest.mark.parametrize("line", ["red 0 2\n", "red 0 2 0 5\n"])
def test_a_damaged_line_is_named(vectors, line):
    with pytest.raises(ValueError, match=r"words.txt, line 3: \d numbers where the first line has 3: the file is damaged"):
        average_words(["red"], vectors(GLOVE.replace("red 0 2 0\n", line)))


def test_a_number_that_is_none_leaves_the_word_out(vectors):
    with pytest.raises(ValueError, match="no vector for a word of 1 names: red"):
        average_words(["red"], vectors(GLOVE.replace("red 0 2 0\n", "red 0 2 x\n")))


# ---- the .npz ---------------------------------------------------------------------------------------------------


def test_the_file_is_what_label_embeddings_reads(vectors, tmp_path, capsys):
    convert(vectors(), ["teddy bear", "red", "oak"], tmp_path / "new" / "out.npz")
    assert "3 names, 3 dimensions" in capsys.readouterr().out
    rows = load_label_embeddings(tmp_path / "new" / "out.npz", ["oak", "teddy bear"])
    assert np.allclose(rows, [[0, 0, 1], np.array([2, 1, 1]) / 6**0.5])


def test_the_vectors_are_not_scaled(vectors, tmp_path):
    convert(vectors(), ["oak", "red"], tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as file:
        assert file["names"].tolist() == ["oak", "red"] and file["vectors"].tolist() == [[0, 0, 4], [0, 2, 0]]
        assert file["vectors"].dtype == np.float32


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int64])
def test_an_array_has_one_row_a_name(tmp_path, kind):
    np.save(tmp_path / "a.npy", np.array([[3, 4], [0, 2]], kind))
    convert(tmp_path / "a.npy", ["x", "teddy bear"], tmp_path / "out.npz")
    assert np.allclose(load_label_embeddings(tmp_path / "out.npz", ["teddy bear", "x"]), [[0, 1], [0.6, 0.8]])


@pytest.mark.parametrize(
    "array, message",
    [
        (np.ones((3, 4)), r"has the shape \(3, 4\), but there are 2 names"),
        (np.ones((1, 4)), r"has the shape \(1, 4\)"),
        (np.ones(2), r"has the shape \(2,\)"),
        (np.ones((2, 2, 2)), r"has the shape \(2, 2, 2\)"),
        (np.array([[1, 1], [1, np.nan]]), "no usable vector .* for b$"),
        (np.array([[np.inf, 1], [1, 1]]), "no usable vector .* for a$"),
        (np.array([[0, 0], [1, 1]]), "no usable vector .* for a$"),
        (np.zeros((2, 3)), "no usable vector .* for a, b$"),
        (np.array([["1", "2"], ["3", "4"]], object), "(?i)pickle"),
    ],
)
def test_an_unusable_array_is_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "a.npy", ["a", "b"], tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_a_zero_word_vector_is_refused(vectors, tmp_path):
    with pytest.raises(ValueError, match="no usable vector .* for red"):
        convert(vectors(GLOVE.replace("red 0 2 0", "red 0 0 0")), ["oak", "red"], tmp_path / "out.npz")


# ---- the script -------------------------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path, monkeypatch):
    """script(vectors, names, ...) writes out.npz for the lists of names."""

    def script(vectors, *lists):
        paths = [tmp_path / f"names{i}.txt" for i in range(len(lists))]
        for path, text in zip(paths, lists):
            path.write_text(text)
        arguments = ["--vectors", str(vectors), "--names", *map(str, paths), "--out", str(tmp_path / "out.npz")]
        monkeypatch.setattr(sys, "argv", ["embeddings", *arguments])
        embeddings.main()
        return tmp_path / "out.npz"

    return script


def test_lists_of_names_are_joined_in_order(script, vectors):
    with np.load(script(vectors(), "# seen\nred\noak\n", "teddy bear\n")) as file:
        assert file["names"].tolist() == ["red", "oak", "teddy bear"]
        assert file["vectors"].tolist() == [[0, 2, 0], [0, 0, 4], [2, 1, 1]]


@pytest.mark.parametrize("text, message", [("zebra\n", "no vector for a word of 1 names: zebra"), ("# none\n", "holds no name")])
def test_an_error_is_a_message(script, vectors, tmp_path, capsys, text, message):
    with pytest.raises(SystemExit):
        script(vectors(), text)
    assert message in capsys.readouterr().err and not (tmp_path / "out.npz").exists()


def test_a_missing_file_is_a_message(script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script(tmp_path / "none.txt", "red\n")
    assert "none.txt" in capsys.readouterr().err
