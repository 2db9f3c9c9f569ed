// The layout of the structs of calls.h, as text for Python.
#pragma once

// A line for each struct and each of its fields: name, kind, offset, size. Names are "Struct" and "Struct.field",
// kinds s (struct), p (pointer), f (floating point), i (integer).
const char* layout();
