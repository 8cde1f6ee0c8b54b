// Products of many tokens: tiles of `lanes` rows of a weight times panels of tokens.
#pragma once
#include <algorithm>

#include "linear-inl.h"

namespace {

// An unpacked tile of `lanes` rows: codes (K / 4, lanes, 4), scale and min (K / group, lanes). A product reads 32
// columns at a time: it calls begin() before the first 32 and next() after each 32.
template <int group> struct UnpackedTile {
  uint8_t* codes;
  float *scale, *min;

  void begin() {}
  vb code(int four) const { return load<vb>(codes + four * lanes * 4); }           // codes of four columns
  vf scale_of(int half) const { return load<vf>(scale + half * lanes); }           // of half of the 32 columns
  vf min_of(int half) const { return load<vf>(min + half * lanes); }
  void next() { *this = at(32); }
  UnpackedTile at(int64_t column) const { return {codes + column * lanes, scale + column / group * lanes, min + column / group * lanes}; }
};

// Calls multiply(N, to, stride) with N >= `tokens`, which writes N rows of `lanes` to `to`. That is `out` if all of
// them have room there, else a buffer from which `tokens` rows of `rows` are copied.
template <class Multiply> inline void write_tile(int64_t rows, int64_t tokens, float* out, int64_t stride, Multiply multiply) {
  const auto some = [&](auto N) {
    for (int64_t t = 0; t < tokens; ++t) __builtin_prefetch(out + t * stride, 1);
    if (rows == lanes && tokens == N) return multiply(N, out, stride);
    alignas(64) float result[N * lanes];
    multiply(N, result, int64_t(lanes));
    for (int64_t t = 0; t < tokens; ++t) std::memcpy(out + t * stride, result + t * lanes, size_t(rows) * 4);
  };
  if constexpr (panel > 8)
    if (tokens > 8) return some(std::integral_constant<int, panel>{});
  if constexpr (panel > 4)
    if (tokens > 4) return some(std::integral_constant<int, 8>{});
  some(std::integral_constant<int, 4>{});
}

// The terms that sums of a panel's activations add to the products of each group, (K / group, panel): `start` to
// integers, if the zero of codes is not 0, and `offset` for formats with minima, which are multiplied with it. They are in
// memory, because loading one to all lanes costs nothing beside arithmetic, while taking it out of a vector does.
struct PanelTerms {
  int32_t* start;
  float* offset;
};

template <class F> inline void take_terms(Quantized x, int64_t K, PanelTerms to) {
  constexpr int bias = dot_bias<F::max_code>;
  const int32_t* sum = F::group == 32 ? x.sum + K / 16 * panel : x.sum;
  const int64_t count = K / F::group * panel;
  if constexpr (F::zero != bias)
    for (int64_t i = 0; i < count; ++i) to.start[i] = sum[i] * (bias - F::zero);
  if constexpr (F::has_min)
    for (int64_t i = 0; i < count; ++i) to.offset[i] = float(sum[i]);
}

// Prefetches explicitly: a tile's rows are read a few columns at a time, which no hardware prefetcher follows.
inline void prefetch_lines(const uint8_t* begin, const uint8_t* end) {
  for (; begin < end; begin += 64) __builtin_prefetch(begin, 0, 2);
}

// The bytes that are needed next: a product prefetches `step` of them per 32 columns, or none if it is 0.
struct Ahead {
  const uint8_t* next;
  int64_t step;
};

// The vectors of `lanes` rows from which formats compute their scales.
struct RowVectors {
  using Word = vi;
  static constexpr int lanes = ::lanes;
  struct Words {
    vi word[4];
  };
  // The four words at the place of each row, transposed.
  static Words four_words(RowPlace b) {
    Words w;
    for (int i = 0; i < 4; ++i) w.word[i] = (vi)Rows<lane_groups>::gather<0>({b.p + i * b.stride, 4 * b.stride});
    transpose_fours(w.word);
    return w;
  }
  static vf halves(RowPlace b) { return gather_halves(b.p, b.stride); }
  static vf to_float(vi v) { return ::to_float(v); }
  static void store(float* p, vf v) { ::store(p, v); }
};

// A packed tile in the file, with the interface of UnpackedTile, for formats with small blocks unpacked in registers.
template <class F> struct PackedTile {
  const uint8_t* p;
  int64_t row_bytes;
  vi low[4], high[4];

  PackedTile(const uint8_t* first_row, int64_t bytes) : p(first_row), row_bytes(bytes) {}
  void begin() { take_group<F>(p, row_bytes, 0, low, high); }
  vb code(int four) const { return (vb)(four < 4 ? low[four] : high[four - 4]); }
  vf scale_of(int) const { return gather_halves(p, row_bytes); }
  vf min_of(int) const { return gather_halves(p + 2, row_bytes); }
  void next() { p += F::bytes; }
  PackedTile at(int64_t column) const { return {p + column / 32 * F::bytes, row_bytes}; }
};
template <class F> constexpr bool multiplies_packed = is_in_registers<F> && F::block == 32;

// The weights of one column, as floats.
template <class F, class Tile> inline vf column_of(const Tile& tile, int64_t column) {
  Tile w = tile.at(column / 32 * 32);
  const int place = int(column % 32);
  vi codes[8];
  w.begin();
#pragma GCC unroll 8
  for (int four = 0; four < 8; ++four) codes[four] = (vi)w.code(four);
  keep_in_memory(codes);
  const vi code = (vi)((vu)codes[place / 4] >> uint32_t(place % 4 * 8) & 255);
  return weights_of<F>(code, w.scale_of(place / F::group), F::has_min ? w.min_of(place / F::group) : vf{});
}

// Multiplies a tile by N tokens of a panel; out is (N, lanes) with `stride`. Not inlined: it needs all registers.
template <class F, int N, class Tile>
__attribute__((noinline)) void multiply_tile(Tile w, Quantized x, PanelTerms terms, int64_t K, Ahead ahead, float* out, int64_t stride) {
  constexpr int halves = 32 / F::group; // parts of 32 columns that have their own scales
  constexpr bool centered = F::zero != dot_bias<F::max_code>;
  vf acc[N];
#pragma GCC unroll 16
  for (int t = 0; t < N; ++t) acc[t] = vf{};
  for (int i = 0; i < *x.outliers.count; ++i) {
    const vf weight = column_of<F>(w, x.outliers.columns()[i]);
    const float* value = x.outliers.values(panel) + i * panel;
#pragma GCC unroll 16
    for (int t = 0; t < N; ++t) acc[t] = fused(weight, splat(value[t]), acc[t]);
  }
  for (int64_t k = 0; k < K; k += 32, x.scale += panel, ahead.next += ahead.step, w.next()) {
    prefetch_lines(ahead.next, ahead.next + ahead.step);
    w.begin();
    vf part[N];
#pragma GCC unroll 2
    for (int half = 0; half < halves; ++half, terms.start += panel, terms.offset += panel) {
      vi dot[N];
#pragma GCC unroll 16
      for (int t = 0; t < N; ++t) dot[t] = centered ? splat(terms.start[t]) : vi{};
      dot4_splat_each<F::max_code, F::group / 4>(dot, [&](int four) { return w.code(half * 4 + four); }, x.q);
      x.q += F::group * panel;
      const vf s = w.scale_of(half), m = F::has_min ? w.min_of(half) : vf{};
#pragma GCC unroll 16
      for (int t = 0; t < N; ++t) part[t] = add_products<F>(half, part[t], to_float(dot[t]), s, m, [&] { return splat(terms.offset[t]); });
    }
#pragma GCC unroll 16
    for (int t = 0; t < N; ++t) acc[t] = fused(part[t], splat(x.scale[t]), acc[t]);
  }
#pragma GCC unroll 16
  for (int t = 0; t < N; ++t) store(out + t * stride, acc[t]);
}

// Unpacks a whole tile of a format that is unpacked in registers.
template <class F> void unpack_whole_tile(const uint8_t* __restrict p, int64_t row_bytes, int64_t K, UnpackedTile<F::group> to) {
  constexpr int groups = F::block / F::group;
  uint8_t* __restrict to_codes = to.codes; // restrict: bytes that hold codes of two groups are loaded once
  for (int64_t k = 0; k < K; k += F::block, p += F::bytes, to.scale += groups * lanes, to.min += groups * lanes) {
    if constexpr (F::block == 32) {
      store(to.scale, gather_halves(p, row_bytes));
      if constexpr (F::has_min) store(to.min, gather_halves(p + 2, row_bytes));
    } else {
      F::template scales_of_rows<RowVectors>(RowPlace{p, row_bytes}, to.scale, to.min);
    }
#pragma GCC unroll 8
    for (int group = 0; group < F::block / 32; ++group, to_codes += 32 * lanes) {
      vi low[4], high[4];
      take_group<F>(p, row_bytes, group, low, high);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        store(to_codes + i * lanes * 4, low[i]);
        store(to_codes + (4 + i) * lanes * 4, high[i]);
      }
    }
  }
}

constexpr int unpacked = 256; // columns of a tile that are unpacked and transposed at once; no block is longer

template <class F> void unpack_tile(const uint8_t* p, int64_t row_bytes, int64_t rows, int64_t K, UnpackedTile<F::group> to) {
  if constexpr (is_in_registers<F>)
    if (rows == lanes) return unpack_whole_tile<F>(p, row_bytes, K, to);
  alignas(64) uint8_t codes[lanes][unpacked];
  alignas(64) float scale[lanes][unpacked / 16], min[lanes][unpacked / 16];
  clear_rows(codes, rows);
  clear_rows(scale, rows);
  clear_rows(min, rows);
  for (int64_t k = 0; k < K; k += unpacked, p += unpacked / F::block * F::bytes) {
    const int64_t columns = K - k < unpacked ? K - k : unpacked;
    for (int64_t r = 0; r < rows; ++r) unpack_row<F>(p + r * row_bytes, columns, {codes[r], scale[r], min[r]});
    transpose_rows<lanes>(reinterpret_cast<const int32_t*>(codes), unpacked / 4, columns / 4, reinterpret_cast<int32_t*>(to.codes + k * lanes));
    transpose_rows<lanes>(scale[0], unpacked / 16, columns / F::group, to.scale + k / F::group * lanes);
    if constexpr (F::has_min) transpose_rows<lanes>(min[0], unpacked / 16, columns / F::group, to.min + k / F::group * lanes);
  }
}

// Rows [begin, end) of a weight in tiles; `scratch` holds unpacked tiles from number 0 on, then the terms of a panel.
template <class F> struct TiledRows {
  using Unpacked = UnpackedTile<F::group>;
  const Matrix& w;
  int64_t begin, end, K = w.columns, groups = K / F::group, tiles = (end - begin + lanes - 1) / lanes;

  int64_t rows(int64_t i) const { return std::min<int64_t>(end - begin - i * lanes, lanes); }
  const uint8_t* data(int64_t i) const { return w.data + std::min(begin + i * lanes, end) * w.row_bytes; }
  Unpacked place(void* scratch, int64_t room, int64_t number) const {
    uint8_t* codes = static_cast<uint8_t*>(scratch);
    float* scale = reinterpret_cast<float*>(codes + room * lanes * K);
    return {codes + number * lanes * K, scale + number * lanes * groups, scale + (room + number) * lanes * groups};
  }
  PanelTerms terms(void* scratch, int64_t room) const {
    float* min = place(scratch, room, room).min;
    return {reinterpret_cast<int32_t*>(min), min + panel * groups};
  }
  void unpack(int64_t i, Unpacked to) const { unpack_tile<F>(data(i), w.row_bytes, rows(i), K, to); }
  // Multiplies tile i by `tokens` tokens of a panel; `out` points to row 0 of the first one.
  template <class Tile>
  void multiply(int64_t i, const Tile& tile, Quantized x, PanelTerms terms, int64_t tokens, Ahead ahead, float* out, int64_t stride) const {
    write_tile(rows(i), tokens, out + begin + i * lanes, stride, [&](auto N, float* to, int64_t to_stride) {
      multiply_tile<F, N>(tile, x, terms, K, ahead, to, to_stride);
    });
  }
};

// Multiplies one panel: each tile is multiplied while it is in the L1 cache, and the next one is prefetched meanwhile.
template <class F> void multiply_one_panel(TiledRows<F> rows, Quantized x, int64_t T, float* out, int64_t stride, void* scratch) {
  const UnpackedTile<F::group> tile = rows.place(scratch, 1, 0);
  const PanelTerms terms = rows.terms(scratch, 1);
  take_terms<F>(x, rows.K, terms);
  prefetch_lines(rows.data(0), rows.data(1));
  for (int64_t i = 0; i < rows.tiles; ++i) {
    const Ahead ahead{rows.data(i + 1), (rows.data(i + 2) - rows.data(i + 1)) * 32 / rows.K};
    if constexpr (multiplies_packed<F>)
      if (T <= 8 && rows.rows(i) == lanes) {
        rows.multiply(i, PackedTile<F>(rows.data(i), rows.w.row_bytes), x, terms, T, ahead, out, stride);
        continue;
      }
    rows.unpack(i, tile);
    rows.multiply(i, tile, x, terms, T, ahead, out, stride);
  }
}

template <class F> void multiply_panels(TiledRows<F> rows, Quantized x, int64_t T, float* out, int64_t stride, void* scratch) {
  const auto tile = [&](int64_t i) { return rows.place(scratch, rows.tiles, i); };
  const PanelTerms terms = rows.terms(scratch, rows.tiles);
  prefetch_lines(rows.data(0), rows.data(1));
  for (int64_t i = 0; i < rows.tiles; ++i) {
    prefetch_lines(rows.data(i + 1), rows.data(i + 2));
    rows.unpack(i, tile(i));
  }
  for (int64_t t = 0; t < T; t += panel, x = x.token(panel, rows.K), out += panel * stride) {
    take_terms<F>(x, rows.K, terms);
    for (int64_t i = 0; i < rows.tiles; ++i) rows.multiply(i, tile(i), x, terms, std::min<int64_t>(panel, T - t), {}, out, stride);
  }
}

void matmul(const Matrix& w, int64_t begin, int64_t end, Quantized x, int64_t T, float* out, int64_t stride, void* scratch) {
  QuantizedFormats::find(w.type, [&](auto format) {
    const TiledRows<decltype(format)> rows{w, begin, end};
    T <= panel ? multiply_one_panel(rows, x, T, out, stride, scratch) : multiply_panels(rows, x, T, out, stride, scratch);
  });
}

} // namespace
