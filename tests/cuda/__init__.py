"""CUDA kernels executed on this CPU: the very text that NVRTC gets, on the runtime of tests/msl.

What is not as on a GPU: the order in which a matrix product adds up, and the last bits of functions such as exp.
"""

from .compiled import machine_code
from .driver import FakeDriver, fake_gpu
from .host import CudaHost, cuda_on_cpu

__all__ = ["CudaHost", "FakeDriver", "cuda_on_cpu", "fake_gpu", "machine_code"]
