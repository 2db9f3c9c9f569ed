// Fetching the weights of the next product while nothing is computed. For every token the products of
// a model come in the same order; between two of them Python prepares the second, and memory would
// stand idle. Threads that wait for work use that time.
#pragma once

#include "linear.h"

// A product with these weights begins; what the calling thread did before it is remembered as leading
// to it. Of the weights, `count` will be read whole: none of a stack of experts, of which a token needs
// others than the one before.
void ahead_begin(const Weight* w, int count, int k);

// The product is done: what followed it the last time may be fetched.
void ahead_end();

// Fetch a few lines. For pool threads that wait; returns soon.
void ahead_fetch();
