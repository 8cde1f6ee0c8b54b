// Portable code for vectors of four lanes, which compilers map to any processor.
#pragma once

namespace {

constexpr const char* isa = "scalar";
constexpr int lanes = 4, registers = 16;
constexpr int panel = 4; // the tokens that a matrix product takes at once
template <int max_code> constexpr int dot_bias = 0;

} // namespace

#include "vectors.h"
#include "portable.h"
