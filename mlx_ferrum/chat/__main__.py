"""`python -m mlx_ferrum.chat`."""

import sys

from .command import main

sys.exit(main())
