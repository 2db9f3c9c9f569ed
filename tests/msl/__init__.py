"""Metal kernels executed on this CPU: the very text that a GPU gets, as mx.fast.metal_kernel builds it."""

from .findings import Finding
from .host import Host, KernelError, metal_on_cpu
from .tokens import SourceError

__all__ = ["Finding", "Host", "KernelError", "SourceError", "metal_on_cpu"]
