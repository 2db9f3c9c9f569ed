#include "faults.h"
#include "runtime.h"

#include <ucontext.h>

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
    if (signal == SIGFPE) run.report("division by zero", after, "of integers");
    // a vector instruction that needs 16 bytes of alignment faults without an address
    else if (info->si_addr == nullptr)
        run.report("misaligned", after, "the address of a vector");
    else
        run.report("out of bounds", after, "no memory there");
    worker->stop();
}
} // namespace

FaultsAreFindings::FaultsAreFindings() {
    struct sigaction ours = {};
    ours.sa_sigaction = on_fault;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER; // the handler is left without returning
    sigaction(SIGSEGV, &ours, &segment);
    sigaction(SIGBUS, &ours, &bus);
    sigaction(SIGFPE, &ours, &arithmetic);
}

FaultsAreFindings::~FaultsAreFindings() {
    sigaction(SIGSEGV, &segment, nullptr);
    sigaction(SIGBUS, &bus, nullptr);
    sigaction(SIGFPE, &arithmetic, nullptr);
}
