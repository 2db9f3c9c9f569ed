"""Lines of a kernel with a fault, and what checked mode says of each; and lines that look like it and are right."""

from __future__ import annotations

UNDEFINED = "undefined conversion: the integer type has no such number"
# (the fault in its line, what is found there); the rest of the kernel is right
FAULTS = {
    "write after read": ("int v = t[(i + 1) % 64]; t[i] = v;", "race: threadgroup memory"),
    "write after all have read": (
        "u[i] = t[0] + n; if (i == 63) t[0] = 5;",
        "race: threadgroup memory",
    ),
    "write after its simdgroup has read": (
        "u[i] = t[0]; simdgroup_barrier(mem_flags::mem_threadgroup); if (i == 40) t[0] = 5 + n;",
        "race: threadgroup memory",
    ),
    "two writes": ("t[i / 2] = i;", "race: threadgroup memory"),
    "read of another simdgroup's": (
        "t[i] = 1; y[i] = t[(i + 32) % 64];",
        "race: threadgroup memory",
    ),
    "read of a neighbour's": ("t[i] = 1; y[i] = t[i ^ 1];", "race: threadgroup memory"),
    "barrier of a simdgroup for two": (
        "t[i] = 1; simdgroup_barrier(mem_flags::mem_threadgroup); y[i] = t[i ^ 32];",
        "race: threadgroup memory",
    ),
    "barrier of other memory": (
        "t[i] = 1; threadgroup_barrier(mem_flags::mem_device); y[i] = t[i ^ 32];",
        "race: threadgroup memory",
    ),
    "shuffle as a barrier": (
        "t[i] = 1; y[i] = simd_sum(1) + t[i ^ 1];",
        "race: threadgroup memory",
    ),
    "atomic and not": (
        "if (i) atomic_fetch_add_explicit((threadgroup atomic_int*)t, 1, memory_order_relaxed); else t[0] = 5;",
        "race: threadgroup memory",
    ),
    "device memory in a threadgroup": ("y[i] = 1; y[i ^ 1] = 2;", "race: y"),
    "barrier of threadgroup memory for device memory": (
        "y[i] = 1; threadgroup_barrier(mem_flags::mem_threadgroup); y[i ^ 1] = 2;",
        "race: y",
    ),
    "device memory between threadgroups": (
        "threadgroup_barrier(mem_flags::mem_device); y[i + 64 * (1 - g)] = 3;",
        "race: y, between threadgroups",
    ),
    "read past the end": ("y[i] = a[128 + i];", "out of bounds: read of a, byte 512 of 512"),
    "read before the start": ("y[i] = a[int(i) - 1];", "out of bounds: read of a, byte -4 of 512"),
    "write past the end": ("z[1] = 1;", "out of bounds: write of z, byte 4 of 4"),
    "read far away": (
        "y[i] = a[long(b[0]) * 100000000000l];",
        "out of bounds: read far from any buffer",
    ),
    "wide read past the end": (
        "if (i == 63) { int4 v = *(const device packed_int4*)(a + 126); v *= v; y[i] = v.x + v.y + v.z + v.w; }",
        "out of bounds: read of a, byte 504 of 512",
    ),
    "struct past the end": (
        "if (i == 0) { Wide w = *(const device Wide*)(a + 120); y[i] = w.v[7 + n]; }",
        "out of bounds: read of a, byte 480 of 512",
    ),
    "constant past the end": ("y[i] = b[2];", "out of bounds: read of b, byte 8 of 8"),
    "threadgroup read past the end": ("y[i] = t[64 + n];", "out of bounds: index 64 of an array"),
    "threadgroup pointer past the end": (
        "threadgroup int* p = t + i; p[1] = 0;",
        "out of bounds: write of threadgroup memory",
    ),
    "threadgroup variable far past the end": (
        "threadgroup int* p = t + i % 8; p[100 + n] = 1;",
        "out of bounds: write of threadgroup memory",
    ),
    "threadgroup variable before the start": (
        "threadgroup int* p = u; y[i] = p[-16 - int(i)];",
        "out of bounds: read of threadgroup memory",
    ),
    "thread array past the end": (
        "int v[2] = {1, 2}; y[i] = v[2 + n];",
        "out of bounds: index 2 of an array",
    ),
    "write to an input": ("((device int*)a)[i + 64 * g] = 1;", "write to an input: a"),
    "threadgroup memory not written": ("y[i] = u[i];", "uninitialised read: threadgroup memory"),
    "threadgroup memory of the last": (
        "if (g == 0) u[i] = 1; y[i] = u[i];",
        "uninitialised read: threadgroup memory",
    ),
    "threadgroup memory added to": ("u[i] += 1;", "uninitialised read: threadgroup memory"),
    "atomic not set": (
        "atomic_fetch_add_explicit((threadgroup atomic_int*)u, 1, memory_order_relaxed);",
        "uninitialised read: threadgroup memory",
    ),
    "output not written": ("y[i + 64 * g] += 1;", "uninitialised read: y"),
    "barrier in a branch": (
        "if (i < 40) threadgroup_barrier(mem_flags::mem_none);",
        "divergent barrier: others wait elsewhere",
    ),
    "barrier after a return": (
        "if (i >= 40) return; threadgroup_barrier(mem_flags::mem_none);",
        "divergent barrier: 24 threads do not come",
    ),
    "one of two barriers": (
        "if (i < 40) threadgroup_barrier(mem_flags::mem_none); else threadgroup_barrier(mem_flags::mem_none);",
        "divergent barrier: others wait elsewhere",
    ),
    "simdgroup barrier in a branch": (
        "if (i % 2) simdgroup_barrier(mem_flags::mem_none);",
        "divergent simdgroup_barrier: 16 threads do not come",
    ),
    "one of two operations": (
        "int s; if (i % 2) s = simd_sum(1); else s = simd_max(1); y[i] = s;",
        "divergent simd operation: other threads wait for another one",
    ),
    "operation in a branch, and after": (
        "if (i % 2) y[i] = simd_sum(1); else y[i] = 2; y[i] += simd_sum(2);",
        "divergent simd operation: other threads wait for another one",
    ),
    "shuffle in a branch": (
        "if (i % 32 < 16) y[i] = simd_shuffle_down(int(i), 1);",
        "inactive lane: lane 16 takes no part",
    ),
    "broadcast in a branch": (
        "if (i % 32 < 16) y[i] = simd_broadcast(int(i), 20);",
        "inactive lane: lane 20 takes no part",
    ),
    "matrix in a branch": (
        "simdgroup_float8x8 m; if (i % 32 < 16) simdgroup_multiply(m, m, m);",
        "inactive lane: lane 16 takes no part",
    ),
    "matrix load in a branch": (
        "simdgroup_float8x8 m; if (i % 32 < 16) simdgroup_load(m, (const device float*)a);",
        "inactive lane: lane 16 takes no part",
    ),
    "misaligned": (
        "if (i == 0) y[0] = *(const device int*)((const device uchar*)a + 2 + n);",
        "misaligned: the address is 2 modulo 16",
    ),
    "misaligned vector": (
        "if (i == 0) { int4 v = *(const device int4*)(a + 1 + n); y[0] = v.x; }",
        "misaligned: the address is 4 modulo 16",
    ),
    "division by zero": ("y[i] = 1 / (int(i) - 3);", "division by zero: of integers"),
    "float beyond an integer": ("y[i] = int(3e9f + i);", UNDEFINED),
    "NaN to an integer": ("y[i] = int(as_type<float>(0x7fc00000 + n));", UNDEFINED),
    "negative float to unsigned": ("y[i] = uint(-1.0f - i);", UNDEFINED),
    "half beyond a char": ("y[i] = char(half(127.0h + half(i)));", UNDEFINED),
    "a vector of floats": ("y[i] = uchar4(float4(i, 1, 2, 256 + n)).x;", UNDEFINED),
    "sum beyond an integer": ("y[i] = 0x7fffffff + b[0];", "signed overflow: of a sum"),
    "difference beyond": ("y[i] = -0x7fffffff - b[0];", "signed overflow: of a difference"),
    "product beyond an integer": ("y[i] = b[0] * 0x60000000;", "signed overflow: of a product"),
    "negation beyond an integer": (
        "y[i] = -(n - 0x7fffffff - 1);",
        "signed overflow: of a negation",
    ),
    "shuffle past the lanes": (
        "y[i] = simd_shuffle(int(i), ushort(i % 32 + 1));",
        "no such lane: 32 is outside",
    ),
    "shuffle with bits past the lanes": (
        "y[i] = simd_shuffle_xor(int(i), ushort(n + 40));",
        "no such lane: 40 is outside",
    ),
    "broadcast past the lanes": (
        "y[i] = simd_broadcast(int(i), ushort(n + 32));",
        "no such lane: 32 is outside",
    ),
    "shuffle past a quad": (
        "y[i] = quad_shuffle(int(i), ushort(n + 4));",
        "no such lane: 36 is outside",
    ),
    "broadcast of several lanes": (
        "y[i] = simd_broadcast(int(i), ushort(i % 8));",
        "lanes differ: the second argument has to be the same for all threads",
    ),
    "shift by several numbers": (
        "y[i] = simd_shuffle_up(int(i), ushort(i % 2));",
        "lanes differ: the second argument has to be the same for all threads",
    ),
}
HEADER = "struct Wide { int v[16]; };"


def around(fault: str) -> str:
    """A kernel of two threadgroups with the fault in its sixth line."""
    return f"""
    threadgroup int t[64], u[64];
    uint i = thread_index_in_threadgroup, g = threadgroup_position_in_grid.x; int n = c;
    if (g * 64 + i == 0) z[0] = 1;
    t[i] = int(i); threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
    {fault}
    threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
    y[g * 64 + i] = t[i] + a[i] + b[1];
    """


RIGHT = {
    "after a simdgroup barrier": "t[i] = 1; simdgroup_barrier(mem_flags::mem_threadgroup); y[i + 64 * g] = t[i ^ 1];",
    "one for all": "if (i == 5) u[0] = 3; threadgroup_barrier(mem_flags::mem_threadgroup); y[i + 64 * g] = *u;",
    "its own, again and again": "for (int k = 0; k < 3; k++) { u[i] = k; t[i] += u[i]; } t[i] -= 3;",
    "a branch that all take": "if (g == 0) { y[i] = simd_sum(1); threadgroup_barrier(mem_flags::mem_none); }",
    "device memory": "y[g * 64 + i] = 1; threadgroup_barrier(mem_flags::mem_device); y[g * 64 + (i ^ 9)] = 2;",
    "unaligned packed loads": "y[g * 64 + i] = (*(const device packed_int4*)(a + 1 + i % 32)).w;",
    "a matrix of whole simdgroups": "simdgroup_float8x8 m(1), p; simdgroup_multiply(p, m, m);",
    "numbers that integers have": "y[g * 64 + i] = int(-2147483648.0f) + uchar(255.9f) + char(-128.9h) + n;",
    "a shift at the edge": "y[g * 64 + i] = simd_shuffle_down(int(i), 4);",
}
