import sys

from clipdec.comparison.systems import main

sys.exit(main())
