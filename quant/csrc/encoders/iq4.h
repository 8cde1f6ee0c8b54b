// Encoders of IQ4_NL and IQ4_XS, whose codes index 16 values. Source: quantize_row_iq4_nl_impl of ggml-quants.c.
#pragma once
#include "../formats/fp4.h"
#include "encoder.h"
#include "search.h"

namespace {

// The nearest of the 16 values, from tables. Each bucket of width 9 contains at most one midpoint of two neighbouring values;
// the tables hold the values below it and from it on. ggml compares distances, which are exact near a midpoint.
struct NearestValue {
  static constexpr float width = 9;
  float midpoint[32]{}, below[32]{}, from[32]{}, code[32]{}; // code + 1 is the code of `from`

  static constexpr float value(int code) { return float(iq4_codes[code]) - 127; }
  constexpr NearestValue() {
    for (int bucket = -16; bucket < 16; ++bucket) {
      const float low = width * (float(bucket) - 0.5f) - 0.01f, high = width * (float(bucket) + 0.5f) + 0.01f;
      const int entry = bucket & 31;
      int k = 0; // the number of midpoints below the bucket
      while (k < 15 && value(k) + value(k + 1) < 2 * low) ++k;
      const bool has_midpoint = k < 15 && value(k) + value(k + 1) < 2 * high;
      midpoint[entry] = has_midpoint ? (value(k) + value(k + 1)) / 2 : -__builtin_inff();
      below[entry] = value(k);
      from[entry] = value(k + has_midpoint);
      code[entry] = float(k + has_midpoint - 1);
    }
  }
  // The product must be below 139 in magnitude.
  static vi bucket_of(vf v) { return bits_of(v * (1 / width) + 12582912.0f); }
};
constexpr NearestValue nearest_value;

inline vf value_near(vf v) {
  const vi bucket = NearestValue::bucket_of(v);
  return v < look_up(nearest_value.midpoint, bucket) ? look_up(nearest_value.below, bucket)
                                                     : look_up(nearest_value.from, bucket);
}
inline vi code_near(vf v) {
  const vi bucket = NearestValue::bucket_of(larger(smaller(v, splat(135.0f)), splat(-135.0f)));
  const vi code = to_ints(look_up(nearest_value.code, bucket));
  return v < look_up(nearest_value.midpoint, bucket) ? code : code + 1;
}

// The scale with the least squared error for a group of 32, of 16 tries; 0 for a group of (almost) zeros.
inline vf search_iq4_scale(const vf* x, const vf* weight) {
  vf largest, scale{}, best{};
  const vf extreme = find_extreme(x, 32, largest);
  for (int step = -8; step <= 7; ++step) { // -8 stands for ggml's first try, which is always accepted
    const bool first = step == -8;
    const vf inverse = first ? 1.0f / (-extreme / -127.0f) : float(step - 127) / extreme;
    vf sum_xq{}, sum_qq{};
    for (int i = 0; i < 32; ++i) {
      const vf q = value_near(inverse * x[i]), weighted = weight[i] * q;
      sum_xq += weighted * x[i];
      sum_qq += weighted * q;
    }
    const auto is_better = (sum_qq > 0) & (first ? vi{} - 1 : sum_xq * sum_xq > best * sum_qq);
    scale = is_better ? sum_xq / sum_qq : scale;
    best = is_better ? scale * sum_xq : best;
  }
  return largest < all_zero ? vf{} : scale;
}

// How much each weight of a group counts in the squared error.
inline void weigh_iq4(const vf* x, const vf* importance, vf mean_square, vf* weight) {
  if (importance) return damp(x, importance, 32, mean_square, weight);
  for (int i = 0; i < 32; ++i) weight[i] = x[i] * x[i];
}

template <> struct Encoder<IQ4_NL> {
  static constexpr int halves[] = {0};
  static constexpr auto importance = Importance::plain;
  static void encode(const vf* x, const vf* weight, const Blocks& out) {
    vf counts[32];
    weigh_iq4(x, weight, sum_of_squares(x, 32) * (2.0f / 32), counts);
    const vf scale = search_iq4_scale(x, counts), inverse = inverse_or_zero(scale);
    vi codes[32];
    for (int i = 0; i < 32; ++i) codes[i] = code_near(inverse * x[i]);
    out.store_halves(0, scale);
    store_nibbles(out, 2, codes);
  }
};

template <> struct Encoder<IQ4_XS> {
  static constexpr int halves[] = {0};
  static constexpr auto importance = Importance::plain;
  static void encode(const vf* x, const vf* weight, const Blocks& out) {
    const vf mean_square = sum_of_squares(x, 256) * (2.0f / 256);
    vf scale[8], counts[32], largest;
    for (int g = 0; g < 8; ++g) {
      weigh_iq4(x + 32 * g, weight ? weight + 32 * g : nullptr, mean_square, counts);
      scale[g] = search_iq4_scale(x + 32 * g, counts);
    }
    const vf d = find_extreme(scale, 8, largest) / -32.0f, inverse = inverse_or_zero(d);
    out.store_halves(0, d);
    vi high{}, low{}, codes[32];
    for (int g = 0; g < 8; ++g) {
      const vi part = clamp(nearest(inverse * scale[g]), -32, 31);
      const vf inverse_step = inverse_or_zero(d * to_float(part));
      for (int i = 0; i < 32; ++i) codes[i] = code_near(inverse_step * x[32 * g + i]);
      store_nibbles(out, 8 + 16 * g, codes);
      low |= (part & 15) << 4 * g;
      high |= (part + 32) >> 4 << 2 * g;
    }
    out.store_halfwords(2, high);
    out.store_words(4, low);
  }
};

} // namespace
