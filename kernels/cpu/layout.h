// The layout of the structs of calls.h, as text for Python.
#pragma once

// See describe.h.
const char* layout();
