"""`python -m loadgen` is the console script `loadgen`."""

import sys

from loadgen.cli import main

sys.exit(main())
