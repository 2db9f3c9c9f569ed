"""`python -m mlx_ferrum.doctor`."""

import sys

from .command import main

sys.exit(main())
