"""C++ for the CPU backend: compiled on first use for the processor at hand, called by ctypes."""
