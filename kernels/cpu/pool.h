// Worker threads that share out the parts of one job at a time.
#pragma once

#include <functional>

// Threads in use, the caller's included. `set` waits for a running job; n < 1 is taken as 1.
int pool_threads();
void pool_set_threads(int n);

// Call part(i) once for each i in [0, parts), on all threads; returns when all are done. Parts are
// taken in order as threads get free. Calls from several threads queue up.
void pool_run(int parts, const std::function<void(int)>& part);

// What threads call again and again while they spin for work; it must return within a microsecond.
void pool_when_idle(void (*work)());
