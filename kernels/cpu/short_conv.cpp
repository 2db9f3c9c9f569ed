// The short causal convolution of recurrent layers, each channel by itself. Its state is the last inputs.
#include <algorithm>
#include <vector>

#include "calls.h"
#include "exp.h"
#include "floats.h"
#include "shared.h"
#include "slots.h"

namespace {

// y[t][c] = silu(sum over j of weight[c][j] x[t - (kernel - 1) + j][c]). The rows of all sequences lie one after
// another. What lies before a sequence's first row is in its source; the last kernel - 1 inputs go to its target.
struct ShortConv {
    const float *x, *weight;      // (rows, channels); (channels, kernel)
    const int* starts;            // (sequences + 1,), the first row of each
    const int *sources, *targets; // (sequences,), slots; a source of -1 stands for zeros
    float* columns;               // (slots, kernel - 1, channels)
    float* out;                   // (rows, channels)
    int sequences, slots, channels, kernel;

    long rows() const { return starts[sequences]; }
};

constexpr int TILE = 256; // channels of a part of the job

// Channels [first, first + count) of all sequences. KERNEL: the kernel, or 0 for any.
template <int KERNEL>
class Tile {
public:
    Tile(const ShortConv& a, int first)
        : a(a), first(first), count(std::min(TILE, a.channels - first)), weights(kernel() * TILE), inputs(kernel()) {
        const float* weight = a.weight + long(first) * kernel();
        for (int c = 0; c < count; c++)
            for (int j = 0; j < kernel(); j++) weights[j * TILE + c] = weight[c * kernel() + j];
    }

    void convolve(int sequence) {
        int rows = a.starts[sequence + 1] - a.starts[sequence], before = kernel() - 1;
        for (int t = 0; t < rows; t++) {
            for (int j = 0; j < kernel(); j++) inputs[j] = input(sequence, t - before + j);
            convolve_row(a.out + long(a.starts[sequence] + t) * a.channels + first);
        }
        float* to = a.columns + long(a.targets[sequence]) * before * a.channels + first;
        for (int j = 0; j < before; j++)
            std::copy_n(input(sequence, rows - before + j), count, to + long(j) * a.channels);
    }

private:
    int kernel() const { return KERNEL ? KERNEL : a.kernel; }

    // Row t of a sequence, which begins in its source.
    const float* input(int sequence, int t) const {
        static const float zeros[TILE] = {};
        if (t >= 0) return a.x + long(a.starts[sequence] + t) * a.channels + first;
        int source = a.sources[sequence], before = kernel() - 1;
        return source < 0 ? zeros : a.columns + (long(source) * before + before + t) * a.channels + first;
    }

    void convolve_row(float* out) const {
        int c = 0;
        for (; c + LANES <= count; c += LANES) {
            Floats sum = {};
            for (int j = 0; j < kernel(); j++) sum += load_floats(&weights[j * TILE + c]) * load_floats(inputs[j] + c);
            store_floats(out + c, sum * sigmoid(sum));
        }
        for (; c < count; c++) {
            float sum = 0;
            for (int j = 0; j < kernel(); j++) sum += weights[j * TILE + c] * inputs[j][c];
            out[c] = sum * sigmoid(repeat(sum))[0];
        }
    }

    const ShortConv& a;
    int first, count;
    std::vector<float> weights;       // (kernel, TILE), those of an input side by side
    std::vector<const float*> inputs; // (kernel,), of one output
};

template <int KERNEL>
void convolve(const ShortConv& a, int part) {
    Tile<KERNEL> tile(a, part * TILE);
    for (int sequence = 0; sequence < a.sequences; sequence++) tile.convolve(sequence);
}

void short_conv(const ShortConv& a) {
    check_slots("short_conv", a);
    constexpr int COST = 16; // multiply-adds that a SiLU takes
    share(a.rows() * a.channels * (a.kernel + COST) >= SMALL, (a.channels + TILE - 1) / TILE,
          [&](int part) { a.kernel == 4 ? convolve<4>(a, part) : convolve<0>(a, part); });
}

CALL(ShortConv, short_conv, F(x), F(weight), F(starts), F(sources), F(targets), F(columns), F(out), F(sequences),
     F(slots), F(channels), F(kernel))

} // namespace
