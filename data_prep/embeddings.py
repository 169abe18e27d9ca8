"""Label vectors for `label_embeddings`: from word vectors (GloVe, fastText) or from an array with a list of names.

    python -m data_prep.embeddings --vectors glove.6B.300d.txt --names labels.txt --out glove.npz
    python -m data_prep.embeddings --vectors coco80.npy --names coco80.txt --out coco80.npz

A text file of word vectors has a word and its numbers on each line; the vector of a name of several words is the mean
of theirs. An .npy holds one row for each of the names, in their order.
"""

import io
import re
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from clipdec.labels import read_names, same_name
from data_prep import script
from data_prep.files import write_whole


def read_words(path, wanted):
    """{word: vector [D]} of the wanted words in a text file, read line by line. Raises ValueError at a damaged line."""
    found, width = {}, None
    with open(path, "rb") as file:
        start = file.read(4096)
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    if b"\0" in start and encoding != "utf-16":
        raise ValueError(f"{path} is no text: unpack it, or give word vectors as .txt or .vec, or an array as .npy")
    with open(path, encoding=encoding, errors="replace") as file:
        for number, line in enumerate(tqdm(file, desc=Path(path).name, unit=" words"), 1):
            word, *values = line.rstrip().replace("\t", " ").split(" ")
            if number == 1 and len(values) == 1:
                continue  # fastText: the numbers of words and of dimensions
            width = width or len(values)
            if word not in wanted or word in found:
                continue
            try:
                found[word] = np.array(values, np.float32)
            except ValueError:
                continue  # a word of several parts: it is not one of the wanted
            if len(values) != width:
                counts = f"{len(values)} numbers where the first line has {width}"
                raise ValueError(f"{path}, line {number}: {counts}: the file is damaged")
    return found


def words_of(name):
    """"teddy bear" -> ["teddy", "bear"]; hyphens and underscores separate words too."""
    return [word for word in re.split(r"[\s_-]+", name.strip()) if word]


def average_words(names, path):
    """Vectors [L, D] of names, each the mean of its words' vectors; a word is looked for as it is, then in lower case.
    Raises ValueError that lists the names with a word that has no vector.
    """
    words = {word for name in names for word in words_of(name)}
    found = read_words(path, words | {word.lower() for word in words})
    rows = [[found.get(word, found.get(word.lower())) for word in words_of(name)] for name in names]  # None: not found
    if lacking := [name for name, row in zip(names, rows) if not row or any(vector is None for vector in row)]:
        remedy = "leave them out, or write them in other words"
        raise ValueError(f"{path} has no vector for a word of {len(lacking)} names: {', '.join(lacking)}; {remedy}")
    return np.stack([np.mean(row, axis=0) for row in rows])


def read_array(path, names):
    """The rows [L, D] of an .npy, one for each of the names. Raises ValueError."""
    try:
        array = np.load(path, allow_pickle=False)
    except (EOFError, ValueError) as error:
        raise ValueError(f"{path} is no array of numbers ({error}): write it with numpy.save") from None
    if array.dtype.kind not in "fiu" or array.ndim != 2 or len(array) != len(names):
        sizes = f"the shape {array.shape} and the type {array.dtype}, but there are {len(names)} names"
        raise ValueError(f"{path} has {sizes}: one row of numbers a name is needed, in their order")
    with np.errstate(over="ignore"):  # what does not fit is refused as not finite
        return array.astype(np.float32)


def read_lists(paths):
    """The names of several list files, in order. Raises ValueError if two of them hold one name."""
    names = {}
    for path in paths:
        for name in read_names(path)[0]:
            if same_name(name) in names:
                raise ValueError(f"{path} holds {name!r}, which stands in another list of --names too: name it once")
            names[same_name(name)] = name
    return [*names.values()]


def save(out, names, vectors):
    """Write the .npz `out` with `names` [L] and `vectors` [L, D]."""
    file = io.BytesIO()
    np.savez(file, names=np.array(names), vectors=vectors.astype(np.float32))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, file.getvalue())


def convert(vectors, names, out):
    """Write the .npz `out` of names and their vectors, not scaled."""
    array = read_array(vectors, names) if Path(vectors).suffix.lower() == ".npy" else average_words(names, vectors)
    if bad := [name for name, row in zip(names, array) if not np.isfinite(row).all() or not row.any()]:
        raise ValueError(f"{vectors} holds no usable vector (all zero, or not finite) for {', '.join(bad)}")
    save(out, names, array)
    print(f"{out}: {len(names)} names, {array.shape[1]} dimensions")


def main():
    options = script.parser(__doc__, kind=".npz")
    options.add_argument("--vectors", type=script.path, required=True, help="GloVe .txt, fastText .vec, or .npy")
    lists = "text files of the label names, one a line; several are joined in order"
    options.add_argument("--names", type=script.path, required=True, nargs="+", help=lists)
    args = options.parse_args()
    with script.messages(options.error, "stopped: nothing was written"):
        convert(args.vectors, read_lists(args.names), args.out)


if __name__ == "__main__":
    main()
