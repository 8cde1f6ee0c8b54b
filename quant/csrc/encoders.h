// Encoding of rows: each block is encoded in one lane.
#pragma once
#include "encoders/fp4.h"
#include "encoders/iq1.h"
#include "encoders/iq2_iq3.h"
#include "encoders/iq4.h"
#include "encoders/k_quants.h"
#include "encoders/k_quants_with_min.h"
#include "encoders/legacy.h"
#include "encoders/ternary.h"
#include "formats.h"
#include "kernels.h"

namespace {

using lltool::Fault;

// The largest magnitude; infinity or NaN if any weight is.
inline float largest_magnitude(const float* x, int64_t n) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t size = f32_bits(x[i]) & 0x7fffffff;
    largest = size > largest ? size : largest;
  }
  return bits_f32(largest);
}

inline bool is_finite_half(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

template <class F> bool has_finite_scales(const uint8_t* block) {
  bool is = true;
  for (const int offset : Encoder<F>::halves) is &= is_finite_half(load_u16(block + offset));
  return is;
}
template <> inline bool has_finite_scales<IQ1_M>(const uint8_t* block) { return is_finite_half(IQ1_M::half(block)); }

// Formats with scales in half precision cannot represent larger weights, and ggml's sums of their powers would overflow.
template <class F> constexpr float limit = std::size(Encoder<F>::halves) ? 1e10f : 3.4028235e38f;
template <> constexpr float limit<IQ1_M> = 1e10f;

// The mean square of each row, summed in ggml's order. Floats8 rows are summed in parallel to hide the latency of additions.
inline void mean_squares(const float* x, int64_t rows, int64_t columns, float* out) {
  for (int64_t r = 0; r < rows; r += 8) {
    const float* row[8];
    for (int k = 0; k < 8; ++k) row[k] = x + (r + k < rows ? r + k : r) * columns;
    float sum[8] = {};
    for (int64_t i = 0; i < columns; ++i)
      for (int k = 0; k < 8; ++k) sum[k] += row[k][i] * row[k][i];
    for (int k = 0; k < 8 && r + k < rows; ++k) out[r + k] = sum[k] / float(columns);
  }
}

// Encodes rows of finite weights. `damping`, the rows' mean squares, is null unless importance is damped.
template <class F>
void encode_rows(const float* x, int64_t rows, int64_t columns, const float* importance, const float* damping,
                 uint8_t* out) {
  const int64_t row_blocks = columns / F::block, total = rows * row_blocks;
  vf tile[F::block], weight[F::block];
  uint8_t spare[F::bytes];
  for (int64_t first = 0; first < total; first += lanes) {
    const float *source[lanes], *importances[lanes];
    vf mean_square{};
    Blocks blocks;
    for (int l = 0; l < lanes; ++l) {
      const bool is_spare = first + l >= total;
      const int64_t block = is_spare ? first : first + l;
      source[l] = x + block * F::block;
      blocks.lane[l] = is_spare ? spare : out + block * F::bytes;
      if (!importance) continue;
      importances[l] = importance + block % row_blocks * F::block;
      if (damping) mean_square[l] = damping[block / row_blocks];
    }
    load_tile(source, F::block, tile);
    if (importance) {
      load_tile(importances, F::block, weight);
      if (damping) damp(tile, weight, F::block, mean_square, weight);
    }
    Encoder<F>::encode(tile, importance ? weight : nullptr, blocks);
  }
}

template <class F>
Fault encode_blocks(const float* x, int64_t rows, int64_t columns, const float* importance, uint8_t* out) {
  constexpr int64_t at_once = 64;
  constexpr bool is_damped = Encoder<F>::importance == Importance::damped;
  if (Encoder<F>::importance == Importance::ignored) importance = nullptr;
  if (Encoder<F>::importance == Importance::needed && !importance) return {0, Fault::needs_importance};
  const int64_t row_bytes = columns / F::block * F::bytes;
  float damping[at_once];
  for (int64_t start = 0; start < rows; start += at_once) {
    int64_t n = rows - start < at_once ? rows - start : at_once;
    const float* from = x + start * columns;
    uint8_t* to = out + start * row_bytes;
    Fault fault; // of the first row that cannot be encoded, which follows the n that can
    for (int64_t r = 0; r < n; ++r) {
      const float largest = largest_magnitude(from + r * columns, columns);
      if (largest <= limit<F>) continue;
      fault = {start + r, largest < __builtin_inff() ? Fault::too_large : Fault::not_finite};
      n = r;
    }
    if (importance && is_damped) mean_squares(from, n, columns, damping);
    encode_rows<F>(from, n, columns, importance, importance && is_damped ? damping : nullptr, to);
    for (int64_t r = 0; r < n; ++r)
      for (const uint8_t* block = to + r * row_bytes; block < to + (r + 1) * row_bytes; block += F::bytes)
        if (!has_finite_scales<F>(block)) return {start + r, Fault::too_large};
    if (fault.reason != Fault::none) return fault;
  }
  return {};
}

template <class F> Fault encode_floats(const float* x, int64_t rows, int64_t columns, uint8_t* out) {
  for (int64_t r = 0; r < rows; ++r, x += columns, out += columns * F::bytes) {
    const float largest = largest_magnitude(x, columns);
    if (!(largest < __builtin_inff())) return {r, Fault::not_finite};
    if (F::type == F16::type && largest >= 65520) return {r, Fault::too_large}; // rounds to infinity
    F::encode(x, columns, out);
  }
  return {};
}

} // namespace
