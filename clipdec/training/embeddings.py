"""Label vectors of a file, `label_embeddings`, as data_prep.embeddings writes it."""

import numpy as np
import torch

from clipdec.labels import same_name


def load_label_embeddings(path, names):
    """Label vectors [L, D] from an .npz with `names` [K] and `vectors` [K, D], in the order of `names`.

    Raises ValueError if the file is not such an .npz or lacks a name.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            rows, vectors = [str(n) for n in file["names"]], file["vectors"]
    except Exception as error:  # numpy and zipfile raise errors of many kinds
        raise ValueError(f"label_embeddings {path} is not an .npz with `names` and `vectors`: {error}") from None
    if vectors.ndim != 2 or len(vectors) != len(rows):
        raise ValueError(f"label_embeddings {path}: {len(rows)} names but vectors of shape {vectors.shape}")
    place = {same_name(n): i for i, n in enumerate(rows)} | {n: i for i, n in enumerate(rows)}
    row = {n: place.get(n, place.get(same_name(n))) for n in names}
    if missing := [n for n in names if row[n] is None]:
        raise ValueError(f"label_embeddings {path} has no vector for {len(missing)} labels: {', '.join(missing)}")
    return torch.from_numpy(vectors[[row[n] for n in names]]).float()
