"""`python -m mlx_ferrum.generate`."""

import sys

from .command import main

sys.exit(main())
