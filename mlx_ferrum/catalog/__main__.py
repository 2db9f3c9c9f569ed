"""`python -m mlx_ferrum.catalog [NAME]`."""

import sys

from .command import main

sys.exit(main())
