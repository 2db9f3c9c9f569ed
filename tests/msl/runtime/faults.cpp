#include "faults.h"
#include "runtime.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

namespace {
char* place(void* context) {
    const auto& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
    return reinterpret_cast<char*>(machine.gregs[REG_RIP]);
#else
    return reinterpret_cast<char*>(machine.pc);
#endif
}

void on_fault(int signal, siginfo_t* info, void* context) {
    if (!worker || !worker->current) { // not a kernel's: as if we had not been there
        std::signal(signal, SIG_DFL);
        return;
    }
    char* after = place(context) + 1; // as a return address would be
    Run& run = *worker->run;
    if (signal == SIGFPE)
        run.report("division by zero", after, "of integers");
    else if (worker->is_guard(info->si_addr))
        run.report("thread memory", after,
                   "a thread's variables take more than " + std::to_string(STACK >> 10) + " KiB");
    else if (info->si_addr == nullptr)
        // a vector instruction that needs 16 bytes of alignment
        run.report("misaligned", after, "the address of a vector");
    else
        run.report("out of bounds", after, "no memory there");
    worker->stop();
}

// Stops a kernel in its own text only: elsewhere it may hold a lock. The alarm comes again.
void on_alarm(int, siginfo_t*, void* context) {
    if (!worker || !worker->current) return;
    Run& run = *worker->run;
    char* at = place(context);
    if (at < run.library.first || at >= run.library.second) return;
    char seconds[16];
    std::snprintf(seconds, sizeof seconds, "%g", run.launch->seconds);
    run.report("endless loop", at + 1, std::string("no end within ") + seconds + " s");
    worker->stop();
}
} // namespace

FaultsAreFindings::FaultsAreFindings() {
    struct sigaction ours = {};
    ours.sa_sigaction = on_fault;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK; // the handler is left without returning
    sigaction(SIGSEGV, &ours, &segment);
    sigaction(SIGBUS, &ours, &bus);
    sigaction(SIGFPE, &ours, &arithmetic);
    ours.sa_sigaction = on_alarm;
    sigaction(ALARM, &ours, &alarm);
}

FaultsAreFindings::~FaultsAreFindings() {
    sigaction(SIGSEGV, &segment, nullptr);
    sigaction(SIGBUS, &bus, nullptr);
    sigaction(SIGFPE, &arithmetic, nullptr);
    sigaction(ALARM, &alarm, nullptr);
}

FaultStack::FaultStack() : memory(64 << 10) {
    stack_t ours = {};
    ours.ss_sp = memory.data();
    ours.ss_size = memory.size();
    if (sigaltstack(&ours, &before)) std::abort();
}

FaultStack::~FaultStack() { sigaltstack(&before, nullptr); }

Watchdog::Watchdog(double seconds) {
    struct sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = ALARM;
    event._sigev_un._tid = int(syscall(SYS_gettid));
    double whole = std::floor(seconds);
    itimerspec when = {};
    when.it_value = {time_t(whole), long((seconds - whole) * 1e9)};
    when.it_interval.tv_nsec = 1000000;
    if (timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer) || timer_settime(timer, 0, &when, nullptr)) std::abort();
}

Watchdog::~Watchdog() { timer_delete(timer); }
