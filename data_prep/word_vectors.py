"""Word vectors of the emoji names without a download: which words stand together in captions, as GloVe learns it from the web.

    python -m data_prep.word_vectors --out data/emoji/word_vectors.npz

The captions are those of scenes drawn like the data set's, unseen names included, as the texts behind any word vectors hold all
words; no image is drawn. Counts of words in one caption become positive pointwise mutual information, and its truncated singular
value decomposition the vectors (Levy & Goldberg, NeurIPS 2014; Levy, Goldberg & Dagan, TACL 2015). They know what occurs together, not
what looks alike. The vector of a name of several words is the mean of theirs. The .npz is one for `label_embeddings`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from data_prep import emoji_scenes
from data_prep.embeddings import words_of


def captions(count, seed):
    """The words of `count` captions: of each, the list of its names' words in lower case."""
    rng = np.random.default_rng(seed)
    for _ in tqdm(range(count), desc="captions"):
        names, _ = emoji_scenes.choose(rng, "test")
        yield [word for name in names for word in words_of(name.lower())]


def cooccurrences(sentences, place):
    """Counts [V, V] of two different words in one sentence, whatever their distance. place: {word: its row}."""
    counts = np.zeros((len(place), len(place)))
    for words in sentences:
        rows = np.array(sorted({place[word] for word in words}))
        counts[rows[:, None], rows] += 1
    np.fill_diagonal(counts, 0)
    return counts


def ppmi(counts, smoothing=0.75):
    """Positive pointwise mutual information max(0, log p(w, c) / (p(w) p(c)^smoothing)) of counts [V, V].

    Smoothing raises the probability of rare context words, which would otherwise be ahead everywhere.
    """
    word, context = counts.sum(1) / counts.sum(), counts.sum(0) ** smoothing
    with np.errstate(divide="ignore", invalid="ignore"):
        pmi = np.log(counts / counts.sum()) - np.log(word)[:, None] - np.log(context / context.sum())
    return np.where(counts > 0, np.maximum(pmi, 0), 0)


def factorise(matrix, width):
    """Rows [V, width] whose products approximate a symmetric matrix best: singular vectors times the roots of singular values."""
    u, s, _ = np.linalg.svd(matrix)
    return u[:, :width] * np.sqrt(s[:width])


def name_vectors(names, count, width, seed):
    """Vectors [L, width] of names. Raises ValueError if a name is in no caption."""
    place = {word: i for i, word in enumerate(sorted({word for name in names for word in words_of(name.lower())}))}
    words = factorise(ppmi(cooccurrences(captions(count, seed), place)), width)
    vectors = np.stack([words[[place[word] for word in words_of(name.lower())]].mean(0) for name in names]).astype(np.float32)
    if lacking := [name for name, row in zip(names, vectors) if not row.any()]:
        raise ValueError(f"{len(lacking)} names are in no caption, such as {lacking[0]}: take more captions than {count}")
    return vectors


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", default="data/emoji/word_vectors.npz", help=".npz to write")
    parser.add_argument("--captions", type=int, default=100_000, help="how many to count")
    parser.add_argument("--width", type=int, default=128, help="length of a vector")
    parser.add_argument("--seed", type=int, default=1, help="of the captions")
    args = parser.parse_args()
    names = [name for part in emoji_scenes.concepts()[:2] for name in part]
    try:
        vectors = name_vectors(names, args.captions, args.width, args.seed)
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        np.savez(args.out, names=np.array(names), vectors=vectors)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped: nothing was written")
    print(f"{args.out}: {len(names)} names, {args.width} dimensions, from {args.captions} captions")


if __name__ == "__main__":
    main()
