"""`python -m mlx_ferrum.experts`."""

import sys

from .command import main

sys.exit(main())
