// Products of one or two tokens with a weight, one row at a time, so that memory is read as one stream.
#pragma once
#include "linear-inl.h"

namespace {

// Prefetches the start of each page that begins in the row one page ahead: hardware prefetchers do not cross pages, and
// on virtual machines the first word of a page takes as long as the rest of it.
inline void touch_ahead(const uint8_t* row, int64_t bytes) {
  constexpr uintptr_t page = 4096;
  const uintptr_t from = reinterpret_cast<uintptr_t>(row) + page;
  for (uintptr_t p = (from | (page - 1)) + 1; p <= from + uintptr_t(bytes); p += page) __builtin_prefetch(reinterpret_cast<const void*>(p));
}

// Prefetches `bytes` half a page ahead: the hardware prefetcher stops at the end of each page, and alone does not reach
// the rate of the memory.
template <int bytes> inline void fetch_ahead(const uint8_t* p) {
#pragma GCC unroll 8
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch(p + 2048 + i);
}

// The weights of a step: codes in the layout of the activations, and the scale of each lane. Groups of 32 use scale[0]
// for both halves; groups of 16 have a scale for each half.
struct Weights {
  vb codes[2]; // columns 0-15 of the groups, then 16-31
  vf scale[2];
};

template <class F> inline void spread_scales(const float* scale, Weights& w) {
  if constexpr (F::group == 32) {
    w.scale[0] = spread<0, 1>(scale);
  } else {
    w.scale[0] = spread<0, 2>(scale);
    w.scale[1] = spread<1, 2>(scale);
  }
}

// One float per group of a unit, at most eight at a time as scales are stored: a wider load would wait for two stores.
template <int groups> struct GroupFloats {
  typedef float type __attribute__((vector_size((groups < 8 ? groups : 8) * 4)));
};
// Dot products use codes, so each group adds its activations' sum times its minimum, or times its scale and this.
template <class F> constexpr float offset_of_scale = dot_bias<F::max_code> - F::zero;
template <class F> constexpr bool has_offset = F::has_min || offset_of_scale<F> != 0;

// A packed row in the file, whose codes are unpacked in registers.
template <class F> struct PackedRow {
  static constexpr int unit = F::block > step ? F::block : step; // columns that share a Block
  using Offsets = typename GroupFloats<unit / F::group>::type;
  const uint8_t* p;

  struct Block {
    alignas(64) float scale[F::block / F::group], min[F::block / F::group];
  };
  void move(int64_t columns) {
    p += columns / F::block * F::bytes;
    fetch_ahead<unit / F::block * F::bytes>(p);
  }
  void read(Block& block) const {
    if constexpr (F::block > 32) F::scales(p, block.scale, block.min);
  }
  Offsets offsets(const Block& block, int group) const {
    if constexpr (F::block > 32)
      return load<Offsets>((F::has_min ? block.min : block.scale) + group);
    else
      return first_halves<Offsets, F::bytes>(p + (F::has_min ? 2 : 0));
  }
  // The weights of the step at `column` of the unit.
  Weights at(int column, const Block& block) const {
    const auto codes = F::template codes<Lanes<lane_groups>>(p, column / 32);
    Weights w;
    w.codes[0] = (vb)codes.low;
    w.codes[1] = (vb)codes.high;
    if constexpr (F::block > 32) {
      spread_scales<F>(block.scale + column / F::group, w);
    } else {
      w.scale[0] = spread_halves<F::bytes>(p);
    }
    return w;
  }
};

// A row that was unpacked to memory.
template <class F> struct UnpackedRow {
  static constexpr int unit = step;
  using Offsets = typename GroupFloats<unit / F::group>::type;
  Row row;

  struct Block {};
  void move(int64_t columns) {
    row.codes += columns;
    row.scale += columns / F::group;
    row.min += columns / F::group;
  }
  void read(Block&) const {}
  Offsets offsets(const Block&, int group) const { return load<Offsets>((F::has_min ? row.min : row.scale) + group); }
  Weights at(int, const Block&) const {
    Weights w;
    w.codes[0] = (vb)Lanes<lane_groups>::gather([&](int j) { return row.codes + 32 * j; });
    w.codes[1] = (vb)Lanes<lane_groups>::gather([&](int j) { return row.codes + 32 * j + 16; });
    spread_scales<F>(row.scale, w);
    return w;
  }
};

// A step of a token. It holds only what is multiplied with every row, so that it stays in the L1 cache while rows pass
// through.
struct TokenStep {
  vb q[2];
  vf scale;
};

// N tokens: their steps interleaved, and the sums of the groups of each token, `groups` floats apart.
struct Tokens {
  const TokenStep* steps;
  const float* sums;
  int64_t groups;
};

// Writes a token's steps from `to` on, `apart` steps apart, and the sums of its groups.
template <class F> inline void prepare(Quantized x, int64_t K, TokenStep* to, int apart, float* sums) {
  constexpr int halves = 32 / F::group;
  for (int64_t k = 0; k < K; k += step, to += apart) {
    to->q[0] = load<vb>(x.q + k);
    to->q[1] = load<vb>(x.q + k + step / 2);
    to->scale = load<vf>(x.scale + k / 8);
    if constexpr (has_offset<F>) {
      vi sum[2] = {load<vi>(x.sum + k / 4), load<vi>(x.sum + k / 4 + lanes)};
      if (halves == 1) sum[0] += sum[1];
      vf part[halves];
      for (int half = 0; half < halves; ++half) part[half] = to_float(sum[half]) * to->scale;
      for (int i = 0; i < lanes; i += 4)
        for (const vf& v : part) *sums++ = v[i] + v[i + 1] + v[i + 2] + v[i + 3];
    }
  }
}

template <class F> inline void multiply_step(const Weights& w, const TokenStep& x, vf& acc) {
  if constexpr (F::group == 32) {
    acc += to_float(dot4<F::max_code>(vi{}, w.codes, x.q)) * (x.scale * w.scale[0]);
  } else {
    const auto half = [&](int i) { return to_float(dot4<F::max_code>(vi{}, w.codes[i], x.q[i])) * w.scale[i]; };
    acc += (half(0) + half(1)) * x.scale;
  }
}

// Multiplies a row by N tokens: the lanes of acc add up to the sum over k of (scale * (code - zero) + min) * x[k].
template <class F, int N, class AnyRow> inline void dot_row(AnyRow row, Tokens x, int64_t K, vf (&acc)[N]) {
  using Offsets = typename AnyRow::Offsets;
  typename AnyRow::Block block;
  Offsets offsets[N] = {};
  const auto take_offsets = [&] {
    if constexpr (has_offset<F>) {
      constexpr int groups = AnyRow::unit / F::group, width = sizeof(Offsets) / 4;
#pragma GCC unroll 2
      for (int g = 0; g < groups; g += width, x.sums += width) {
        const Offsets some = row.offsets(block, g);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) offsets[n] += some * load<Offsets>(x.sums + n * x.groups);
      }
    }
  };
  const auto take = [&](int column) {
    const Weights w = row.at(column, block);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) multiply_step<F>(w, x.steps[n], acc[n]);
    x.steps += N;
  };
  for (int64_t unit = 0; unit + AnyRow::unit <= K; unit += AnyRow::unit) {
    row.read(block);
    take_offsets();
#pragma GCC unroll 8
    for (int column = 0; column < AnyRow::unit; column += step) take(column);
    row.move(AnyRow::unit);
  }
  if constexpr (AnyRow::unit == step)
    if (K % step) {
      if (K > step) row.move(K % step - step);
      take_offsets();
      take(0);
    }
  if constexpr (has_offset<F>)
    for (int n = 0; n < N; ++n) acc[n] += to_lanes(offsets[n]) * (F::has_min ? 1.0f : offset_of_scale<F>);
}

// Multiplies rows row(r) for r in [begin, end) by N tokens, to out[t * stride + r].
template <class F, int N, class Row>
inline void multiply_rows(int64_t begin, int64_t end, Tokens x, int64_t K, float* out, int64_t stride, Row row) {
  // One row at a time: with 2 tokens, two rows side by side were read half as fast as a single stream of memory.
  constexpr int together = lanes / N; // rows whose lanes are summed at once
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
  TokenStep* token = static_cast<TokenStep*>(scratch);
  float* sums = reinterpret_cast<float*>(token + N * steps);
  for (int t = 0; t < N; ++t) prepare<F>(x.token(t, Kp), K, token + t, N, sums + t * groups);
  const Tokens tokens{token, sums, groups};
  const auto at = [&](int64_t r) {
    const uint8_t* p = w.data + r * w.row_bytes;
    touch_ahead(p, w.row_bytes);
    return p;
  };
  if constexpr (is_in_registers<F>) {
    if (K >= step) {
      multiply_rows<F, N>(begin, end, tokens, K, out, stride, [&](int64_t r) { return PackedRow<F>{at(r)}; });
      return;
    }
  }
  float* scales = sums + N * groups;
  const Row row{reinterpret_cast<uint8_t*>(scales + 2 * groups), scales, scales + groups};
  for (int64_t g = K / F::group; g < groups; ++g) row.scale[g] = row.min[g] = 0;
  multiply_rows<F, N>(begin, end, tokens, K, out, stride, [&](int64_t r) {
    unpack_row<F>(at(r), K, row);
    return UnpackedRow<F>{row};
  });
}

void matvec(const Matrix& w, int64_t begin, int64_t end, Quantized x, int tokens, float* out, int64_t stride, void* scratch) {
  QuantizedFormats::find(w.type, [&](auto format) {
    using F = decltype(format);
    tokens == 1 ? multiply_tokens<F, 1>(w, begin, end, x, out, stride, scratch) : multiply_tokens<F, 2>(w, begin, end, x, out, stride, scratch);
  });
}

} // namespace
