// While kernels run, a fault of theirs is a finding and the end of the run, not of the process.
#pragma once

#include <csignal>

class FaultsAreFindings {
public:
    FaultsAreFindings();
    ~FaultsAreFindings();

private:
    struct sigaction segment, bus, arithmetic; // who had these signals before
};
