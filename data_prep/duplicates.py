"""Images that are there more than once, in one split or in two: which copy stays, and the shards without the others."""

from collections import defaultdict

import pyarrow as pa


def find(shards):
    """{place: [places of its copies]} of the images that stay: of equal ones the first in the last split, so that test
    loses none to val or train.

    Args:
        shards: {split: [(path, digest of each image)]}. A place is (path of the shard, row).
    """
    first, copies = {}, defaultdict(list)
    for split in reversed(shards):
        for path, digests in shards[split]:
            for row, digest in enumerate(digests):
                kept = first.setdefault(digest, (path, row))
                if kept != (path, row):
                    copies[kept].append((path, row))
    return copies


def describe(copies):
    """{place: (split, name, {column: label indices})} of all images in `copies`."""
    rows, found = defaultdict(list), {}
    for kept, others in copies.items():
        for path, row in (kept, *others):
            rows[path].append(row)
    for path, wanted in rows.items():
        table = _read(path)
        names, labels = table["image"].combine_chunks().field("path").to_pylist(), table.drop("image").to_pylist()
        found |= {(path, row): (path.parent.name, names[row], labels[row]) for row in wanted}
    return found


def left_out(copies, described):
    """[(split, name, "duplicate", detail)] of the copies that do not stay."""
    left = []
    for kept, others in copies.items():
        split, name, _ = described[kept]
        left += [(*described[place][:2], "duplicate", f"equal to {name} of {split}") for place in others]
    return left


def without(copies, described):
    """Yield (path, table) of each shard that changes: copies gone, and what stays with the labels of all its copies, of
    which none that is there in one is absent.
    """
    labels, gone = defaultdict(dict), defaultdict(set)
    for kept, others in copies.items():
        labels[kept[0]][kept[1]] = _joined([described[place][2] for place in (kept, *others)])
        for path, row in others:
            gone[path].add(row)
    for path in sorted(labels.keys() | gone.keys()):
        table = _read(path)
        rows = [labels[path].get(row, own) for row, own in enumerate(table.drop("image").to_pylist())]
        columns = [table["image"]]
        columns += [pa.array([row[field.name] for row in rows], field.type) for field in [*table.schema][1:]]
        stays = pa.array([row not in gone[path] for row in range(len(table))], pa.bool_())
        yield path, pa.Table.from_arrays(columns, schema=table.schema).filter(stays)


def _joined(rows):
    """{column: label indices} of several copies of an image."""
    found = {column: {label for row in rows for label in row[column]} for column in rows[0]}
    return {column: sorted(each - (found["labels"] if column == "absent" else set())) for column, each in found.items()}


def _read(path):
    """The table of a shard, in memory: no file stays open."""
    return pa.ipc.open_stream(path.read_bytes()).read_all()
