// Every quantized format as the one view that all operations are written against:
//
//   weight i of a block = scale[g] * (codes[i] - zero) + (has_min ? min[g] : 0),   g = i / group
//
// with codes of at most 8 bits (`max_code`), groups of 16 or 32. A format states its layout and `unpack`s one block; it
// names no instruction set. Include only from files compiled per instruction set: everything is in unnamed namespaces.
#pragma once
#include "formats/k_quants.h"
#include "formats/legacy.h"

// clang-format off
#define LLTOOL_QUANTIZED_FORMATS(X) \
  X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q8_0) \
  X(Q4_K) X(Q5_K) X(Q6_K)
// clang-format on

namespace {

// The formats that store each weight as a float; `decode` gives n of them.
struct F32 {
  static constexpr int type = 0, block = 1, bytes = 4;
  static void decode(const uint8_t* p, int64_t n, float* out) { std::memcpy(out, p, size_t(n) * 4); }
};
struct F16 {
  static constexpr int type = 1, block = 1, bytes = 2;
  static void decode(const uint8_t* p, int64_t n, float* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = load_f16(p + 2 * i);
  }
};
struct BF16 {
  static constexpr int type = 30, block = 1, bytes = 2;
  static void decode(const uint8_t* p, int64_t n, float* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = bf16_to_f32(load_u16(p + 2 * i));
  }
};
#define LLTOOL_FLOAT_FORMATS(X) X(F32) X(F16) X(BF16)

// Decodes n weights (a multiple of the block) of a quantized row.
template <class F> void decode_blocks(const uint8_t* p, int64_t n, float* out) {
  uint8_t codes[F::block];
  float scale[F::block / F::group], min[F::block / F::group];
  for (int64_t k = 0; k < n; k += F::block, p += F::bytes, out += F::block) {
    F::unpack(p, codes, scale, min);
    for (int g = 0; g < F::block / F::group; ++g)
      for (int i = 0; i < F::group; ++i) {
        const float w = scale[g] * float(int(codes[g * F::group + i]) - F::zero);
        out[g * F::group + i] = F::has_min ? w + min[g] : w;
      }
  }
}

} // namespace
