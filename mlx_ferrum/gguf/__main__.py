"""`python -m mlx_ferrum.gguf FILE`."""

import sys

from .command import main

sys.exit(main())
