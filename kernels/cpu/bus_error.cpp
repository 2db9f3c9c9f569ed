#include "bus_error.h"

#include <signal.h>
#include <unistd.h>

namespace {

constexpr char MESSAGE[] = "error: a mapped file was cut short while in use, or its disk cannot be read (SIGBUS)\n";

// Only async-signal-safe calls: any lock may be held.
void handle(int signal, siginfo_t* info, void*) {
    if (info->si_code == BUS_ADRERR) {
        ssize_t written = write(STDERR_FILENO, MESSAGE, sizeof(MESSAGE) - 1);
        _exit(written < 0 ? 2 : 1);
    }
    struct sigaction fallback = {};
    fallback.sa_handler = SIG_DFL;
    sigaction(signal, &fallback, nullptr); // the instruction runs again, and ends the process
}

} // namespace

void explain_bus_errors() {
    struct sigaction before = {}, ours = {};
    if (sigaction(SIGBUS, nullptr, &before) != 0) return;
    bool is_free = !(before.sa_flags & SA_SIGINFO) && before.sa_handler == SIG_DFL;
    if (!is_free) return;
    ours.sa_sigaction = handle;
    ours.sa_flags = SA_SIGINFO;
    sigaction(SIGBUS, &ours, nullptr);
}
