// What the products of activations with weights of any format share. Nothing knows a format but what takes its rows apart:
// a row becomes codes with a scale (and a minimum) a group, and the loops of matvec-inl.h and matmul-inl.h see only those.
#pragma once
#include "dot.h"
#include "formats.h"
#include "kernels.h"

namespace {

using lltool::Matrix;
using lltool::padded;
using lltool::Quantized;

// A row of a quantized weight: columns padded (kernels.h), a scale and a minimum each 16 or 32 codes.
struct Row {
  uint8_t* codes;
  float *scale, *min;
};

constexpr int lane_groups = lanes / 4, step = 32 * lane_groups; // groups of 32 in lanes of 16 bytes; their columns

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

constexpr int strip = 32 * lanes; // columns that are rounded at once: a scale for each lane of a vector

// At most `strip` floats, of any width, to integers, each 32 with the scale that maps the largest to `most`.
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

// Row layout, in steps of lane_groups groups of 32, a group each 16 bytes (4 lanes) of a vector: q is first the groups'
// columns 0-15, then 16-31; scale is a vector, sum two: of the four q in each lane. A lane's eight columns have a scale of
// their own, which costs nothing here: a large one among 32 spoils fewer. Where K is no multiple of the step, the last one
// overlaps its predecessor, with zeros for what that had.
inline int64_t step_start(int64_t k, int64_t K) { return k + step <= K || K < step ? k : K - step; }

// 32 floats to int8, with a scale for columns 4i to 4i + 3 and 16 + 4i to 16 + 4i + 3 each.
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

// Writes `count` items of each of `width` rows, `apart` items from one to the next, as (count, width).
template <int width, class T> inline void transpose_rows(const T* from, int apart, int64_t count, T* out) {
  constexpr int part = width < lanes ? width : lanes; // rows at once
  static_assert(width % part == 0);
  for (int row = 0; row < width; row += part, from += part * apart)
    for (int64_t i = 0; i < count; i += lanes) {
      vi v[lanes];
      for (int r = 0; r < lanes; ++r) v[r] = r < part ? load<vi>(from + r * apart + i) : vi{};
      transpose(v);
      for (int j = 0; j < lanes && i + j < count; ++j) std::memcpy(out + (i + j) * width + row, &v[j], part * sizeof(T));
    }
}

// The columns with the largest share in the squares of their tokens, summed up over the tokens.
inline void find_outliers(const float* x, int64_t stride, int tokens, int64_t K, int32_t (&columns)[lltool::outlier_columns]) {
  float inverse[panel], share[lltool::outlier_columns] = {};
  for (int t = 0; t < tokens; ++t) {
    constexpr int ways = 32 / lanes; // one sum alone would wait for each of its additions
    vf squares[ways] = {};
    for (int64_t k = 0; k < K; k += 32)
      for (int i = 0; i < ways; ++i) {
        const vf v = load<vf>(x + t * stride + k + i * lanes);
        squares[i] += v * v;
      }
    float total = 0;
    for (const vf& sum : squares) total += sum_of(sum);
    inverse[t] = total > 0 ? 1.0f / total : 0.0f;
  }
  int least = 0; // where the smallest of the shares is
  for (int i = 0; i < lltool::outlier_columns; ++i) columns[i] = i;
  for (int64_t k = 0; k < K; k += lanes) {
    vf sum{};
    for (int t = 0; t < tokens; ++t) sum += load<vf>(x + t * stride + k) * load<vf>(x + t * stride + k) * inverse[t];
    if (k > 0 && highest(sum) <= share[least]) continue;
    for (int i = 0; i < lanes; ++i) {
      const bool first = k + i < lltool::outlier_columns;
      if (!first && sum[i] <= share[least]) continue;
      const int place = first ? int(k) + i : least;
      columns[place] = int32_t(k) + i;
      share[place] = sum[i];
      for (int j = 0; j < lltool::outlier_columns; ++j)
        if (share[j] < share[least]) least = j;
    }
  }
}

// Rows from `from` on become zero.
template <class T, int count, int columns> inline void clear_rows(T (&rows)[count][columns], int64_t from) {
  for (int64_t r = from; r < count; ++r) std::memset(rows[r], 0, sizeof rows[r]);
}

// Panel layout: q (K / 4, panel, 4), scale (K / 32, panel), sum (K / 16, panel) and then sums of 32 (K / 32, panel).
void quantize_panel(const float* x, int64_t stride, int tokens, int64_t K, Quantized out) {
  alignas(64) int8_t q[panel][strip];
  alignas(64) float scale[panel][lanes], part[strip];
  int32_t columns[lltool::outlier_columns];
  clear_rows(q, tokens);
  clear_rows(scale, tokens);
  if (out.outliers) {
    find_outliers(x, stride, tokens, K, columns);
    for (int i = 0; i < lltool::outlier_columns; ++i)
      for (int t = 0; t < panel; ++t) out.outliers[i * panel + t] = t < tokens ? x[t * stride + columns[i]] : 0.0f;
    std::memcpy(out.outliers + lltool::outlier_columns * panel, columns, sizeof columns);
  }
  for (int64_t k = 0; k < K; k += strip) {
    const int64_t count = K - k < strip ? K - k : strip;
    for (int t = 0; t < tokens; ++t) {
      for (int64_t i = 0; i < count; i += lanes) store(part + i, load<vf>(x + t * stride + k + i));
      for (int i = 0; i < lltool::outlier_columns && out.outliers; ++i)
        if (columns[i] >= k && columns[i] < k + count) part[columns[i] - k] = 0;
      quantize_strip<127>(part, count, q[t], scale[t]);
    }
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
