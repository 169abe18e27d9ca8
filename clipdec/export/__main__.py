"""Write a trained run as one ONNX file that answers without torch. Needs `pip install clipdec[onnx]`."""

import argparse
import sys

from clipdec.export.onnx import export_onnx
from clipdec.training.machine import print_anything


def main(arguments=None):
    print_anything()
    parser = argparse.ArgumentParser(prog="python -m clipdec.export", description=__doc__)
    parser.add_argument("run_folder", help="a folder, user/name of the hub, or a CLIP, as for the predictor")
    parser.add_argument("path", help="the .onnx file to write")
    parser.add_argument("--calibration", help="a file of Predictor.save_calibration, in place of the run's own")
    args = parser.parse_args(arguments)
    try:
        export_onnx(args.run_folder, args.path, args.calibration)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.path}: its logits are those of torch to 1e-4")


if __name__ == "__main__":
    main()
