"""C++ that quantizes weights: compiled on first use for the processor at hand, called by ctypes."""
