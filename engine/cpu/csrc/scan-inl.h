// Scans of state-space models; kernels.h defines their tasks.
#pragma once
#include "convolution-inl.h"

namespace {

// A vector of columns at a time: their states are independent.
void selective_scan(const lltool::SelectiveScanTask& task) {
  for (int64_t t = 0; t < task.tokens; ++t) {
    const float *b = task.b + t * task.states, *c = task.c + t * task.states;
    for (int64_t first = 0; first < task.columns; first += lanes) {
      const int64_t left = task.columns - first, at = t * task.stride + first;
      const vf x = load_some(task.x + at, left), dt = softplus(load_some(task.dt + at, left)), dx = dt * x;
      vf y = x * load_some(task.d + first, left);
      for (int64_t n = 0; n < task.states; ++n) {
        float* place = task.state + n * task.state_stride + first;
        const vf decay = exp2(dt * load<vf>(task.a + n * task.state_stride + first));
        const vf s = load<vf>(place) * decay + dx * b[n];
        store(place, s);
        y += s * c[n];
      }
      store_some(task.out + at, y, left);
    }
  }
}

// V vectors of a head's columns; the tail of the last one need not be columns of the head.
template <int V> void scan_columns(const lltool::ScanTask& task, int64_t t, int64_t first, float dt, float decay) {
  const int64_t left = task.columns - first;
  const float *b = task.b + t * task.bc_stride, *c = task.c + t * task.bc_stride, *from = task.x + t * task.x_stride + first;
  vf x[V], dx[V], y[V];
  for (int v = 0; v < V; ++v) {
    x[v] = load_some(from + v * lanes, left - v * lanes);
    dx[v] = x[v] * dt;
    y[v] = x[v] * task.d;
  }
  float* row = task.state + first;
  for (int64_t n = 0; n < task.states; ++n, row += task.state_stride)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const vf s = load<vf>(row + v * lanes) * decay + dx[v] * b[n];
      store(row + v * lanes, s);
      y[v] += s * c[n];
    }
  for (int v = 0; v < V; ++v) store_some(task.out + t * task.out_stride + first + v * lanes, y[v], left - v * lanes);
}

void scan(const lltool::ScanTask& task) {
  constexpr int together = 4; // vectors whose sums need not wait for each other
  float dt[lanes], decay[lanes];
  for (int64_t first = 0; first < task.tokens; first += lanes) {
    const int64_t count = std::min<int64_t>(lanes, task.tokens - first);
    for (int64_t i = 0; i < lanes; ++i) dt[i] = i < count ? task.dt[(first + i) * task.dt_stride] + task.dt_bias : 0.0f;
    const vf step = softplus(load<vf>(dt));
    store(dt, step);
    store(decay, exp(step * task.a));
    for (int64_t i = 0; i < count; ++i) {
      int64_t column = 0;
      for (; column + together * lanes <= task.columns; column += together * lanes)
        scan_columns<together>(task, first + i, column, dt[i], decay[i]);
      for (; column < task.columns; column += lanes) scan_columns<1>(task, first + i, column, dt[i], decay[i]);
    }
  }
}

} // namespace
