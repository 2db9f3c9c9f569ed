// The numbers of the activation functions for every processor: from 1 on, in the order of options.py.
#pragma once

enum Activation { NO_ACTIVATION, SILU, GELU };
