"""`python -m apicost`."""

import sys

from apicost.cli import main

sys.exit(main())
