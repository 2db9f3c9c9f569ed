"""Kernels for NVIDIA GPUs: the Metal text with prelude.cuh, compiled by NVRTC and launched by MLX."""
