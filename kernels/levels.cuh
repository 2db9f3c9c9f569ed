// On NVIDIA GPUs products with IQ4 take codes, which permutations of registers look up (prelude.cuh).
#pragma once
