"""Metal kernels executed on this CPU: the very text that a GPU gets, as mx.fast.metal_kernel builds it.

What is not as on a GPU: the order in which a simdgroup adds up, and the last bits of functions such as exp;
no textures. A comparison of vectors is a number only where T4(...) or (T4) makes it one.
"""

from .findings import Finding
from .host import Host, KernelError, metal_on_cpu
from .mutations import mutations, survivors
from .tokens import SourceError

__all__ = [
    "Finding",
    "Host",
    "KernelError",
    "SourceError",
    "metal_on_cpu",
    "mutations",
    "survivors",
]
