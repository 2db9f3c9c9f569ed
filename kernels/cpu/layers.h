// The small operations between the products.
#pragma once

// out[i] = x[i] / rms(x[i]) * weight + add[i], rows of d; add: shaped as x, or null.
struct RmsNorm {
    const float *x, *weight, *add;
    float* out;
    long rows;
    int d;
    float eps;
};

void rms_norm(const RmsNorm& a);

// out[i] = x[i] * sigmoid(gate[row]) + add[i], rows of d; gate: (rows,); add: shaped as x, or null.
struct SigmoidGate {
    const float *x, *gate, *add;
    float* out;
    long rows;
    int d;
};

void sigmoid_gate(const SigmoidGate& a);

// x: (batch, length, heads, d) -> out: (batch, heads, length, d): RMS norm of each head, if there is
// a weight (d,), then rotation of the first 2 pairs values by the position times frequencies (pairs,).
struct NormRope {
    const float *x, *weight, *frequencies;
    const long* offset; // (batch,) position of the first
    float* out;
    int batch, length, heads, d, pairs, interleaved;
    float magnitude, eps;
    long later; // positions to add to each offset
};

void norm_rope(const NormRope& a);

// gate[i] = act(gate[i]) * up[i]; act 0: SiLU, 1: GELU, tanh form.
void activate(float* gate, const float* up, long count, int act);
