// A depthwise causal convolution over the rows of each sequence, then SiLU. A thread takes a run of rows of one channel
// of a sequence and keeps the columns that the next row needs in registers. What precedes the rows lies in the
// sequence's source slot; the thread of the last run stores what follows into its target slot.
#pragma once

#include "activation.metal"

// Rows [begin, end) of a sequence of `rows`, which starts at row `first` of the batch.
struct RowRun {
    int first, rows, begin, end;
};

template <typename S>
METAL_FUNC RowRun row_run(S starts, int sequence, int run, int most) {
    int first = starts[sequence], rows = starts[sequence + 1] - first;
    return RowRun{first, rows, most * run, min(most * (run + 1), rows)};
}

// One channel: x (n, channels), weight (channels, TAPS), columns and stored (slots, TAPS - 1, channels), of which slot
// source is read, zeros if it is negative, and slot target is written -> y (n, channels).
template <int TAPS, typename X, typename W>
METAL_FUNC void short_conv(X x, W weight, const device float* columns, device float* stored, device float* y, RowRun r,
                           int source, int target, int channel, int channels) {
    float factors[TAPS], window[TAPS];
    UNROLL for (int j = 0; j < TAPS; j += 4) {
        float4 four = load_up_to_4(weight + size_t(channel) * TAPS + j, TAPS - j);
        UNROLL for (int i = 0; i < 4; i++) {
            if (j + i < TAPS) factors[j + i] = four[i];
        }
    }
    UNROLL for (int j = 0; j < TAPS - 1; j++) {
        int row = r.begin - (TAPS - 1) + j;
        window[j] = 0;
        if (row >= 0)
            window[j] = x[size_t(r.first + row) * channels + channel];
        else if (source >= 0)
            window[j] = columns[(size_t(source) * (TAPS - 1) + TAPS - 1 + row) * channels + channel];
    }
    for (int row = r.begin; row < r.end; row++) {
        size_t at = size_t(r.first + row) * channels + channel;
        window[TAPS - 1] = x[at];
        float sum = 0;
        UNROLL for (int j = 0; j < TAPS; j++) sum = fma(factors[j], window[j], sum);
        y[at] = activate<SILU>(sum);
        UNROLL for (int j = 0; j < TAPS - 1; j++) window[j] = window[j + 1];
    }
    if (r.end < r.rows) return;
    UNROLL for (int j = 0; j < TAPS - 1; j++) stored[(size_t(target) * (TAPS - 1) + j) * channels + channel] =
        window[j];
}
