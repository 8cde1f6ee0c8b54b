// What the products of activations with weights of any format share. Nothing knows a format but what takes its rows apart:
// a row becomes codes with a scale (and a minimum) a group, and the loops of matvec-inl.h and matmul-inl.h see only those.
#pragma once
#include "formats.h"
#include "kernels.h"
#include "vector.h"

namespace {

using lltool::Matrix;
using lltool::padded;
using lltool::Quantized;

// A row of a quantized weight: columns padded (kernels.h), a scale and a minimum each 16 or 32 codes.
struct Row {
  uint8_t* codes;
  float *scale, *min;
};

template <class F> inline void unpack_row(const uint8_t* p, int64_t K, Row row) {
  constexpr int groups = F::block / F::group;
  for (int64_t b = 0; b < K / F::block; ++b, p += F::bytes)
    F::unpack(p, row.codes + b * F::block, row.scale + b * groups, row.min + b * groups);
}

// Calls f(Format) for the quantized format of that type. False when there is none.
template <class Function> inline bool with_format(int type, Function&& f) {
  switch (type) {
#define CASE(F) case F::type: f(F{}); return true;
    LLTOOL_QUANTIZED_FORMATS(CASE)
#undef CASE
  }
  return false;
}

bool can_multiply(int type) {
  return with_format(type, [](auto) {});
}

template <class F> void decode_any(const uint8_t* row, int64_t K, float* out) {
  if constexpr (F::block == 1)
    F::decode(row, K, out);
  else
    decode_blocks<F>(row, K, out);
}
using Decode = void (*)(const uint8_t*, int64_t, float*);
Decode find_decode(int type) {
  switch (type) {
#define CASE(F) case F::type: return decode_any<F>;
    LLTOOL_QUANTIZED_FORMATS(CASE) LLTOOL_FLOAT_FORMATS(CASE)
#undef CASE
  }
  return nullptr;
}
bool can_decode(int type) { return find_decode(type) != nullptr; }
void decode_row(int type, const uint8_t* row, int64_t K, float* out) { find_decode(type)(row, K, out); }

// ---- activations ----

// 32 floats to int8 with the scale that maps the largest to 127.
inline float quantize_32(const float* x, int8_t* q) {
  vf top{};
  for (int i = 0; i < 32; i += lanes) top = max(top, abs(load<vf>(x + i)));
  const float largest = highest(top), scale = largest / 127.0f, inverse = largest > 0 ? 127.0f / largest : 0.0f;
  typedef int8_t narrow __attribute__((vector_size(lanes)));
  for (int i = 0; i < 32; i += lanes)
    store(q + i, __builtin_convertvector(to_int(round(load<vf>(x + i) * inverse)), narrow));
  return scale;
}

// Row layout, in steps of lane_groups groups of 32, a group each 16 bytes (4 lanes) of a vector: q is first the groups'
// columns 0-15, then 16-31; scale is a vector, sum two: of the four q in each lane. Where K is no multiple of the step, the
// last one overlaps its predecessor, with zeros for what that had.
constexpr int lane_groups = lanes / 4, step = 32 * lane_groups;

inline int64_t step_start(int64_t k, int64_t K) { return k + step <= K || K < step ? k : K - step; }

void quantize_row(const float* x, int64_t K, Quantized out) {
  for (int64_t k = 0; k < K; k += step) {
    const int64_t start = step_start(k, K);
    for (int j = 0; j < lane_groups; ++j) {
      const int64_t column = start + 32 * j;
      alignas(64) int8_t q[32] = {};
      const float scale = column >= k && column < K ? quantize_32(x + column, q) : 0.0f;
      std::memcpy(out.q + k + 16 * j, q, 16);
      std::memcpy(out.q + k + 16 * j + step / 2, q + 16, 16);
      for (int i = 0; i < 4; ++i) out.scale[k / 8 + 4 * j + i] = scale;
    }
    for (int half = 0; half < 2; ++half)
      store(out.sum + k / 4 + half * lanes, dot4<1>(vi{}, vb{} + 1, load<vb>(out.q + k + half * step / 2)));
  }
}

// Panel layout: q (K / 4, panel, 4), scale (K / 32, panel), sum (K / 16, panel) and then sums of 32 (K / 32, panel).
void quantize_panel(const float* x, int64_t stride, int tokens, int64_t K, Quantized out) {
  for (int t = 0; t < panel; ++t)
    for (int64_t g = 0; g < K / 32; ++g) {
      alignas(64) int8_t q[32] = {};
      const float scale = t < tokens ? quantize_32(x + t * stride + 32 * g, q) : 0.0f;
      int32_t sum[2] = {};
      for (int i = 0; i < 32; ++i) sum[i / 16] += q[i];
      for (int i = 0; i < 8; ++i) std::memcpy(out.q + ((8 * g + i) * panel + t) * 4, q + 4 * i, 4);
      out.scale[g * panel + t] = scale;
      out.sum[2 * g * panel + t] = sum[0];
      out.sum[(2 * g + 1) * panel + t] = sum[1];
      out.sum[K / 16 * panel + g * panel + t] = sum[0] + sum[1];
    }
}

void pack_panel(const float* x, int64_t stride, int tokens, int64_t K, float* out) {
  for (int t = 0; t < panel; ++t)
    for (int64_t k = 0; k < K; ++k) out[k * panel + t] = t < tokens ? x[t * stride + k] : 0.0f;
}

} // namespace
