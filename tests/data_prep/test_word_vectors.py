"""Distributional vectors of names: counts and PPMI by hand, and what the vectors know."""

import numpy as np
import pytest
from samples import run

from clipdec.training.embeddings import load_label_embeddings
from data_prep import emoji_scenes, word_vectors
from data_prep.embeddings import words_of
from data_prep.word_vectors import captions, cooccurrences, factorise, name_vectors, ppmi


def test_counts_of_words_in_one_caption():
    texts = [["a", "b"], ["b", "a", "b"], ["c"], ["a", "c"]]  # a repeated word counts once
    counts = cooccurrences(texts, {"a": 0, "b": 1, "c": 2})
    assert counts.tolist() == [[0, 2, 1], [2, 0, 0], [1, 0, 0]]


def test_ppmi_by_hand():
    counts, word = np.array([[0, 2.0, 1], [2, 0, 0], [1, 0, 0]]), np.array([3, 2, 1]) / 6
    found, context = ppmi(counts, smoothing=0.75), word**0.75 / (word**0.75).sum()
    for i, j in ((0, 1), (0, 2), (1, 0), (2, 0)):
        assert found[i, j] == pytest.approx(max(0, np.log(counts[i, j] / 6 / (word[i] * context[j]))))
    assert (found >= 0).all() and found[0, 0] == found[1, 2] == 0


def test_the_factors_are_the_best_of_their_width():
    factor = np.random.default_rng(0).normal(size=(9, 3))
    matrix = factor @ factor.T  # of rank 3, symmetric and without negative eigenvalues
    rows = factorise(matrix, 3)
    assert rows.shape == (9, 3) and np.allclose(rows @ rows.T, matrix) and factorise(matrix, 2).shape == (9, 2)


def test_vectors_know_what_occurs_together():
    names = [name for part in emoji_scenes.concepts()[:2] for name in part]
    vectors = name_vectors(names, 30_000, 32, seed=1)
    assert vectors.shape == (len(names), 32) and np.isfinite(vectors).all()
    assert list(captions(9, seed=1)) == list(captions(9, seed=1)) != list(captions(9, seed=2))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = lambda a, b: unit[names.index(a)] @ unit[names.index(b)]
    assert near("pizza", "sandwich") > near("pizza", "locomotive")  # food and food, food and vehicle


def test_the_file_is_one_of_label_vectors(tmp_path, capsys):
    run(word_vectors, "--out", tmp_path / "words.npz", "--captions", 30000, "--width", 16)
    assert "1006 names, 16 dimensions, from 30000 captions" in capsys.readouterr().out
    assert load_label_embeddings(tmp_path / "words.npz", ["tiger", "pizza"]).shape == (2, 16)


def test_names_that_are_in_no_caption_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(word_vectors, "--out", tmp_path / "words.npz", "--captions", 20)
    assert "take more captions than 20" in capsys.readouterr().err and not (tmp_path / "words.npz").exists()


def test_a_vector_is_not_longer_than_there_are_words(tmp_path, capsys):
    seen, unseen, *_ = emoji_scenes.concepts()
    words = len({word for name in seen + unseen for word in words_of(name.lower())})
    with pytest.raises(SystemExit):
        run(word_vectors, "--out", tmp_path / "words.npz", "--captions", 1, "--width", words + 1)
    assert f"--width {words + 1} is more than the {words} words" in capsys.readouterr().err
