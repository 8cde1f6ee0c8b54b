// The common parts of products of activations with weights of any format. Only unpacking a row depends on its format:
// it gives codes with a scale (and a minimum) per group, and the loops of matvec-inl.h and matmul-inl.h see only those.
#pragma once
#include <algorithm>
#include <cmath>

#include "vector.h"
#include "formats.h"
#include "kernels.h"

namespace {

using lltool::Matrix;
using lltool::outlier_columns;
using lltool::Outliers;
using lltool::padded;
using lltool::Quantized;

// An unpacked row of a quantized weight: padded columns (kernels.h), a scale and a minimum per 16 or 32 codes.
struct Row {
  uint8_t* codes;
  float *scale, *min;
};

constexpr int lane_groups = lanes / 4, step = 32 * lane_groups; // groups of 32, each in 16 bytes; their columns

template <class F> inline void unpack_row(const uint8_t* p, int64_t K, Row row) {
  constexpr int groups = F::block / F::group;
  int64_t k = 0;
  if constexpr (is_in_registers<F>) {
    constexpr int unit = F::block > step ? F::block : step, blocks = unit / F::block;
    for (; k + unit <= K; k += unit, p += blocks * F::bytes) {
      for (int i = 0; i < blocks; ++i) {
        const int64_t g = (k / F::block + i) * groups;
        F::scales(p + i * F::bytes, row.scale + g, row.min + g);
      }
#pragma GCC unroll 4
      for (int column = 0; column < unit; column += step)
        F::template codes<Lanes<lane_groups>>(p, column / 32).store(row.codes + k + column);
    }
  }
  for (; k < K; k += F::block, p += F::bytes) F::unpack(p, row.codes + k, row.scale + k / F::group, row.min + k / F::group);
}

// Unpacks a group of `lanes` rows to eight vectors, each with four columns of every row: it loads every fourth row to
// 16 bytes of lanes, four times, and transposes the result.
template <class F> inline void take_group(const uint8_t* p, int64_t row_bytes, int group, vi (&low)[4], vi (&high)[4]) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const auto codes = F::template codes<Rows<lane_groups>>(RowPlace{p + i * row_bytes, 4 * row_bytes}, group);
    low[i] = (vi)codes.low;
    high[i] = (vi)codes.high;
  }
  transpose_fours(low);
  transpose_fours(high);
}

// ---- the arithmetic of a product, which is the same for any number of tokens, operation by operation ----
//
// A dot product of integers is exact in any order. The products of the columns that share an activation's scale are added as
// below, then those of a row in the order of its columns, after its outliers: acc = fused(part, scale, acc).

// The products of the `half`-th group of these columns, added to those before it: the weights are scale * code + min, and
// offset() is the sum of the activations' codes.
template <class F, class Offset> inline vf add_products(int half, vf before, vf dot, vf scale, vf min, Offset offset) {
  if constexpr (F::has_min) {
    const vf added = half == 0 ? min * offset() : fused(min, offset(), before);
    return fused(dot, scale, added);
  } else {
    return half == 0 ? dot * scale : fused(dot, scale, before);
  }
}

// Weights that are multiplied as floats.
template <class F> inline vf weights_of(vi code, vf scale, vf min) {
  const vf centered = to_float(code - F::zero);
  return F::has_min ? fused(centered, scale, min) : centered * scale;
}

bool can_multiply(int type) {
  return QuantizedFormats::find(type, [](auto) {});
}

template <class F> void decode_any(const uint8_t* row, int64_t K, float* out) {
  if constexpr (F::block == 1)
    F::decode(row, K, out);
  else
    decode_blocks<F>(row, K, out);
}
using Decode = void (*)(const uint8_t*, int64_t, float*);
Decode find_decode(int type) {
  Decode decode = nullptr;
  const auto take = [&](auto format) { decode = decode_any<decltype(format)>; };
  QuantizedFormats::find(type, take) || FloatFormats::find(type, take);
  return decode;
}
bool can_decode(int type) { return find_decode(type) != nullptr; }
void decode_row(int type, const uint8_t* row, int64_t K, float* out) { find_decode(type)(row, K, out); }

// ---- activations ----

constexpr int strip = 32 * lanes; // columns that are rounded at once: one scale per lane of a vector

// Rounds at most `strip` floats of any width to integers; each 32 have the scale that maps the largest to `most`.
template <int most, class Float, class Integer> inline void quantize_strip(const Float* x, int64_t columns, Integer* q, float* scale) {
  const int groups = int(columns / 32);
  vf top[lanes];
  for (int g = 0; g < lanes; ++g) {
    vf most_of_group{};
    if (g < groups)
      for (int i = 0; i < 32; i += lanes) most_of_group = max(most_of_group, abs(widen(x + 32 * g + i)));
    top[g] = most_of_group;
  }
  const vf largest = reduce_each(top, [](vf a, vf b) { return max(a, b); });
  const vf inverse = largest > 0.0f ? float(most) / largest : vf{};
  store(scale, largest / float(most));
  for (int g = 0; g < groups; ++g)
    for (int i = 0; i < 32; i += lanes) store_rounded(q + 32 * g + i, widen(x + 32 * g + i) * inverse[g]);
}

// Row layout: steps of lane_groups groups of 32, each group in 16 bytes (4 lanes) of a vector. In a step, q holds
// columns 0-15 of its groups, then 16-31; scale is one vector, and sum is two, with the sum of the four q in each lane.
// The eight columns of a lane have their own scale, at no cost here, so that a large one spoils fewer of its
// neighbours. If K is not a multiple of the step, the last step overlaps the one before, with zeros for the shared
// columns.
inline int64_t step_start(int64_t k, int64_t K) { return k + step <= K || K < step ? k : K - step; }

// Rounds 32 floats to int8, with one scale for each set of columns 4i to 4i + 3 and 16 + 4i to 16 + 4i + 3.
inline void quantize_lanes(const float* x, int8_t* q, float* scale) {
  alignas(64) float largest[16], inverse[16];
  for (int i = 0; i < 16; i += lanes) {
    const vf top = highest_of_fours(max(abs(load<vf>(x + i)), abs(load<vf>(x + 16 + i))));
    store(largest + i, top / 127.0f);
    store(inverse + i, top > 0.0f ? 127.0f / top : vf{});
  }
  for (int i = 0; i < 32; i += lanes) store_rounded(q + i, load<vf>(x + i) * load<vf>(inverse + i % 16));
  for (int i = 0; i < 4; ++i) scale[i] = largest[4 * i];
}

void quantize_row(const float* x, int64_t K, Quantized out) {
  for (int64_t k = 0; k < K; k += step) {
    alignas(64) uint8_t q[step] = {};
    alignas(64) float scale[lanes] = {};
    for (int j = 0; j < lane_groups; ++j) {
      const int64_t column = step_start(k, K) + 32 * j;
      if (column >= k && column < K) quantize_lanes(x + column, reinterpret_cast<int8_t*>(q) + 32 * j, scale + 4 * j);
    }
    store(out.scale + k / 8, load<vf>(scale));
    for (int half = 0; half < 2; ++half) {
      const vb codes = (vb)Lanes<lane_groups>::gather([&](int j) { return q + 32 * j + 16 * half; });
      store(out.q + k + half * step / 2, codes);
      store(out.sum + k / 4 + half * lanes, dot4<1>(vi{}, vb{} + 1, codes));
    }
  }
}

// Writes `count` items of each of `width` rows, which are `apart` items apart, as (count, width).
template <int width, class T> inline void transpose_rows(const T* from, int apart, int64_t count, T* out) {
  constexpr int part = width < lanes ? width : lanes; // rows that are transposed at once
  static_assert(width % part == 0);
  for (int row = 0; row < width; row += part, from += part * apart)
    for (int64_t i = 0; i < count; i += lanes) {
      vi v[lanes];
      for (int r = 0; r < lanes; ++r) v[r] = r < part ? load<vi>(from + r * apart + i) : vi{};
      transpose(v);
      for (int j = 0; j < lanes && i + j < count; ++j) std::memcpy(out + (i + j) * width + row, &v[j], part * sizeof(T));
    }
}

constexpr int64_t whole_vectors(int64_t groups) { return (groups + lanes - 1) / lanes * lanes; }

// Finds the columns of a token that stay floats, ascending, and returns their number: at most one of a group of 32, where
// the rest of the group is expected to be so much smaller that its rounding becomes as exact as that of other groups.
// `most` gets the largest of each group, and `gain` is space for the same; both hold whole vectors.
inline int find_outliers(const float* x, int64_t K, int32_t (&columns)[outlier_columns], float* most, float* gain) {
  constexpr float peak = 5.0f / 31.0f; // the largest of 31 normal values has a square of about five variances
  const int64_t groups = K / 32;
  vf totals{};
  for (int64_t first = 0; first < groups; first += lanes) {
    vf largest[lanes], squares[lanes];
    for (int g = 0; g < lanes; ++g) {
      largest[g] = squares[g] = vf{};
      if (first + g < groups)
        for (int i = 0; i < 32; i += lanes) {
          const vf v = load<vf>(x + 32 * (first + g) + i);
          largest[g] = max(largest[g], abs(v));
          squares[g] += v * v;
        }
    }
    const vf top = reduce_each(largest, [](vf a, vf b) { return max(a, b); });
    const vf sum = reduce_each(squares, [](vf a, vf b) { return a + b; });
    totals += top * top;
    store(most + first, top);
    store(gain + first, top * top - (sum - top * top) * peak);
  }
  const float least_gain = sum_of(totals) / float(groups);
  int64_t chosen[outlier_columns];
  int count = 0, least = 0; // index of the smallest gain, once there are as many as may be
  const auto find_least = [&] {
    for (int i = least = 0; i < outlier_columns; ++i)
      if (gain[chosen[i]] < gain[chosen[least]]) least = i;
  };
  for (int64_t first = 0; first < groups; first += lanes) {
    if (!any((vi)(load<vf>(gain + first) > least_gain))) continue;
    for (int64_t g = first; g < first + lanes; ++g) {
      if (!(gain[g] > least_gain)) continue;
      if (count < outlier_columns) {
        chosen[count++] = g;
      } else if (gain[g] > gain[chosen[least]]) {
        chosen[least] = g;
      } else {
        continue;
      }
      if (count == outlier_columns) find_least();
    }
  }
  for (int i = 0; i < count; ++i) {
    const float* group = x + 32 * chosen[i];
    int32_t column = 0;
    while (column < 31 && !(std::fabs(group[column]) == most[chosen[i]])) ++column;
    columns[i] = int32_t(32 * chosen[i]) + column;
  }
  std::sort(columns, columns + count);
  return count;
}

// Rounds a strip of a token, with zeros for its outliers.
inline void quantize_part(const float* x, int64_t k, int64_t count, const int32_t* outliers, int outlier_count, int8_t* q, float* scale) {
  bool changed = false;
  for (int i = 0; i < outlier_count; ++i) changed |= outliers[i] >= k && outliers[i] < k + count;
  if (!changed) return quantize_strip<127>(x + k, count, q, scale);
  alignas(64) float part[strip];
  for (int64_t i = 0; i < count; i += lanes) store(part + i, load<vf>(x + k + i));
  for (int i = 0; i < outlier_count; ++i)
    if (outliers[i] >= k && outliers[i] < k + count) part[outliers[i] - k] = 0;
  quantize_strip<127>(part, count, q, scale);
}

// Sets the rows from `from` on to zero.
template <class T, int count, int columns> inline void clear_rows(T (&rows)[count][columns], int64_t from) {
  for (int64_t r = from; r < count; ++r) std::memset(rows[r], 0, sizeof rows[r]);
}

// Panel layout: q (K / 4, panel, 4), scale (K / 32, panel), sums of 16 (K / 16, panel), then of 32 (K / 32, panel).
void quantize_panel(const float* x, int64_t stride, int tokens, int64_t K, Quantized out) {
  alignas(64) int8_t q[panel][strip];
  alignas(64) float scale[panel][lanes];
  int32_t columns[panel][outlier_columns];
  int counts[panel];
  clear_rows(q, tokens);
  clear_rows(scale, tokens);
  float* space = reinterpret_cast<float*>(out.q); // which is written afterwards
  static_assert(2 * lanes * sizeof(float) <= 32 * panel);
  for (int t = 0; t < tokens; ++t)
    counts[t] = find_outliers(x + t * stride, K, columns[t], space, space + whole_vectors(K / 32));
  out.outliers.set<panel>(columns, counts, tokens, x, stride);
  for (int64_t k = 0; k < K; k += strip) {
    const int64_t count = K - k < strip ? K - k : strip;
    for (int t = 0; t < tokens; ++t) quantize_part(x + t * stride, k, count, columns[t], counts[t], q[t], scale[t]);
    transpose_rows<panel>(reinterpret_cast<const int32_t*>(q), strip / 4, count / 4, reinterpret_cast<int32_t*>(out.q + k * panel));
    transpose_rows<panel>(scale[0], lanes, count / 32, out.scale + k / 32 * panel);
  }
  int32_t *sum = out.sum, *sum_of_32 = out.sum + K / 16 * panel;
  constexpr int width = panel < lanes ? panel : lanes;
  for (int64_t k = 0; k < K; k += 32, sum += 2 * panel, sum_of_32 += panel)
    for (int t = 0; t < panel; t += width) {
      vi half[2] = {};
      for (int i = 0; i < 8; ++i) {
        const vi four = load_first<width>(reinterpret_cast<const int32_t*>(out.q) + (k / 4 + i) * panel + t);
        half[i / 4] = dot4<1>(half[i / 4], vb{} + 1, (vb)four);
      }
      const vi both = half[0] + half[1];
      std::memcpy(sum + t, &half[0], width * 4);
      std::memcpy(sum + panel + t, &half[1], width * 4);
      std::memcpy(sum_of_32 + t, &both, width * 4);
    }
}

void pack_panel(const float* x, int64_t stride, int tokens, int64_t K, float* out) {
  for (int t = 0; t < panel; ++t)
    for (int64_t k = 0; k < K; ++k) out[k * panel + t] = t < tokens ? x[t * stride + k] : 0.0f;
}

} // namespace
