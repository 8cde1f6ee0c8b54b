// Every quantized format as the one view that all operations are written against:
//
//   weight i of a block = scale[g] * (codes[i] - zero) + (has_min ? min[g] : 0),   g = i / group
//
// with codes of at most 8 bits (`max_code`), groups of 16 or 32. A format states its layout and `unpack`s one block; it
// names no instruction set. Include only from files compiled per instruction set: everything is in unnamed namespaces.
#pragma once
#include <type_traits>

#include "formats/fp4.h"
#include "formats/iq.h"
#include "formats/k_quants.h"
#include "formats/legacy.h"
#include "formats/ternary.h"

namespace {

// Several formats, one of which a type names: find() calls f(Format) for it. False when it is not among them.
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
// Decoded only: no model's weights are stored so.
using ActivationFormats = FormatList<Q8_1, Q8_K>;

// The formats that store each weight as a float; `decode` gives n of them, `encode` takes n.
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

// Decodes n weights (a multiple of the block) of a quantized row. Unpacks some blocks ahead of the arithmetic: a wide load
// of bytes that were just stored narrowly waits for the stores.
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

// Whether a format makes 64 codes at once, without a detour through memory.
template <class F> constexpr bool is_in_registers = std::is_base_of<InRegisters<F>, F>::value;

} // namespace
