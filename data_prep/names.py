"""Label lists that come with the project: text files of one name a line."""

from pathlib import Path

SPLITS = Path(__file__).parent / "splits"
