"""The commands of `python -m mlx_ferrum.convert`, one file each: `main(argv)` runs it and returns the exit code."""
