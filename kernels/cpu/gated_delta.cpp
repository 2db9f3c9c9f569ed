// The gated delta rule: each value head of each sequence is a part of the job, in which its state stays in the cache.
// A few rows go one by one, as the state's way through memory is what they cost; many rows as products, in chunks.
#include "calls.h"
#include "delta_chunk.h"
#include "delta_rows.h"
#include "shared.h"
#include "slots.h"

namespace {

constexpr int FEW = 3; // rows that go one by one

void run_head(const DeltaHead& h) {
    if (h.rows() > 0 && h.rows() <= FEW && h.a.size % LANES == 0) return run_rows(h);
    thread_local DeltaChunks chunks;
    chunks.run(h);
}

void gated_delta(const GatedDelta& a) {
    check_slots("gated_delta", a);
    share(a.rows() * a.heads * a.size * a.size >= SMALL, size_t(a.sequences) * a.heads,
          [&](int part) { run_head({a, part / a.heads, part % a.heads}); });
}

CALL(GatedDelta, gated_delta, F(qkv), F(a), F(b), F(decay), F(dt), F(starts), F(sources), F(targets), F(matrices),
     F(out), F(sequences), F(slots), F(heads), F(key_heads), F(size), F(is_tiled), F(eps))

} // namespace
