// What products and layers share.
#pragma once

#include "../activation.h"

// gate[i] = act(gate[i]) * up[i]; act: an Activation.
void activate(float* gate, const float* up, long count, int act);
