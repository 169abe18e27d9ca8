"""Files that are there as a whole or not at all."""

import os
from pathlib import Path


def write_whole(path, content):
    """Write a file of text or bytes; a stop or an error in between leaves the file that was there, or none."""
    aside = Path(path).with_name(f"{Path(path).name}.{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
