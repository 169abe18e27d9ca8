import sys

from clipdec.training.run import main

sys.exit(main())
