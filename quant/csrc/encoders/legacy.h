// Encoders of the formats with one scale for 32 weights. Source: quantize_row_*_ref and *_impl of ggml-quants.c.
#pragma once
#include "../formats/legacy.h"
#include "encoder.h"
#include "search.h"

namespace {

// Codes around `half`: the weight of the largest magnitude gets code 0. Returns the scale.
inline vf encode_around(const vf* x, const vf* weight, int half, vi* codes) {
  if (weight) return search_scale<32>(x, weight, half, codes);
  vf largest;
  const vf scale = find_extreme(x, 32, largest) / -float(half), inverse = inverse_or_zero(scale);
  for (int i = 0; i < 32; ++i) {
    const vi code = as_int8(to_ints(x[i] * inverse + (float(half) + 0.5f)));
    codes[i] = code > 2 * half - 1 ? vi{} + (2 * half - 1) : code;
  }
  return scale;
}

// Codes counted from the least weight. Returns the scale.
inline vf encode_above(const vf* x, const vf* weight, int top, vi* codes, vf& min) {
  if (weight) return search_scale_min<32>(x, weight, top, important_tries, codes, min);
  vf low = x[0], high = x[0];
  for (int i = 1; i < 32; ++i) {
    low = smaller(x[i], low);
    high = larger(x[i], high);
  }
  const vf scale = (high - low) / float(top), inverse = inverse_or_zero(scale);
  for (int i = 0; i < 32; ++i) {
    const vi code = as_int8(to_ints((x[i] - low) * inverse + 0.5f));
    codes[i] = code > top ? vi{} + top : code;
  }
  min = low;
  return scale;
}

inline void store_fifth_bits(const Blocks& out, int offset, const vi* codes) {
  vi word{};
  for (int i = 0; i < 32; ++i) word |= (codes[i] >> 4 & 1) << i;
  out.store_words(offset, word);
}

template <> struct Encoder<Q4_0> {
  static constexpr int halves[] = {0};
  static constexpr auto importance = Importance::damped;
  static void encode(const vf* x, const vf* weight, const Blocks& out) {
    vi codes[32];
    out.store_halves(0, encode_around(x, weight, 8, codes));
    store_nibbles(out, 2, codes);
  }
};

template <> struct Encoder<Q4_1> {
  static constexpr int halves[] = {0, 2};
  static constexpr auto importance = Importance::damped;
  static void encode(const vf* x, const vf* weight, const Blocks& out) {
    vi codes[32];
    vf min;
    out.store_halves(0, encode_above(x, weight, 15, codes, min));
    out.store_halves(2, min);
    store_nibbles(out, 4, codes);
  }
};

template <> struct Encoder<Q5_0> {
  static constexpr int halves[] = {0};
  static constexpr auto importance = Importance::damped;
  static void encode(const vf* x, const vf* weight, const Blocks& out) {
    vi codes[32];
    out.store_halves(0, encode_around(x, weight, 16, codes));
    store_fifth_bits(out, 2, codes);
    store_nibbles(out, 6, codes);
  }
};

template <> struct Encoder<Q5_1> {
  static constexpr int halves[] = {0, 2};
  static constexpr auto importance = Importance::damped;
  static void encode(const vf* x, const vf* weight, const Blocks& out) {
    vi codes[32];
    vf min;
    out.store_halves(0, encode_above(x, weight, 31, codes, min));
    out.store_halves(2, min);
    store_fifth_bits(out, 4, codes);
    store_nibbles(out, 8, codes);
  }
};

// Importance has no effect, because the largest weight decides the scale.
template <> struct Encoder<Q8_0> {
  static constexpr int halves[] = {0};
  static constexpr auto importance = Importance::ignored;
  static void encode(const vf* x, const vf*, const Blocks& out) {
    vf largest{};
    for (int i = 0; i < 32; ++i) largest = larger(abs(x[i]), largest);
    const vf scale = largest / 127.0f, inverse = inverse_or_zero(scale);
    vi bytes[32];
    for (int i = 0; i < 32; ++i) bytes[i] = round_away(x[i] * inverse) & 255;
    out.store_halves(0, scale);
    out.store_bytes(2, bytes, 32);
  }
};

} // namespace
