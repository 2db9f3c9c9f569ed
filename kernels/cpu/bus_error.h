// A mapped file that is cut short while in use: reading past its new end is a SIGBUS, in whatever thread.
#pragma once

// From now on such a signal ends the process with a line on stderr and status 1. A handler that the program has already
// stays in place.
void explain_bus_errors();
