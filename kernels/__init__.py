"""Kernels: a decoder per block type in blocks/, and the kernels of each processor."""
