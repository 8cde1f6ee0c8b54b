// Products of one or two tokens with one row of a weight at a time, so that memory is read as one stream.
#pragma once
#include "linear-inl.h"

namespace {

// The weights of a step as codes in the layout of the activations, and what scales each lane: all of it by [0] for groups
// of 32; of groups of 16, each half by its own.
struct Weights {
  vb codes[2]; // 0-15 of the groups, 16-31
  vf scale[2], min[2];
};

template <class F> inline void spread_scales(const float* scale, const float* min, Weights& w) {
  if constexpr (F::group == 32) {
    w.scale[0] = spread<0, 1>(scale);
    if constexpr (F::has_min) w.min[0] = spread<0, 1>(min);
  } else {
    w.scale[0] = spread<0, 2>(scale);
    w.scale[1] = spread<1, 2>(scale);
    if constexpr (F::has_min) {
      w.min[0] = spread<0, 2>(min);
      w.min[1] = spread<1, 2>(min);
    }
  }
}

// A row of the file, whose codes are made in registers.
template <class F> struct PackedRow {
  static constexpr int unit = F::block > step ? F::block : step; // columns that share a Block
  const uint8_t* p;

  struct Block {
    alignas(64) float scale[F::block / F::group], min[F::block / F::group];
  };
  void move(int64_t columns) { p += columns / F::block * F::bytes; }
  void read(Block& block) const {
    if constexpr (F::block > 32) F::scales(p, block.scale, block.min);
  }
  // The step at `column` of the unit.
  Weights at(int column, const Block& block) const {
    const auto codes = F::template codes<Lanes<lane_groups>>(p, column / 32);
    Weights w;
    w.codes[0] = (vb)codes.low;
    w.codes[1] = (vb)codes.high;
    if constexpr (F::block > 32) {
      spread_scales<F>(block.scale + column / F::group, block.min + column / F::group, w);
    } else {
      w.scale[0] = spread_halves<F::bytes>(p);
      if constexpr (F::has_min) w.min[0] = spread_halves<F::bytes>(p + 2);
    }
    return w;
  }
};

// A row that was unpacked.
template <class F> struct UnpackedRow {
  static constexpr int unit = step;
  Row row;

  struct Block {};
  void move(int64_t columns) {
    row.codes += columns;
    row.scale += columns / F::group;
    row.min += columns / F::group;
  }
  void read(Block&) const {}
  Weights at(int, const Block&) const {
    Weights w;
    w.codes[0] = (vb)Lanes<lane_groups>::gather([&](int j) { return row.codes + 32 * j; });
    w.codes[1] = (vb)Lanes<lane_groups>::gather([&](int j) { return row.codes + 32 * j + 16; });
    spread_scales<F>(row.scale, row.min, w);
    return w;
  }
};

// A step of a token as weights of a format want it: dot products begin at `start`, sums of q * -zero; minima are multiplied
// with `sum`. One of each for groups of 32, two for groups of 16.
template <class F> struct TokenStep {
  static constexpr int halves = 32 / F::group;
  vb q[2];
  vf scale;
  vi start[halves];
  vf sum[halves];
};

// Every `apart`-th step from `to` on.
template <class F> inline void prepare(Quantized x, int64_t K, TokenStep<F>* to, int apart) {
  for (int64_t k = 0; k < K; k += step, to += apart) {
    to->q[0] = load<vb>(x.q + k);
    to->q[1] = load<vb>(x.q + k + step / 2);
    to->scale = load<vf>(x.scale + k / 8);
    vi sum[2] = {load<vi>(x.sum + k / 4), load<vi>(x.sum + k / 4 + lanes)};
    if (to->halves == 1) sum[0] += sum[1];
    for (int half = 0; half < to->halves; ++half) {
      to->start[half] = sum[half] * (dot_bias<F::max_code> - F::zero);
      to->sum[half] = to_float(sum[half]) * to->scale;
    }
  }
}

// Lanes of a sum. What minima add is a sum of its own: one after the other they would wait for each other.
struct Sum {
  vf products, minima;
};

template <class F> inline void multiply_step(const Weights& w, const TokenStep<F>& x, Sum& acc) {
  if constexpr (F::group == 32) {
    acc.products += to_float(dot4<F::max_code>(x.start[0], w.codes, x.q)) * (x.scale * w.scale[0]);
    if constexpr (F::has_min) acc.minima += x.sum[0] * w.min[0];
  } else {
    const auto half = [&](int i) { return to_float(dot4<F::max_code>(x.start[i], w.codes[i], x.q[i])) * w.scale[i]; };
    acc.products += (half(0) + half(1)) * x.scale;
    if constexpr (F::has_min) acc.minima += x.sum[0] * w.min[0] + x.sum[1] * w.min[1];
  }
}

// A row times N tokens, whose steps x has in turns; the lanes of acc sum to: sum over k of (scale * (code - zero) + min) * x[k].
template <class F, int N, class AnyRow> inline void dot_row(AnyRow row, const TokenStep<F>* x, int64_t K, vf (&acc)[N]) {
  typename AnyRow::Block block;
  Sum sum[N] = {};
  const auto take = [&](int column) {
    const Weights w = row.at(column, block);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) multiply_step<F>(w, x[n], sum[n]);
    x += N;
  };
  for (int64_t unit = 0; unit + AnyRow::unit <= K; unit += AnyRow::unit) {
    row.read(block);
#pragma GCC unroll 8
    for (int column = 0; column < AnyRow::unit; column += step) take(column);
    row.move(AnyRow::unit);
  }
  if (K % AnyRow::unit) { // only where the unit is a step
    if (K > step) row.move(K % step - step);
    take(0);
  }
  for (int n = 0; n < N; ++n) acc[n] = F::has_min ? sum[n].products + sum[n].minima : sum[n].products;
}

// Touches the pages that the row a page further on begins: no hardware prefetcher crosses into a page, and where memory is
// virtual twice over, the first word of one is waited for as long as the rest of it.
inline void touch_ahead(const uint8_t* row, int64_t bytes) {
  constexpr uintptr_t page = 4096;
  const uintptr_t from = reinterpret_cast<uintptr_t>(row) + page;
  for (uintptr_t p = (from | (page - 1)) + 1; p <= from + uintptr_t(bytes); p += page) __builtin_prefetch(reinterpret_cast<const void*>(p));
}

// Rows [begin, end), of which row(r) gives the one, times N tokens: out[t * stride + r].
template <class F, int N, class Row>
inline void multiply_rows(int64_t begin, int64_t end, const TokenStep<F>* x, int64_t K, float* out, int64_t stride, Row row) {
  // One row at a time: two side by side, at 2 tokens, were read half as fast as one stream of memory.
  constexpr int together = lanes / N; // rows whose lanes are summed up at once
  for (int64_t r = begin; r < end; r += together) {
    const int rows = end - r < together ? int(end - r) : together;
    vf all[lanes];
    for (int i = 0; i < together; ++i) {
      vf acc[N] = {};
      if (i < rows) dot_row<F>(row(r + i), x, K, acc);
      for (int n = 0; n < N; ++n) all[i * N + n] = acc[n];
    }
    alignas(64) float sums[lanes];
    store(sums, reduce_each(all, [](vf a, vf b) { return a + b; }));
    for (int n = 0; n < N; ++n)
      for (int i = 0; i < rows; ++i) out[n * stride + r + i] = sums[i * N + n];
  }
}

template <class F, int N>
void multiply_tokens(const Matrix& w, int64_t begin, int64_t end, Quantized x, float* out, int64_t stride, void* scratch) {
  const int64_t K = w.columns, Kp = padded(K), groups = Kp / F::group, steps = Kp / step;
  TokenStep<F>* token = static_cast<TokenStep<F>*>(scratch);
  for (int t = 0; t < N; ++t) prepare<F>(x.token(t, Kp), K, token + t, N);
  const auto at = [&](int64_t r) {
    const uint8_t* p = w.data + r * w.row_bytes;
    touch_ahead(p, w.row_bytes);
    return p;
  };
  if constexpr (is_in_registers<F>) {
    if (K >= step) {
      multiply_rows<F, N>(begin, end, token, K, out, stride, [&](int64_t r) { return PackedRow<F>{at(r)}; });
      return;
    }
  }
  float* scales = reinterpret_cast<float*>(token + N * steps);
  const Row row{reinterpret_cast<uint8_t*>(scales + 2 * groups), scales, scales + groups};
  for (int64_t g = K / F::group; g < groups; ++g) row.scale[g] = row.min[g] = 0;
  multiply_rows<F, N>(begin, end, token, K, out, stride, [&](int64_t r) {
    unpack_row<F>(at(r), K, row);
    return UnpackedRow<F>{row};
  });
}

void matvec(const Matrix& w, int64_t begin, int64_t end, Quantized x, int tokens, float* out, int64_t stride, void* scratch) {
  with_format(w.type, [&](auto format) {
    using F = decltype(format);
    tokens == 1 ? multiply_tokens<F, 1>(w, begin, end, x, out, stride, scratch) : multiply_tokens<F, 2>(w, begin, end, x, out, stride, scratch);
  });
}

} // namespace
