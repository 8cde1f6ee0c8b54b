// ggml's searches for the scale (and min) of a group with the least weighted squared error, one group in each lane.
// Source: make_qx_quants, make_qkx2_quants, make_qkx3_quants, make_q3_quants and make_qp_quants of ggml-quants.c.
#pragma once
#include "lanes.h"

namespace {

constexpr float all_zero = 1e-15f; // groups with no larger weight are encoded as zeros

// The weight of the largest magnitude, the first of those; `size` is its magnitude.
inline Floats find_extreme(const Floats* x, int n, Floats& size) {
  Floats extreme{};
  size = Floats{};
  for (int i = 0; i < n; ++i) {
    const Floats this_size = magnitude(x[i]);
    extreme = this_size > size ? x[i] : extreme;
    size = larger(this_size, size);
  }
  return extreme;
}

// Codes 0 to 2 * half - 1 for x = scale * (code - half), tried at 19 scales around the one that makes the largest weight
// -half. Returns the scale; a group of (almost) zeros has scale 0 and codes 0.
template <int n> Floats search_scale(const Floats* x, const Floats* weight, int half, Ints* codes) {
  Floats largest, weighted[n];
  const Floats extreme = find_extreme(x, n, largest);
  for (int i = 0; i < n; ++i) weighted[i] = weight[i] * x[i];
  const auto is_zero = largest < all_zero; // in all other lanes no product below exceeds half + 1

  Floats scale{}, best{}, best_inverse{};
  for (int step = -10; step <= 9; ++step) { // -10 stands for ggml's first try, which is accepted as it is
    if (step == 0) continue;
    const bool first = step == -10;
    const Floats inverse = -(first ? float(half) : float(half) + 0.1f * float(step)) / extreme;
    Floats sum_xl{}, sum_ll{};
    for (int i = 0; i < n; ++i) {
      const Floats l = round_small(inverse * x[i], -half, half - 1);
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

// The scales that search_scale_min tries make the range of the weights top + first, then steps more, up to `last` times.
struct Tries {
  float first, step;
  int last;
};
constexpr Tries important_tries{-0.9f, 0.05f, 36}; // of all formats with importance
enum class Error { squared, absolute };

// Codes 0 to top for x = scale * code + min, min <= 0. Returns the scale.
template <int n, Error error_is = Error::squared>
Floats search_scale_min(const Floats* x, const Floats* weight, int top, Tries tries, Ints* codes, Floats& min) {
  Floats low = x[0], high = x[0], sum_w = weight[0], sum_x = weight[0] * x[0];
  for (int i = 1; i < n; ++i) {
    low = smaller(x[i], low);
    high = larger(x[i], high);
    sum_w += weight[i];
    sum_x += weight[i] * x[i];
  }
  const Floats lowest = low;
  low = low > 0 ? Floats{} : low;
  const auto is_flat = high <= low;
  const Floats flat = low;

  const auto error_of = [&](int i, Floats l, Floats scale, Floats from) {
    const Floats difference = scale * l + from - x[i];
    return weight[i] * (error_is == Error::absolute ? magnitude(difference) : difference * difference);
  };
  // Calls use(i, code of x[i]). The second way does what ggml's rounding makes of huge and undefined products, too.
  const auto each_code = [&](Floats inverse, auto use) {
    const Floats ends = larger(magnitude(inverse * (high - low)), magnitude(inverse * (lowest - low)));
    if (all(ends < small_enough))
      for (int i = 0; i < n; ++i) use(i, round_small(inverse * (x[i] - low), 0, top));
    else
      for (int i = 0; i < n; ++i) use(i, to_floats(clamp(nearest(inverse * (x[i] - low)), 0, top)));
  };

  // What the best codes were made with. `low` moves with each better fit, and later tries start from it: so does ggml.
  Floats best_inverse = float(top) / (high - low), best_low = low;
  Floats scale = 1.0f / best_inverse, best_error{};
  each_code(best_inverse, [&](int i, Floats l) { best_error += error_of(i, l, scale, low); });
  for (int step = 0; step <= tries.last; ++step) {
    const Floats inverse = (tries.first + tries.step * float(step) + float(top)) / (high - low);
    Floats codes_tried[n], sum_l{}, sum_ll{}, sum_xl{};
    each_code(inverse, [&](int i, Floats l) {
      codes_tried[i] = l;
      const Floats weighted = weight[i] * l;
      sum_l += weighted;
      sum_ll += weighted * l;
      sum_xl += weighted * x[i];
    });
    const Floats determinant = sum_w * sum_ll - sum_l * sum_l;
    Floats this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    Floats this_min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
    const auto is_positive = this_min > 0;
    if (any(is_positive)) this_scale = is_positive ? sum_xl / sum_ll : this_scale;
    this_min = is_positive ? Floats{} : this_min;
    Floats error{};
    for (int i = 0; i < n; ++i) error += error_of(i, codes_tried[i], this_scale, this_min);
    const auto is_better = (determinant > 0) & (error < best_error);
    best_error = is_better ? error : best_error;
    best_inverse = is_better ? inverse : best_inverse;
    best_low = is_better ? low : best_low;
    scale = is_better ? this_scale : scale;
    low = is_better ? this_min : low;
  }
  for (int i = 0; i < n; ++i)
    codes[i] = is_flat ? Ints{} : clamp(nearest(best_inverse * (x[i] - best_low)), 0, top);
  min = is_flat ? flat : low;
  return is_flat ? Floats{} : scale;
}

// Moves one code after the other to where the least squares of all others put it, five times over. `sum_xl` and `sum_ll`
// belong to the codes. Signed codes are -half to half - 1; others 0 to top in bytes, so that a negative one wraps around.
// Returns the scale.
template <int n, bool is_signed>
Floats descend(const Floats* x, const Floats* weight, int low, int high, Floats sum_xl, Floats sum_ll, Ints* codes) {
  for (int pass = 0; pass < 5; ++pass) {
    Ints any_moved{};
    for (int i = 0; i < n; ++i) {
      const Floats w = weight[i], wx = w * x[i], old = to_floats(codes[i]);
      const Floats others_xl = sum_xl - wx * old, others_ll = sum_ll - w * old * old;
      const Ints code = clamp(nearest(x[i] * others_ll / others_xl), low, high);
      const Ints may_move = (others_xl > 0) & (code != codes[i]) & (is_signed ? Ints{} - 1 : others_ll > 0);
      if (!any(may_move)) continue; // mostly so after the first pass, which then waits for no sum
      const Floats l = to_floats(code), xl = others_xl + wx * l, ll = others_ll + w * l * l;
      const Ints moves = may_move & (is_signed ? ll > 0 : Ints{} - 1) & (xl * xl * sum_ll > sum_xl * sum_xl * ll);
      codes[i] = moves ? (is_signed ? code : code & 255) : codes[i];
      sum_xl = moves ? xl : sum_xl;
      sum_ll = moves ? ll : sum_ll;
      any_moved |= moves;
    }
    if (!any(any_moved)) break;
  }
  return sum_ll > 0 ? sum_xl / sum_ll : Floats{};
}

// Codes 0 to 2 * half - 1 for x = scale * (code - half) where a weight counts by its square. Returns the scale.
template <int n> Floats search_signed(const Floats* x, int half, Ints* codes) {
  Floats largest, weight[n], sum_xl{}, sum_ll{};
  const Floats inverse = -float(half) / find_extreme(x, n, largest);
  const auto is_zero = largest < all_zero;
  for (int i = 0; i < n; ++i) {
    const Floats l = round_small(inverse * x[i], -half, half - 1);
    weight[i] = x[i] * x[i];
    sum_xl += weight[i] * x[i] * l;
    sum_ll += weight[i] * l * l;
    codes[i] = to_ints(l);
  }
  const Floats scale = descend<n, true>(x, weight, -half, half - 1, sum_xl, sum_ll, codes);
  for (int i = 0; i < n; ++i) codes[i] = is_zero ? Ints{} : codes[i] + half;
  return is_zero ? Floats{} : scale;
}

// Codes 0 to top for x = scale * code, x (almost) never negative, tried at 9 scales. Returns the scale.
template <int n> Floats search_positive(const Floats* x, const Floats* weight, int top, Ints* codes) {
  Floats largest{};
  for (int i = 0; i < n; ++i) largest = larger(largest, x[i]);
  const auto is_zero = largest < all_zero;

  const auto at_most = [&](Ints code) { return code > top ? Ints{} + top : code; };
  Floats best_inverse{}, best_error{};
  for (int step = -5; step <= 4; ++step) { // -5 stands for ggml's first try, which does not stop at top
    if (step == 0) continue;
    const bool first = step == -5;
    const Floats inverse = (first ? float(top) : 0.1f * float(step) + float(top)) / largest, scale = 1.0f / inverse;
    Floats error{};
    for (int i = 0; i < n; ++i) {
      const Ints code = nearest(inverse * x[i]);
      const Floats difference = x[i] - scale * to_floats(first ? code & 255 : at_most(code));
      error += weight[i] * difference * difference;
    }
    const auto is_better = first ? Ints{} - 1 : error < best_error;
    best_error = is_better ? error : best_error;
    best_inverse = is_better ? inverse : best_inverse;
  }
  Floats sum_xl{}, sum_ll{};
  for (int i = 0; i < n; ++i) {
    const Ints code = at_most(nearest(best_inverse * x[i]));
    const Floats l = to_floats(code);
    sum_xl += weight[i] * x[i] * l;
    sum_ll += weight[i] * l * l;
    codes[i] = code & 255;
  }
  const Floats scale = descend<n, false>(x, weight, INT32_MIN, top, sum_xl, sum_ll, codes);
  for (int i = 0; i < n; ++i) codes[i] = is_zero ? Ints{} : codes[i];
  return is_zero ? Floats{} : scale;
}

} // namespace
