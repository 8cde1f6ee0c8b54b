// ggml's searches for the scale (and min) of a group with the least weighted squared error, one group in each lane.
// Source: make_qx_quants and make_qkx3_quants of ggml-quants.c.
#pragma once
#include "lanes.h"

namespace {

// Codes 0 to 2 * half - 1 for x = scale * (code - half), tried at 19 scales around the one that makes the largest weight
// -half. Returns the scale; a group of (almost) zeros has scale 0 and codes 0.
template <int n> Floats search_scale(const Floats* x, const Floats* weight, int half, Ints* codes) {
  Floats largest{}, extreme{}, weighted[n];
  for (int i = 0; i < n; ++i) {
    const Floats size = magnitude(x[i]);
    extreme = size > largest ? x[i] : extreme;
    largest = size > largest ? size : largest;
    weighted[i] = weight[i] * x[i];
  }
  const auto is_zero = largest < 1e-15f;

  Floats scale{}, best{}, best_inverse{};
  for (int step = -10; step <= 9; ++step) { // -10 stands for ggml's first try, which is accepted as it is
    if (step == 0) continue;
    const bool first = step == -10;
    const Floats inverse = -(first ? float(half) : float(half) + 0.1f * float(step)) / extreme;
    Floats sum_xl{}, sum_ll{};
    for (int i = 0; i < n; ++i) {
      const Floats l = to_floats(clamp(nearest(inverse * x[i]), -half, half - 1));
      sum_xl += weighted[i] * l;
      sum_ll += weight[i] * l * l;
    }
    if (first) {
      scale = sum_ll != 0 ? sum_xl / sum_ll : Floats{};
      best = scale * sum_xl;
      best_inverse = inverse;
      continue;
    }
    const auto is_better = (sum_ll > 0) & (sum_xl * sum_xl > best * sum_ll);
    scale = is_better ? sum_xl / sum_ll : scale;
    best = is_better ? scale * sum_xl : best;
    best_inverse = is_better ? inverse : best_inverse;
  }
  for (int i = 0; i < n; ++i)
    codes[i] = is_zero ? Ints{} : clamp(nearest(best_inverse * x[i]), -half, half - 1) + half;
  return is_zero ? Floats{} : scale;
}

// Codes 0 to top for x = scale * code + min, min <= 0, tried at 37 scales. Returns the scale.
template <int n> Floats search_scale_min(const Floats* x, const Floats* weight, int top, Ints* codes, Floats& min) {
  Floats low = x[0], high = x[0], sum_w = weight[0], sum_x = weight[0] * x[0];
  for (int i = 1; i < n; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
    sum_w += weight[i];
    sum_x += weight[i] * x[i];
  }
  low = low > 0 ? Floats{} : low;
  const auto is_flat = high <= low;
  const Floats flat = low;

  const auto code = [&](int i, Floats inverse, Floats from) {
    return clamp(nearest(inverse * (x[i] - from)), 0, top);
  };
  // What the best codes were made with. `low` moves with each better fit, and later tries start from it: so does ggml.
  Floats best_inverse = float(top) / (high - low), best_low = low;
  Floats scale = 1.0f / best_inverse, best_error{};
  for (int i = 0; i < n; ++i) {
    const Floats difference = scale * to_floats(code(i, best_inverse, low)) + low - x[i];
    best_error += weight[i] * (difference * difference);
  }
  for (int step = 0; step <= 36; ++step) {
    const Floats inverse = (-0.9f + 0.05f * float(step) + float(top)) / (high - low);
    Floats l[n], sum_l{}, sum_ll{}, sum_xl{};
    for (int i = 0; i < n; ++i) {
      l[i] = to_floats(code(i, inverse, low));
      const Floats weighted = weight[i] * l[i];
      sum_l += weighted;
      sum_ll += weighted * l[i];
      sum_xl += weighted * x[i];
    }
    const Floats determinant = sum_w * sum_ll - sum_l * sum_l;
    Floats this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    Floats this_min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
    const auto is_positive = this_min > 0;
    this_scale = is_positive ? sum_xl / sum_ll : this_scale;
    this_min = is_positive ? Floats{} : this_min;
    Floats error{};
    for (int i = 0; i < n; ++i) {
      const Floats difference = this_scale * l[i] + this_min - x[i];
      error += weight[i] * (difference * difference);
    }
    const auto is_better = (determinant > 0) & (error < best_error);
    best_error = is_better ? error : best_error;
    best_inverse = is_better ? inverse : best_inverse;
    best_low = is_better ? low : best_low;
    scale = is_better ? this_scale : scale;
    low = is_better ? this_min : low;
  }
  for (int i = 0; i < n; ++i) codes[i] = is_flat ? Ints{} : code(i, best_inverse, best_low);
  min = is_flat ? flat : low;
  return is_flat ? Floats{} : scale;
}

} // namespace
