// Encoders of the k-quants without mins: Q3_K and Q6_K. Source: quantize_row_*_ref and *_impl of ggml-quants.c.
#pragma once
#include "../formats/k_quants.h"
#include "encoder.h"
#include "search.h"

namespace {

// Finds a scale for each 16 weights, quantizes the scales to 6 bits, and computes the codes again with the stored scales.
template <> struct Encoder<Q3_K> {
  static constexpr int halves[] = {108};
  static constexpr auto importance = Importance::plain;
  static void encode(const vf* x, const vf* weight, const Blocks& out) {
    vi codes[256], scales[16];
    vf scale[16], d;
    if (weight) {
      const vf mean_square = 2.0f * sum_of_squares(x, 256) / 256.0f;
      vf damped[16], counts[16]{};
      for (int g = 0; g < 16; ++g) {
        damp(x + 16 * g, weight + 16 * g, 16, mean_square, damped);
        for (int i = 0; i < 16; ++i) counts[g] += damped[i];
        scale[g] = search_scale<16>(x + 16 * g, damped, 4, codes + 16 * g);
      }
      d = search_scale<16>(scale, counts, 32, scales);
    } else {
      for (int g = 0; g < 16; ++g) scale[g] = search_signed<16>(x + 16 * g, 4, codes + 16 * g);
      vf largest;
      const vf extreme = find_extreme(scale, 16, largest), inverse = -32.0f / extreme;
      const auto is_zero = extreme == 0;
      for (int g = 0; g < 16; ++g)
        scales[g] = is_zero ? vi{} : clamp(as_int8(nearest(inverse * scale[g])), -32, 31) + 32;
      d = is_zero ? vf{} : 1.0f / inverse;
    }
    out.store_halves(108, d);
    const vf stored = round_to_half(d);
    for (int g = 0; g < 16; ++g) {
      const vf step = stored * to_float(scales[g] - 32);
      for (int i = 16 * g; i < 16 * g + 16; ++i) {
        const vi code = clamp(nearest(x[i] / step), -4, 3) + 4;
        codes[i] = step != 0 ? code : codes[i];
      }
    }
    vi bytes[32]{};
    for (int i = 0; i < 256; ++i) bytes[i % 32] |= codes[i] >> 2 << i / 32;
    out.store_bytes(0, bytes, 32);
    store_pairs(out, 32, codes);
    for (int g = 0; g < 8; ++g) bytes[g] = (scales[g] & 15) | (scales[g + 8] & 15) << 4;
    for (int g = 0; g < 4; ++g)
      bytes[g + 8] = scales[g] >> 4 | scales[g + 4] >> 4 << 2 | scales[g + 8] >> 4 << 4 | scales[g + 12] >> 4 << 6;
    out.store_bytes(96, bytes, 12);
  }
};

// Finds a scale for each 16 weights, quantizes the scales to 8 bits, and computes the codes again with the stored scales.
template <> struct Encoder<Q6_K> {
  static constexpr int halves[] = {208};
  static constexpr auto importance = Importance::plain;
  static void encode(const vf* x, const vf* weight, const Blocks& out) {
    vi codes[256], scales[16];
    vf scale[16], squares[16];
    for (int g = 0; g < 16; ++g) {
      for (int i = 0; i < 16; ++i) squares[i] = x[16 * g + i] * x[16 * g + i];
      scale[g] = search_scale<16>(x + 16 * g, weight ? weight + 16 * g : squares, 32, codes + 16 * g);
    }
    vf largest;
    const vf inverse = -128.0f / find_extreme(scale, 16, largest);
    const auto is_zero = largest < all_zero; // stored as all zero bytes
    const vf d = is_zero ? vf{} : 1.0f / inverse;
    out.store_halves(208, d);
    const vf stored = round_to_half(d);
    for (int g = 0; g < 16; ++g) {
      const vi whole = nearest(inverse * scale[g]);
      scales[g] = is_zero ? vi{} : as_int8(whole > 127 ? vi{} + 127 : whole);
      const vf step = stored * to_float(scales[g]);
      for (int i = 16 * g; i < 16 * g + 16; ++i) {
        const vi code = clamp(nearest(x[i] / step), -32, 31) + 32;
        codes[i] = is_zero ? vi{} : step != 0 ? code : codes[i];
      }
      scales[g] &= 255;
    }
    vi bytes[64];
    for (int j = 0; j < 2; ++j) {
      const vi* c = codes + 128 * j;
      for (int i = 0; i < 64; ++i) bytes[i] = (c[i] & 15) | (c[i + 64] & 15) << 4;
      out.store_bytes(64 * j, bytes, 64);
      for (int i = 0; i < 32; ++i)
        bytes[i] = c[i] >> 4 | (c[i + 32] >> 4) << 2 | (c[i + 64] >> 4) << 4 | (c[i + 96] >> 4) << 6;
      out.store_bytes(128 + 32 * j, bytes, 32);
    }
    out.store_bytes(192, scales, 16);
  }
};

} // namespace
