// The Walsh-Hadamard transform: it spreads each element evenly over its block, so that a large one no longer sets the
// scale for rounding its neighbours. It is orthonormal, which preserves dot products, and is its own inverse.
#pragma once
#include <cmath>
#include <utility>

#include "kernels.h"
#include "vector.h"

namespace {

// Transforms x in place, in blocks of a power of two from 32 on that divides dim. Every stage
// interleaves sums and differences of the two halves, so that the additions are the same for any number of lanes.
inline void hadamard(float* x, int64_t dim, int64_t block) {
  const int64_t half = block / 2;
  const float norm = 1.0f / std::sqrt(float(block));
  float spare[lltool::max_head_dim];
  for (const float* end = x + dim; x < end; x += block) {
    float *from = x, *to = spare;
    for (int64_t stage = 1; stage < block; stage *= 2, std::swap(from, to))
      for (int64_t i = 0; i < half; i += lanes) {
        const vf a = load<vf>(from + i), b = load<vf>(from + half + i);
        const vi sum = (vi)(a + b), difference = (vi)(a - b);
        store(to + 2 * i, zip_low(sum, difference));
        store(to + 2 * i + lanes, zip_high(sum, difference));
      }
    for (int64_t i = 0; i < block; i += lanes) store(x + i, load<vf>(from + i) * norm);
  }
}

} // namespace
