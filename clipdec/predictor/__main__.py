import sys

from clipdec.predictor.predictor import main

sys.exit(main())
