// While kernels run, a fault of theirs is a finding and the end of the run, not of the process.
#pragma once

#include <csignal>
#include <ctime>
#include <vector>

constexpr int ALARM = SIGVTALRM; // of Watchdog

class FaultsAreFindings {
public:
    FaultsAreFindings();
    ~FaultsAreFindings();

private:
    struct sigaction segment, bus, arithmetic, alarm; // who had these signals before
};

// Where an OS thread handles a fault: a kernel that has no stack left could not do it on its own.
class FaultStack {
public:
    FaultStack();
    ~FaultStack();

private:
    std::vector<char> memory;
    stack_t before;
};

// Ends what this OS thread runs after so many seconds of its time.
class Watchdog {
public:
    explicit Watchdog(double seconds);
    ~Watchdog();

private:
    timer_t timer;
};
