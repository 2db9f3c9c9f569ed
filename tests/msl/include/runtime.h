// What ../runtime does for kernels.
#pragma once

// nomerge: the return address tells the calls of a simdgroup's threads apart
extern "C" {
void msl_collective(ulong function, __private void* argument) __attribute__((convergent, nomerge));
// The same of a record of four pointers, which the runtime makes.
void msl_collective_of(ulong function, __private void*, __private const void*, __private const void*,
                       __private const void*) __attribute__((convergent, nomerge));
void msl_barrier(int flags) __attribute__((convergent, nomerge));
void msl_simdgroup_barrier(int flags) __attribute__((convergent, nomerge));
uint msl_lane(void) __attribute__((const));
__local void* msl_threadgroup(int index, ulong size, ulong align);
void msl_inactive(int lane);
void msl_no_lane(int lane);
void msl_lanes_differ(void);
void msl_atomic(ulong address, uint size, uint how);
}
