// Where a thread is, as the kernel's attributes name it: read by the runtime (C++) and by kernels (MSL).
// The including file defines VECTOR and SCALAR, three and one unsigned ints.
#pragma once

struct msl_position {
    VECTOR dispatch_threads_per_threadgroup, grid_origin, grid_size, thread_position_in_grid;
    VECTOR thread_position_in_threadgroup, threadgroup_position_in_grid, threadgroups_per_grid;
    VECTOR threads_per_grid, threads_per_threadgroup;
    SCALAR dispatch_quadgroups_per_threadgroup, dispatch_simdgroups_per_threadgroup;
    SCALAR quadgroup_index_in_threadgroup, quadgroups_per_threadgroup;
    SCALAR simdgroup_index_in_threadgroup, simdgroups_per_threadgroup;
    SCALAR thread_execution_width, threads_per_simdgroup;
    SCALAR thread_index_in_quadgroup, thread_index_in_simdgroup, thread_index_in_threadgroup;
};
