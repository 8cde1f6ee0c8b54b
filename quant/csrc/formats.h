// The quantized formats, in the common form that all operations use:
//
//   weight i of a block = scale[g] * (codes[i] - zero) + (has_min ? min[g] : 0),   g = i / group
//
// with codes of at most 8 bits (`max_code`) and groups of 16 or 32. A format defines its layout and an `unpack` of one
// block; it names no instruction set. Include it only in files compiled per instruction set: all namespaces are unnamed.
#pragma once
#include <type_traits>

#include "formats/fp4.h"
#include "formats/iq.h"
#include "formats/k_quants.h"
#include "formats/legacy.h"
#include "formats/ternary.h"
#include "checked.h"

namespace {

// A list of formats. find() calls f(Format) for the format of the type, or returns false if it is not in the list.
template <class... Formats> struct FormatList {
  template <class Function> static bool find(int type, Function&& f) {
    return ((Formats::type == type && (f(Formats{}), true)) || ...);
  }
};

// clang-format off
using QuantizedFormats = FormatList<
  Q4_0, Q4_1, Q5_0, Q5_1, Q8_0,
  Q2_K, Q3_K, Q4_K, Q5_K, Q6_K,
  IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ4_NL, IQ4_XS,
  MXFP4, NVFP4, TQ1_0, TQ2_0, Q1_0, Q2_0>;
// clang-format on
// These are only decoded, because no model stores weights in them.
using ActivationFormats = FormatList<Q8_1, Q8_K>;

// The formats that store each weight as a floating-point number; `decode` and `encode` convert n weights.
struct F32 {
  static constexpr int type = 0, block = 1, bytes = 4;
  static void decode(const uint8_t* p, int64_t n, float* out) { std::memcpy(out, p, size_t(n) * 4); }
  static void encode(const float* x, int64_t n, uint8_t* out) { std::memcpy(out, x, size_t(n) * 4); }
};
struct F16 {
  static constexpr int type = 1, block = 1, bytes = 2;
  static void decode(const uint8_t* p, int64_t n, float* out) { f16_row_to_f32(p, n, out); }
  static void encode(const float* x, int64_t n, uint8_t* out) { f32_row_to_f16(x, n, out); }
};
struct BF16 {
  static constexpr int type = 30, block = 1, bytes = 2;
  static void decode(const uint8_t* p, int64_t n, float* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = bf16_to_f32(load_u16(p + 2 * i));
  }
  static void encode(const float* x, int64_t n, uint8_t* out) {
    for (int64_t i = 0; i < n; ++i) {
      const uint16_t half = f32_to_bf16(x[i]);
      std::memcpy(out + 2 * i, &half, 2);
    }
  }
};
using FloatFormats = FormatList<F32, F16, BF16>;

// The layout of a type, from its format's struct; zeros if the type is unknown.
lltool::Layout layout(int type) {
  lltool::Layout found;
  const auto take = [&](auto format) { found = {decltype(format)::block, decltype(format)::bytes}; };
  QuantizedFormats::find(type, take) || ActivationFormats::find(type, take) || FloatFormats::find(type, take);
  return found;
}

// Decodes n weights (a multiple of the block) of a quantized row. Several blocks are unpacked before the arithmetic, because
// a wide load stalls if it reads bytes that narrow stores have just written.
template <class F> void decode_blocks(const uint8_t* p, int64_t n, float* out) {
  constexpr int ahead = F::block < 512 ? 512 / F::block : 1, groups = F::block / F::group;
  alignas(64) uint8_t codes[ahead * F::block];
  float scale[ahead * groups], min[ahead * groups];
  while (n > 0) {
    const int blocks = n < ahead * F::block ? int(n / F::block) : ahead;
    for (int k = 0; k < blocks; ++k, p += F::bytes)
      F::unpack(p, codes + k * F::block, scale + k * groups, min + k * groups);
    for (int g = 0; g < blocks * groups; ++g, out += F::group)
      for (int i = 0; i < F::group; ++i) {
        const float w = scale[g] * float(int(codes[g * F::group + i]) - F::zero);
        out[i] = F::has_min ? w + min[g] : w;
      }
    n -= int64_t(blocks) * F::block;
  }
}

// Whether a format unpacks 64 codes at once in registers, without going through memory.
template <class F> constexpr bool is_in_registers = std::is_base_of<InRegisters<F>, F>::value;

} // namespace
