"""Progress bars that a notebook can bear."""

from tqdm.auto import tqdm

from clipdec.training.processes import is_main


def progress(iterable, desc, **options):
    """A tqdm bar, in the main process, of what takes more than a second, gone when done.

    One refresh a second: in a notebook each is several messages, and a client that reads them only after the cell, as nbval
    does, loses those that its queue cannot hold, and with them the one that says that the cell has ended.
    """
    return tqdm(iterable, desc, leave=False, delay=1.0, mininterval=1.0, disable=not is_main(), **options)
