"""Kernels: one block decoder a type in blocks/, and what each processor makes of them."""
