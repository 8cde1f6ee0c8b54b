// Products with the thin factors of adapters; kernels.h defines the tasks. How the terms of a row are added depends on
// no other row.
#pragma once
#include "convolution-inl.h"

namespace {

// Four sums a column, so that additions need not wait for each other.
template <int T> void low_rank_down_rows(const lltool::LowRankDown& task, const float* const* x, float* out) {
  constexpr int sums = 4;
  for (int64_t c = 0; c < task.rank; c += lanes) {
    vf acc[T][sums] = {};
    const float* down = task.down + c;
    int64_t k = 0;
    for (; k + sums <= task.columns; k += sums)
#pragma GCC unroll 4
      for (int i = 0; i < sums; ++i) {
        const vf w = load<vf>(down + (k + i) * task.rank);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) acc[t][i] += w * x[t][k + i];
      }
    for (; k < task.columns; ++k) {
      const vf w = load<vf>(down + k * task.rank);
      for (int t = 0; t < T; ++t) acc[t][0] += w * x[t][k];
    }
    for (int t = 0; t < T; ++t) store(out + t * task.rank + c, (acc[t][0] + acc[t][1]) + (acc[t][2] + acc[t][3]));
  }
}

template <int T> void low_rank_up_rows(const lltool::LowRankUp& task, const float* h, float* const* out) {
  for (int64_t c = task.begin; c < task.end; c += lanes) {
    const int64_t left = task.end - c;
    vf acc[T] = {};
    for (int64_t r = 0; r < task.rank; ++r) {
      const vf w = load_some(task.up + r * task.columns + c, left);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) acc[t] += w * h[t * task.stride + r];
    }
    for (int t = 0; t < T; ++t) store_some(out[t] + c, load_some(out[t] + c, left) + acc[t], left);
  }
}

void low_rank_down(const lltool::LowRankDown& task, int rows, const float* const* x, float* out) {
  constexpr int most = registers >= 32 ? 4 : 2;
  int t = 0;
  for (; t + most <= rows; t += most) low_rank_down_rows<most>(task, x + t, out + t * task.rank);
  for (; t < rows; ++t) low_rank_down_rows<1>(task, x + t, out + t * task.rank);
}

void low_rank_up(const lltool::LowRankUp& task, int rows, const float* h, float* const* out) {
  int t = 0;
  for (; t + 4 <= rows; t += 4) low_rank_up_rows<4>(task, h + t * task.stride, out + t);
  for (; t < rows; ++t) low_rank_up_rows<1>(task, h + t * task.stride, out + t);
}

} // namespace
