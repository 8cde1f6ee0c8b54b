// Rotary positions: rotates each pair of a head by its own angle.
#pragma once
#include "vector.h"

namespace {

// `at` gives the place of the first element of pair i in x and out; the second is `other` places after it.
template <class At>
inline void rotate_rest(const float* x, const float* cosine, const float* sine, int64_t i, int64_t pairs, float* out, At at,
                        int64_t other) {
  for (; i < pairs; ++i) {
    const float a = x[at(i)], b = x[at(i) + other];
    out[at(i)] = a * cosine[i] - b * sine[i];
    out[at(i) + other] = a * sine[i] + b * cosine[i];
  }
}

void rotate_halves(const float* x, const float* cosine, const float* sine, int64_t pairs, float* out) {
  int64_t i = 0;
  for (; i + lanes <= pairs; i += lanes) {
    const vf a = load<vf>(x + i), b = load<vf>(x + pairs + i), c = load<vf>(cosine + i), s = load<vf>(sine + i);
    store(out + i, a * c - b * s);
    store(out + pairs + i, a * s + b * c);
  }
  rotate_rest(x, cosine, sine, i, pairs, out, [](int64_t k) { return k; }, pairs);
}

void rotate_pairs(const float* x, const float* cosine, const float* sine, int64_t pairs, float* out) {
  int64_t i = 0;
  for (; i + lanes <= pairs; i += lanes) { // arrays of fixed length, which compilers turn into shuffles
    float a[lanes], b[lanes], turned[2 * lanes];
    for (int j = 0; j < lanes; ++j) a[j] = x[2 * (i + j)], b[j] = x[2 * (i + j) + 1];
    for (int j = 0; j < lanes; ++j) {
      turned[2 * j] = a[j] * cosine[i + j] - b[j] * sine[i + j];
      turned[2 * j + 1] = a[j] * sine[i + j] + b[j] * cosine[i + j];
    }
    std::memcpy(out + 2 * i, turned, sizeof turned);
  }
  rotate_rest(x, cosine, sine, i, pairs, out, [](int64_t k) { return 2 * k; }, 1);
}

} // namespace
