// Products with the thin factors of adapters; kernels.h defines the tasks. How the terms of a row are added depends on
// no other row.
#pragma once
#include "convolution-inl.h"

namespace {

inline vf widen(const float* p) { return load<vf>(p); }

// The first `count` weights at p, at most a vector of them; the other lanes are zero.
template <class W> inline vf widen_some(const W* p, int64_t count) {
  if (count >= lanes) return widen(p);
  W some[lanes] = {};
  std::memcpy(some, p, size_t(count) * sizeof(W));
  return widen(some);
}

// Four sums a column, so that additions need not wait for each other.
template <int T, class W> void low_rank_down_rows(const lltool::LowRankDown& task, const float* const* x, float* out) {
  constexpr int sums = 4;
  for (int64_t c = 0; c < task.rank; c += lanes) {
    vf acc[T][sums] = {};
    const W* down = reinterpret_cast<const W*>(task.down) + c;
    int64_t k = 0;
    for (; k + sums <= task.columns; k += sums)
#pragma GCC unroll 4
      for (int i = 0; i < sums; ++i) {
        const vf w = widen(down + (k + i) * task.rank);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) acc[t][i] += w * x[t][k + i];
      }
    for (; k < task.columns; ++k) {
      const vf w = widen(down + k * task.rank);
      for (int t = 0; t < T; ++t) acc[t][0] += w * x[t][k];
    }
    for (int t = 0; t < T; ++t) store(out + t * task.rank + c, (acc[t][0] + acc[t][1]) + (acc[t][2] + acc[t][3]));
  }
}

template <int T, class W> void low_rank_up_rows(const lltool::LowRankUp& task, const float* h, float* const* out) {
  const W* up = reinterpret_cast<const W*>(task.up);
  for (int64_t c = task.begin; c < task.end; c += lanes) {
    const int64_t left = task.end - c;
    vf acc[T] = {};
    for (int64_t r = 0; r < task.rank; ++r) {
      const vf w = widen_some(up + r * task.columns + c, left);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) acc[t] += w * h[t * task.stride + r];
    }
    for (int t = 0; t < T; ++t) store_some(out[t] + c, load_some(out[t] + c, left) + acc[t], left);
  }
}

template <class W> void low_rank_down_of(const lltool::LowRankDown& task, int rows, const float* const* x, float* out) {
  constexpr int most = registers >= 32 ? 4 : 2;
  int t = 0;
  for (; t + most <= rows; t += most) low_rank_down_rows<most, W>(task, x + t, out + t * task.rank);
  for (; t < rows; ++t) low_rank_down_rows<1, W>(task, x + t, out + t * task.rank);
}

template <class W> void low_rank_up_of(const lltool::LowRankUp& task, int rows, const float* h, float* const* out) {
  int t = 0;
  for (; t + 4 <= rows; t += 4) low_rank_up_rows<4, W>(task, h + t * task.stride, out + t);
  for (; t < rows; ++t) low_rank_up_rows<1, W>(task, h + t * task.stride, out + t);
}

void low_rank_down(const lltool::LowRankDown& task, int rows, const float* const* x, float* out) {
  if (task.type == lltool::FactorType::f32) return low_rank_down_of<float>(task, rows, x, out);
  if (task.type == lltool::FactorType::f16) return low_rank_down_of<Float16>(task, rows, x, out);
  low_rank_down_of<Brain16>(task, rows, x, out);
}

void low_rank_up(const lltool::LowRankUp& task, int rows, const float* h, float* const* out) {
  if (task.type == lltool::FactorType::f32) return low_rank_up_of<float>(task, rows, h, out);
  if (task.type == lltool::FactorType::f16) return low_rank_up_of<Float16>(task, rows, h, out);
  low_rank_up_of<Brain16>(task, rows, h, out);
}

} // namespace
