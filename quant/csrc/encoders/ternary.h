// Encoders of the formats of one or two bits a weight. Importance changes nothing: the scale is a mean or the largest.
// Source: quantize_row_*_ref of ggml-quants.c.
#pragma once
#include "../formats/ternary.h"
#include "encoder.h"

namespace {

// Codes 0, 1, 2 for -d, 0, d, where d is the largest size. One too small to have an inverse gives zeros.
inline Floats encode_trits(const Floats* x, int n, Ints* codes) {
  const Floats d = largest_size(x, n);
  Floats inverse = inverse_or_zero(d);
  inverse = bits_of(inverse) == 0x7f800000 ? Floats{} : inverse;
  for (int i = 0; i < n; ++i) codes[i] = round_away(x[i] * inverse) + 1;
  return d;
}

// `n` bytes of `count` base-3 digits each: byte i has codes i, i + n, ..., the first as the highest of five digits.
inline void store_trits(const Blocks& out, int offset, const Ints* codes, int n, int count) {
  Ints bytes[32];
  for (int i = 0; i < n; ++i) {
    Ints number{};
    for (int k = 0; k < 5; ++k) number = 3 * number + (k < count ? codes[n * k + i] : Ints{});
    bytes[i] = number + ((13 * number + 242) * 1079 >> 18); // number * 256 / 243, rounded up
  }
  out.store_bytes(offset, bytes, n);
}

template <> struct Encoder<TQ1_0> {
  static constexpr int halves[] = {52};
  static constexpr auto importance = Importance::ignored;
  static void encode(const Floats* x, const Floats*, const Blocks& out) {
    Ints codes[256];
    out.store_halves(52, encode_trits(x, 256, codes));
    store_trits(out, 0, codes, 32, 5);
    store_trits(out, 32, codes + 160, 16, 5);
    store_trits(out, 48, codes + 240, 4, 4);
  }
};

template <> struct Encoder<TQ2_0> {
  static constexpr int halves[] = {64};
  static constexpr auto importance = Importance::ignored;
  static void encode(const Floats* x, const Floats*, const Blocks& out) {
    Ints codes[256], bytes[64];
    out.store_halves(64, encode_trits(x, 256, codes));
    for (int i = 0; i < 64; ++i) {
      const Ints* c = codes + i / 32 * 128 + i % 32;
      bytes[i] = c[0] | c[32] << 2 | c[64] << 4 | c[96] << 6;
    }
    out.store_bytes(0, bytes, 64);
  }
};

// The signs, and the mean size.
template <> struct Encoder<Q1_0> {
  static constexpr int halves[] = {0};
  static constexpr auto importance = Importance::ignored;
  static void encode(const Floats* x, const Floats*, const Blocks& out) {
    Floats sum{};
    for (int i = 0; i < 128; ++i) sum += magnitude(x[i]);
    out.store_halves(0, sum / 128.0f);
    for (int word = 0; word < 4; ++word) {
      Ints bits{};
      for (int i = 0; i < 32; ++i) bits |= (x[32 * word + i] >= 0 ? Ints{} + 1 : Ints{}) << i;
      out.store_words(2 + 4 * word, bits);
    }
  }
};

template <> struct Encoder<Q2_0> {
  static constexpr int halves[] = {0};
  static constexpr auto importance = Importance::ignored;
  static void encode(const Floats* x, const Floats*, const Blocks& out) {
    const Floats d = largest_size(x, 64), inverse = inverse_or_zero(d);
    Ints bytes[16];
    const auto code = [&](int i) { return clamp(round_away(x[i] * inverse), -1, 2) + 1; };
    for (int i = 0; i < 16; ++i)
      bytes[i] = code(4 * i) | code(4 * i + 1) << 2 | code(4 * i + 2) << 4 | code(4 * i + 3) << 6;
    out.store_halves(0, d);
    out.store_bytes(2, bytes, 16);
  }
};

} // namespace
