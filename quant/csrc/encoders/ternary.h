// Encoders of the formats with one or two bits per weight. Importance has no effect: the scale is a mean or a maximum.
// Source: quantize_row_*_ref of ggml-quants.c.
#pragma once
#include "../formats/ternary.h"
#include "encoder.h"

namespace {

// Codes 0, 1, 2 for -d, 0, d, where d is the largest magnitude. If d is too small to have an inverse, all weights are zero.
inline vf encode_trits(const vf* x, int n, vi* codes) {
  const vf d = largest_size(x, n);
  vf inverse = inverse_or_zero(d);
  inverse = bits_of(inverse) == 0x7f800000 ? vf{} : inverse;
  for (int i = 0; i < n; ++i) codes[i] = round_away(x[i] * inverse) + 1;
  return d;
}

// Packs `count` base-3 digits into each of `n` bytes: byte i has codes i, i + n, ..., the first as the highest of five digits.
inline void store_trits(const Blocks& out, int offset, const vi* codes, int n, int count) {
  vi bytes[32];
  for (int i = 0; i < n; ++i) {
    vi number{};
    for (int k = 0; k < 5; ++k) number = 3 * number + (k < count ? codes[n * k + i] : vi{});
    bytes[i] = number + ((13 * number + 242) * 1079 >> 18); // number * 256 / 243, rounded up
  }
  out.store_bytes(offset, bytes, n);
}

template <> struct Encoder<TQ1_0> {
  static constexpr int halves[] = {52};
  static constexpr auto importance = Importance::ignored;
  static void encode(const vf* x, const vf*, const Blocks& out) {
    vi codes[256];
    out.store_halves(52, encode_trits(x, 256, codes));
    store_trits(out, 0, codes, 32, 5);
    store_trits(out, 32, codes + 160, 16, 5);
    store_trits(out, 48, codes + 240, 4, 4);
  }
};

template <> struct Encoder<TQ2_0> {
  static constexpr int halves[] = {64};
  static constexpr auto importance = Importance::ignored;
  static void encode(const vf* x, const vf*, const Blocks& out) {
    vi codes[256], bytes[64];
    out.store_halves(64, encode_trits(x, 256, codes));
    for (int i = 0; i < 64; ++i) {
      const vi* c = codes + i / 32 * 128 + i % 32;
      bytes[i] = c[0] | c[32] << 2 | c[64] << 4 | c[96] << 6;
    }
    out.store_bytes(0, bytes, 64);
  }
};

// Stores the signs and the mean magnitude.
template <> struct Encoder<Q1_0> {
  static constexpr int halves[] = {0};
  static constexpr auto importance = Importance::ignored;
  static void encode(const vf* x, const vf*, const Blocks& out) {
    vf sum{};
    for (int i = 0; i < 128; ++i) sum += abs(x[i]);
    out.store_halves(0, sum / 128.0f);
    for (int word = 0; word < 4; ++word) {
      vi bits{};
      for (int i = 0; i < 32; ++i) bits |= (x[32 * word + i] >= 0 ? vi{} + 1 : vi{}) << i;
      out.store_words(2 + 4 * word, bits);
    }
  }
};

template <> struct Encoder<Q2_0> {
  static constexpr int halves[] = {0};
  static constexpr auto importance = Importance::ignored;
  static void encode(const vf* x, const vf*, const Blocks& out) {
    const vf d = largest_size(x, 64), inverse = inverse_or_zero(d);
    vi bytes[16];
    const auto code = [&](int i) { return clamp(round_away(x[i] * inverse), -1, 2) + 1; };
    for (int i = 0; i < 16; ++i)
      bytes[i] = code(4 * i) | code(4 * i + 1) << 2 | code(4 * i + 2) << 4 | code(4 * i + 3) << 6;
    out.store_halves(0, d);
    out.store_bytes(2, bytes, 16);
  }
};

} // namespace
