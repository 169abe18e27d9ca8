"""Word vectors of the emoji names without a download: which words stand together in captions, as GloVe learns it from
the web.

    python -m data_prep.word_vectors --out data/emoji/word_vectors.npz

The captions are of scenes chosen as the data set's are, unseen names included, as the texts behind any word vectors
hold all words. Counts of words in one caption become positive pointwise mutual information, and its truncated singular
value decomposition the vectors (Levy & Goldberg, NeurIPS 2014; Levy, Goldberg & Dagan, TACL 2015). They know what
occurs together, not what looks alike. A name of several words has the mean of theirs. `label_embeddings` reads it.
"""

import numpy as np
from tqdm.auto import tqdm

from data_prep import emoji_scenes, script
from data_prep.embeddings import save, words_of


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
    """Positive pointwise mutual information max(0, log p(w, c) / (p(w) p(c)^smoothing)) of counts [V, V]."""
    # smoothing raises the probability of rare context words, which would otherwise be ahead everywhere
    word, context = counts.sum(1) / counts.sum(), counts.sum(0) ** smoothing
    with np.errstate(divide="ignore", invalid="ignore"):
        pmi = np.log(counts / counts.sum()) - np.log(word)[:, None] - np.log(context / context.sum())
    return np.where(counts > 0, np.maximum(pmi, 0), 0)


def factorise(matrix, width):
    """Rows [V, width] of a word each: left singular vectors times roots of the singular values, the symmetric choice of
    Levy, Goldberg and Dagan (TACL 2015) between words and contexts.
    """
    u, s, _ = np.linalg.svd(matrix)
    return u[:, :width] * np.sqrt(s[:width])


def name_vectors(names, count, width, seed):
    """Vectors [L, width] of names. Raises ValueError if a name is in no caption."""
    parts = [words_of(name.lower()) for name in names]
    place = {word: i for i, word in enumerate(sorted(set().union(*parts)))}
    if width > len(place):
        raise ValueError(f"--width {width} is more than the {len(place)} words of the names: take at most as many")
    words = factorise(ppmi(cooccurrences(captions(count, seed), place)), width)
    vectors = np.stack([words[[place[word] for word in part]].mean(0) for part in parts]).astype(np.float32)
    if absent := [name for name, row in zip(names, vectors) if not row.any()]:
        raise ValueError(f"{len(absent)} names are in no caption, such as {absent[0]}: take more captions than {count}")
    return vectors


def main():
    options = script.parser(__doc__, "data/emoji/word_vectors.npz", ".npz")
    options.add_argument("--captions", type=script.count, default=100_000, help="how many to count")
    options.add_argument("--width", type=script.count, default=128, help="length of a vector")
    options.add_argument("--seed", type=script.seed, default=1, help="of the captions")
    args = options.parse_args()
    seen, unseen, *_ = emoji_scenes.concepts()
    names = seen + unseen
    with script.messages(options.error, "stopped: nothing was written"):
        save(args.out, names, name_vectors(names, args.captions, args.width, args.seed))
    print(f"{args.out}: {len(names)} names, {args.width} dimensions, from {args.captions} captions")


if __name__ == "__main__":
    main()
