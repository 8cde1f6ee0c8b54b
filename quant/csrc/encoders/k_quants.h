// Encoders of the k-quants. Source: quantize_row_*_ref and *_impl of ggml-quants.c.
#pragma once
#include "../formats/k_quants.h"
#include "encoder.h"
#include "search.h"

namespace {

// A scale for each 16 weights, then those scales to 8 bits, then the codes again with the scales as stored.
template <> struct Encoder<Q6_K> {
  static constexpr int halves[] = {208};
  static constexpr auto importance = Importance::plain;
  static void encode(const Floats* x, const Floats* weight, const Blocks& out) {
    Ints codes[256], scales[16];
    Floats scale[16], largest{}, extreme{}, squares[16];
    for (int g = 0; g < 16; ++g) {
      for (int i = 0; i < 16; ++i) squares[i] = x[16 * g + i] * x[16 * g + i];
      scale[g] = search_scale<16>(x + 16 * g, weight ? weight + 16 * g : squares, 32, codes + 16 * g);
      const Floats size = magnitude(scale[g]);
      extreme = size > largest ? scale[g] : extreme;
      largest = size > largest ? size : largest;
    }
    const auto is_zero = largest < 1e-15f; // stored as all zero bytes
    const Floats inverse = -128.0f / extreme;
    const Floats d = is_zero ? Floats{} : 1.0f / inverse;
    out.store_halves(208, d);
    Floats stored;
    for (int l = 0; l < lanes; ++l) stored[l] = load_f16(out.lane[l] + 208);
    for (int g = 0; g < 16; ++g) {
      const Ints whole = nearest(inverse * scale[g]);
      scales[g] = is_zero ? Ints{} : as_int8(whole > 127 ? Ints{} + 127 : whole);
      const Floats step = stored * to_floats(scales[g]);
      for (int i = 16 * g; i < 16 * g + 16; ++i) {
        const Ints code = clamp(nearest(x[i] / step), -32, 31) + 32;
        codes[i] = is_zero ? Ints{} : step != 0 ? code : codes[i];
      }
      scales[g] &= 255;
    }
    Ints bytes[64];
    for (int j = 0; j < 2; ++j) {
      const Ints* c = codes + 128 * j;
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
