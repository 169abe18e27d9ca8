"""Draw docs/method.png: the method in one drawing."""

from pathlib import Path

from clipdec.notebook.method_drawing import method_drawing

method_drawing().savefig(Path(__file__).with_suffix(".png"), dpi=110)
