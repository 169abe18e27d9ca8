import sys

from clipdec.export.onnx import main

sys.exit(main())
