// Compares two rows of logits: how far softmax(y) is from softmax(x); engine/reference/compare.py defines it.
#pragma once
#include <cmath>

#include "kernels.h"
#include "vector.h"

namespace {

using lltool::Comparison;
using lltool::Peak;

constexpr int64_t block_floats = 64 * lanes; // the most terms of a float sum, before it is added to a double

// The largest value of a row and its first place.
inline Peak find_peak(const float* x, int64_t n) {
  float top = -INFINITY;
  int64_t begin = 0; // of the block that holds it
  for (int64_t start = 0; start < n; start += block_floats) {
    const int64_t stop = start + block_floats < n ? start + block_floats : n;
    vf high = splat(-INFINITY);
    int64_t i = start;
    for (; i + lanes <= stop; i += lanes) high = max(high, load<vf>(x + i));
    float best = highest(high);
    for (; i < stop; ++i) best = x[i] > best ? x[i] : best;
    if (best > top) top = best, begin = start;
  }
  const int64_t end = begin + block_floats < n ? begin + block_floats : n;
  for (int64_t i = begin; i < end; ++i)
    if (x[i] == top) return {i, top, 0};
  return {0, top, 0}; // the row has no number
}

Comparison compare(const float* x, const float* y, int64_t n) {
  Comparison out{find_peak(x, n), find_peak(y, n), 0};
  const float top_x = out.x.value, top_y = out.y.value;
  double mass_x = 0, mass_y = 0, gap = 0;
  for (int64_t i = 0; i < n;) {
    vf p{}, q{}, g{};
    const auto add = [&](vf a, vf b) {
      const vf e = exp(a);
      p += e;
      q += exp(b);
      g += e * (a - b);
    };
    for (int k = 0; k < 64 && i + lanes <= n; ++k, i += lanes) add(load<vf>(x + i) - top_x, load<vf>(y + i) - top_y);
    if (i < n && i + lanes > n) { // lanes past the end get e^-100, which adds nothing
      float a[lanes], b[lanes];
      for (int j = 0; j < lanes; ++j) {
        a[j] = i + j < n ? x[i + j] - top_x : -100;
        b[j] = i + j < n ? y[i + j] - top_y : -100;
      }
      add(load<vf>(a), load<vf>(b));
      i = n;
    }
    mass_x += double(sum_of(p));
    mass_y += double(sum_of(q));
    gap += double(sum_of(g));
  }
  out.x.log_mass = std::log(mass_x);
  out.y.log_mass = std::log(mass_y);
  out.divergence = gap / mass_x + out.y.log_mass - out.x.log_mass;
  return out;
}

} // namespace
