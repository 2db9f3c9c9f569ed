"""Weight conversion: Hugging Face and MLX folders to GGUF and back, quantizing, comparing.

`python -m mlx_ferrum.convert` is the command line. Each command is a file in `commands/`.
"""
