// Causal convolutions of columns; kernels.h defines the task.
#pragma once
#include "vector.h"

namespace {

// The first `count` floats at p, at most a vector of them; the other lanes are zero.
inline vf load_some(const float* p, int64_t count) {
  if (count >= lanes) return load<vf>(p);
  float some[lanes] = {};
  std::memcpy(some, p, size_t(count) * 4);
  return load<vf>(some);
}
inline void store_some(float* p, vf v, int64_t count) {
  if (count >= lanes) return store(p, v);
  float some[lanes];
  store(some, v);
  std::memcpy(p, some, size_t(count) * 4);
}

void convolve(const lltool::ConvolutionTask& task) {
  const int64_t past = task.taps - 1, n = task.columns;
  const auto input = [&](int64_t t) { return t < 0 ? task.state + (t + past) * task.stride : task.x + t * task.stride; };
  for (int64_t t = 0; t < task.tokens; ++t)
    for (int64_t c = 0; c < n; c += lanes) {
      vf sum = task.bias ? load_some(task.bias + c, n - c) : vf{};
      for (int64_t k = 0; k < task.taps; ++k) sum += load_some(task.weight + k * task.stride + c, n - c) * load_some(input(t - past + k) + c, n - c);
      if (task.silu) sum = sum / (exp(-sum) + 1.0f);
      store_some(task.out + t * task.stride + c, sum, n - c);
    }
  for (int64_t k = 0; k < past; ++k) { // in order, because a row of the state may become an earlier one
    const float* from = input(task.tokens - past + k);
    float* to = task.state + k * task.stride;
    if (from != to) std::memcpy(to, from, size_t(n) * 4);
  }
}

} // namespace
