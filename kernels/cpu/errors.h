// What a call may throw besides the standard's exceptions.
#pragma once

#include <stdexcept>

// A file could not be read. In Python it is an OSError.
struct ReadError : std::runtime_error {
    using std::runtime_error::runtime_error;
};
