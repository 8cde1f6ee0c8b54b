// ggml's searches for the scale (and min) of a group that has the least weighted squared error, with one group per lane.
// Source: make_qx_quants, make_qkx2_quants, make_qkx3_quants, make_q3_quants and make_qp_quants of ggml-quants.c.
#pragma once
#include "lanes.h"

namespace {

constexpr float all_zero = 1e-15f; // groups without larger weights are encoded as zeros

// The first weight of the largest magnitude; `size` is its magnitude.
inline vf find_extreme(const vf* x, int n, vf& size) {
  vf extreme{};
  size = vf{};
  for (int i = 0; i < n; ++i) {
    const vf this_size = abs(x[i]);
    extreme = this_size > size ? x[i] : extreme;
    size = larger(this_size, size);
  }
  return extreme;
}

// Codes 0 to 2 * half - 1 for x = scale * (code - half), tried at 19 scales around the one that makes the largest weight
// -half. Returns the scale; a group of (almost) zeros has scale 0 and codes 0.
template <int n> vf search_scale(const vf* x, const vf* weight, int half, vi* codes) {
  vf largest, weighted[n];
  const vf extreme = find_extreme(x, n, largest);
  for (int i = 0; i < n; ++i) weighted[i] = weight[i] * x[i];
  const auto is_zero = largest < all_zero; // in all other lanes, no product below exceeds half + 1

  vf scale{}, best{}, best_inverse{};
  for (int step = -10; step <= 9; ++step) { // -10 stands for ggml's first try, which is always accepted
    if (step == 0) continue;
    const bool first = step == -10;
    const vf inverse = -(first ? float(half) : float(half) + 0.1f * float(step)) / extreme;
    vf sum_xl{}, sum_ll{};
    for (int i = 0; i < n; ++i) {
      const vf l = round_small(inverse * x[i], -half, half - 1);
      sum_xl += weighted[i] * l;
      sum_ll += weight[i] * l * l;
    }
    if (first) {
      scale = sum_ll != 0 ? sum_xl / sum_ll : vf{};
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
    codes[i] = is_zero ? vi{} : clamp(nearest(best_inverse * x[i]), -half, half - 1) + half;
  return is_zero ? vf{} : scale;
}

// The scales that search_scale_min tries: they map the range of the weights to top + first, and then to up to `last` steps more.
struct Tries {
  float first, step;
  int last;
};
constexpr Tries important_tries{-0.9f, 0.05f, 36}; // for all formats with importance
enum class Error { squared, absolute };

// Codes 0 to top for x = scale * code + min, min <= 0. Returns the scale.
template <int n, Error error_is = Error::squared>
vf search_scale_min(const vf* x, const vf* weight, int top, Tries tries, vi* codes, vf& min) {
  vf low = x[0], high = x[0], sum_w = weight[0], sum_x = weight[0] * x[0];
  for (int i = 1; i < n; ++i) {
    low = smaller(x[i], low);
    high = larger(x[i], high);
    sum_w += weight[i];
    sum_x += weight[i] * x[i];
  }
  const vf lowest = low;
  low = low > 0 ? vf{} : low;
  const auto is_flat = high <= low;
  const vf flat = low;

  const auto error_of = [&](int i, vf l, vf scale, vf from) {
    const vf difference = scale * l + from - x[i];
    return weight[i] * (error_is == Error::absolute ? abs(difference) : difference * difference);
  };
  // Calls use(i, code of x[i]). The second branch also reproduces ggml's rounding of huge and undefined products.
  const auto each_code = [&](vf inverse, auto use) {
    const vf ends = larger(abs(inverse * (high - low)), abs(inverse * (lowest - low)));
    if (all(ends < small_enough))
      for (int i = 0; i < n; ++i) use(i, round_small(inverse * (x[i] - low), 0, top));
    else
      for (int i = 0; i < n; ++i) use(i, to_float(clamp(nearest(inverse * (x[i] - low)), 0, top)));
  };

  // The parameters of the best codes. `low` changes with each better fit, and later tries start from it, as in ggml.
  vf best_inverse = float(top) / (high - low), best_low = low;
  vf scale = 1.0f / best_inverse, best_error{};
  each_code(best_inverse, [&](int i, vf l) { best_error += error_of(i, l, scale, low); });
  for (int step = 0; step <= tries.last; ++step) {
    const vf inverse = (tries.first + tries.step * float(step) + float(top)) / (high - low);
    vf codes_tried[n], sum_l{}, sum_ll{}, sum_xl{};
    each_code(inverse, [&](int i, vf l) {
      codes_tried[i] = l;
      const vf weighted = weight[i] * l;
      sum_l += weighted;
      sum_ll += weighted * l;
      sum_xl += weighted * x[i];
    });
    const vf determinant = sum_w * sum_ll - sum_l * sum_l;
    vf this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    vf this_min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
    const auto is_positive = this_min > 0;
    if (any(is_positive)) this_scale = is_positive ? sum_xl / sum_ll : this_scale;
    this_min = is_positive ? vf{} : this_min;
    vf error{};
    for (int i = 0; i < n; ++i) error += error_of(i, codes_tried[i], this_scale, this_min);
    const auto is_better = (determinant > 0) & (error < best_error);
    best_error = is_better ? error : best_error;
    best_inverse = is_better ? inverse : best_inverse;
    best_low = is_better ? low : best_low;
    scale = is_better ? this_scale : scale;
    low = is_better ? this_min : low;
  }
  for (int i = 0; i < n; ++i)
    codes[i] = is_flat ? vi{} : clamp(nearest(best_inverse * (x[i] - best_low)), 0, top);
  min = is_flat ? flat : low;
  return is_flat ? vf{} : scale;
}

// Sets one code after the other to its least-squares value given all others, in five passes. `sum_xl` and `sum_ll` are the
// sums for the codes. Signed codes are -half to half - 1; others are bytes from 0 to top, so that negative ones wrap around.
// Returns the scale.
template <int n, bool is_signed>
vf descend(const vf* x, const vf* weight, int low, int high, vf sum_xl, vf sum_ll, vi* codes) {
  for (int pass = 0; pass < 5; ++pass) {
    vi any_moved{};
    for (int i = 0; i < n; ++i) {
      const vf w = weight[i], wx = w * x[i], old = to_float(codes[i]);
      const vf others_xl = sum_xl - wx * old, others_ll = sum_ll - w * old * old;
      const vi code = clamp(nearest(x[i] * others_ll / others_xl), low, high);
      const vi may_move = (others_xl > 0) & (code != codes[i]) & (is_signed ? vi{} - 1 : others_ll > 0);
      if (!any(may_move)) continue; // usual after the first pass; it avoids waiting for the sums
      const vf l = to_float(code), xl = others_xl + wx * l, ll = others_ll + w * l * l;
      const vi moves = may_move & (is_signed ? ll > 0 : vi{} - 1) & (xl * xl * sum_ll > sum_xl * sum_xl * ll);
      codes[i] = moves ? (is_signed ? code : code & 255) : codes[i];
      sum_xl = moves ? xl : sum_xl;
      sum_ll = moves ? ll : sum_ll;
      any_moved |= moves;
    }
    if (!any(any_moved)) break;
  }
  return sum_ll > 0 ? sum_xl / sum_ll : vf{};
}

// Codes 0 to 2 * half - 1 for x = scale * (code - half), with errors weighted by the square of x. Returns the scale.
template <int n> vf search_signed(const vf* x, int half, vi* codes) {
  vf largest, weight[n], sum_xl{}, sum_ll{};
  const vf inverse = -float(half) / find_extreme(x, n, largest);
  const auto is_zero = largest < all_zero;
  for (int i = 0; i < n; ++i) {
    const vf l = round_small(inverse * x[i], -half, half - 1);
    weight[i] = x[i] * x[i];
    sum_xl += weight[i] * x[i] * l;
    sum_ll += weight[i] * l * l;
    codes[i] = to_ints(l);
  }
  const vf scale = descend<n, true>(x, weight, -half, half - 1, sum_xl, sum_ll, codes);
  for (int i = 0; i < n; ++i) codes[i] = is_zero ? vi{} : codes[i] + half;
  return is_zero ? vf{} : scale;
}

// Codes 0 to top for x = scale * code, x (almost) never negative, tried at 9 scales. Returns the scale.
template <int n> vf search_positive(const vf* x, const vf* weight, int top, vi* codes) {
  vf largest{};
  for (int i = 0; i < n; ++i) largest = larger(largest, x[i]);
  const auto is_zero = largest < all_zero;

  const auto at_most = [&](vi code) { return code > top ? vi{} + top : code; };
  vf best_inverse{}, best_error{};
  for (int step = -5; step <= 4; ++step) { // -5 stands for ggml's first try, which is not clamped to top
    if (step == 0) continue;
    const bool first = step == -5;
    const vf inverse = (first ? float(top) : 0.1f * float(step) + float(top)) / largest, scale = 1.0f / inverse;
    vf error{};
    for (int i = 0; i < n; ++i) {
      const vi code = nearest(inverse * x[i]);
      const vf difference = x[i] - scale * to_float(first ? code & 255 : at_most(code));
      error += weight[i] * difference * difference;
    }
    const auto is_better = first ? vi{} - 1 : error < best_error;
    best_error = is_better ? error : best_error;
    best_inverse = is_better ? inverse : best_inverse;
  }
  vf sum_xl{}, sum_ll{};
  for (int i = 0; i < n; ++i) {
    const vi code = at_most(nearest(best_inverse * x[i]));
    const vf l = to_float(code);
    sum_xl += weight[i] * x[i] * l;
    sum_ll += weight[i] * l * l;
    codes[i] = code & 255;
  }
  const vf scale = descend<n, false>(x, weight, INT32_MIN, top, sum_xl, sum_ll, codes);
  for (int i = 0; i < n; ++i) codes[i] = is_zero ? vi{} : codes[i];
  return is_zero ? vf{} : scale;
}

} // namespace
