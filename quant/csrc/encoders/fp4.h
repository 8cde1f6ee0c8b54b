// Encoders of the formats with four-bit floats. Importance has no effect, because the largest weight decides the scale.
// Source: quantize_row_mxfp4_ref and quantize_row_nvfp4_ref of ggml-quants.c.
#pragma once
#include "../formats/fp4.h"
#include "legacy.h"

namespace {

// The number of the nearest E2M1 value; of two equally near ones, the lower number. Values are doubled, as `scale` is halved.
inline vi nearest_e2m1(vf x, vf scale) {
  constexpr float doubled[] = {0, 1, 2, 3, 4, 6, 8, 12};
  const vf size = abs(x);
  vf least = size;
  vi code{};
  for (int k = 1; k < 8; ++k) {
    const vf error = abs(doubled[k] * scale - size);
    code = error < least ? vi{} + k : code;
    least = error < least ? error : least;
  }
  return code | (((x < 0) & (code != 0)) & 8);
}

// One exponent: that of the largest weight, minus two. Below 2^-125 it wraps around, as ggml's does, to a scale that rounds
// all weights to zero.
template <> struct Encoder<MXFP4> {
  static constexpr auto halves = no_halves;
  static constexpr auto importance = Importance::ignored;
  static void encode(const vf* x, const vf*, const Blocks& out) {
    const vf largest = largest_size(x, 32);
    vi exponent, codes[32];
    for (int l = 0; l < lanes; ++l) // log2f decides the rounding just below a power of two
      exponent[l] = largest[l] > 0 ? int(__builtin_floorf(__builtin_log2f(largest[l]))) + 125 & 255 : 0;
    const vf scale = floats_of(exponent < 2 ? (vi{} + 0x00200000) << (exponent & 1) : (exponent - 1) << 23);
    for (int i = 0; i < 32; ++i) codes[i] = nearest_e2m1(x[i], scale);
    out.store_byte(0, exponent);
    store_nibbles(out, 1, codes);
  }
};

// The nearest unsigned E4M3 number, at most 448; ties are rounded up.
inline vi to_e4m3(vf v) {
  const vi subnormal = clamp(to_ints(v * 512.0f + 0.5f), 0, 7);
  const vi normal = (bits_of(v) >> 20) + (bits_of(v) >> 19 & 1) - (120 << 3);
  return bits_of(v) < 121 << 23 ? subnormal : normal > 119 ? vi{} + 126 : normal;
}

// One scale per 16 weights, which maps the largest of them to 6. Weights above 2688 are clipped, as in ggml.
template <> struct Encoder<NVFP4> {
  static constexpr auto halves = no_halves;
  static constexpr auto importance = Importance::ignored;
  static void encode(const vf* x, const vf*, const Blocks& out) {
    vi scales[4], bytes[32];
    for (int g = 0; g < 4; ++g) {
      scales[g] = to_e4m3(largest_size(x + 16 * g, 16) / 6.0f);
      vf scale;
      for (int l = 0; l < lanes; ++l) scale[l] = NVFP4::e4m3_half(uint8_t(scales[g][l]));
      for (int i = 0; i < 8; ++i)
        bytes[8 * g + i] = nearest_e2m1(x[16 * g + i], scale) | nearest_e2m1(x[16 * g + 8 + i], scale) << 4;
    }
    out.store_bytes(0, scales, 4);
    out.store_bytes(4, bytes, 32);
  }
};

} // namespace
