// The two passes over all logits of a row that sampling needs (sample.cpp).
#pragma once
#include <cmath>

#include "kernels.h"
#include "vector.h"

namespace {

// Writes the largest value of each block of sample_block values; the last block may be shorter. Returns whether all
// values are numbers.
bool block_maxima(const float* x, int64_t n, float* out) {
  vi wrong{};
  for (int64_t start = 0; start < n; start += lltool::sample_block) {
    const int64_t stop = start + lltool::sample_block < n ? start + lltool::sample_block : n;
    vf high = splat(-INFINITY);
    int64_t i = start;
    for (; i + lanes <= stop; i += lanes) {
      const vf v = load<vf>(x + i);
      wrong |= (vi)(v != v);
      high = max(high, v);
    }
    float best = highest(high);
    for (; i < stop; ++i) {
      wrong[0] |= x[i] != x[i];
      best = x[i] > best ? x[i] : best;
    }
    out[start / lltool::sample_block] = best;
  }
  for (int i = 0; i < lanes; ++i)
    if (wrong[i]) return false;
  return true;
}

// Returns the sum of e^(factor * (x - top)), where top is the largest x.
double sum_exp(const float* x, int64_t n, float top, float factor) {
  double total = 0;
  int64_t i = 0;
  while (i + lanes <= n) { // float sums of at most 64 vectors, then double
    vf part{};
    for (int k = 0; k < 64 && i + lanes <= n; ++k, i += lanes) part += exp((load<vf>(x + i) - top) * factor);
    total += double(sum_of(part));
  }
  for (; i < n; ++i) total += std::exp(double(x[i] - top) * double(factor));
  return total;
}

} // namespace
