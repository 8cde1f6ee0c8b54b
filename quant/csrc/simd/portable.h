// The vocabulary that kernels are written with, for any target. An instruction set includes it last: all functions are
// templates, so that a function which the set defines itself, for its own types, is preferred.
#pragma once
#include "portable/half.h"
#include "portable/lanes.h"
#include "portable/bytes.h"
#include "portable/products.h"
