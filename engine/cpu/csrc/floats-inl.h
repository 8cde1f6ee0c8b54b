// Products with weights as floats: for formats that store floats, and for all formats in precision f32.
#pragma once
#include "half.h"
#include "matmul-inl.h"
#include "matvec-inl.h"

namespace {

// ---- few tokens: each weight is read once and multiplied without conversion ----

// The type of an element of a row.
template <class F> using Item = std::conditional_t<F::type == F32::type, float, std::conditional_t<F::type == F16::type, Float16, Brain16>>;

// Multiplies a row by N tokens; the caller handles the columns that do not fill a vector. Two rows at once would share
// the loads of the tokens, but are read half as fast.
template <class F, int N> inline void dot_floats(const uint8_t* row, const float* const (&x)[N], int64_t K, vf (&acc)[N]) {
  // Several sums, because a single one would wait for each of its additions.
  constexpr int ways = N < 4 ? 4 : 1;
  vf part[ways][N] = {};
  const auto add = [&](int64_t k, int way) {
    const vf w = widen(reinterpret_cast<const Item<F>*>(row) + k);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) part[way][n] += w * load<vf>(x[n] + k);
  };
  int64_t k = 0;
  for (; k + ways * lanes <= K; k += ways * lanes)
#pragma GCC unroll 4
    for (int way = 0; way < ways; ++way) add(k + way * lanes, way);
  for (; k + lanes <= K; k += lanes) add(k, 0);
  for (int n = 0; n < N; ++n) {
    acc[n] = part[0][n];
    for (int way = 1; way < ways; ++way) acc[n] += part[way][n];
  }
}

template <class F, int N>
void multiply_floats(const Matrix& w, int64_t begin, int64_t end, const float* x, int64_t x_stride, int tokens, float* out, int64_t stride) {
  const int64_t K = w.columns, whole = K / lanes * lanes;
  const float* token[N];
  for (int n = 0; n < N; ++n) token[n] = x + (n < tokens ? n : 0) * x_stride;
  for (int64_t r = begin; r < end; ++r) {
    const uint8_t* row = w.data + r * w.row_bytes;
    touch_ahead(row, w.row_bytes);
    vf acc[N];
    dot_floats<F>(row, token, K, acc);
    float tail[lanes];
    if (whole < K) F::decode(row + whole * F::bytes, K - whole, tail);
    for (int n = 0; n < tokens; ++n) {
      float sum = sum_of(acc[n]);
      for (int64_t k = whole; k < K; ++k) sum += tail[k - whole] * token[n][k];
      out[n * stride + r] = sum;
    }
  }
}

constexpr int float_tokens = registers == 32 ? 8 : 4; // tokens whose sums fit in the registers

template <class F>
void matvec_floats(const Matrix& w, int64_t begin, int64_t end, const float* x, int64_t x_stride, int tokens, float* out, int64_t stride) {
  for (int t = 0; t < tokens; t += float_tokens) {
    const int n = tokens - t < float_tokens ? tokens - t : float_tokens;
    const auto some = [&](auto N) { multiply_floats<F, N>(w, begin, end, x + t * x_stride, x_stride, n, out + t * stride, stride); };
    if (n == 1) some(std::integral_constant<int, 1>{});
    else if (n <= 4) some(std::integral_constant<int, 4>{});
    else some(std::integral_constant<int, float_tokens>{});
  }
}

void matvec_f32(const Matrix& w, int64_t begin, int64_t end, const float* x, int64_t x_stride, int tokens, float* out,
                int64_t stride, void* scratch) {
  if (FloatFormats::find(w.type, [&](auto format) { matvec_floats<decltype(format)>(w, begin, end, x, x_stride, tokens, out, stride); })) return;
  float* row = static_cast<float*>(scratch);
  const Decode decode = find_decode(w.type);
  for (int64_t r = begin; r < end; ++r) {
    decode(w.data + r * w.row_bytes, w.columns, row);
    const Matrix one{F32::type, 1, w.columns, 0, reinterpret_cast<const uint8_t*>(row)};
    matvec_floats<F32>(one, 0, 1, x, x_stride, tokens, out + r, stride);
  }
}

// ---- many tokens, in float32 ----

void matmul_f32(const Matrix& w, int64_t begin, int64_t end, const float* panels, int64_t T, float* out, int64_t stride, void* scratch) {
  constexpr int width = 2 * lanes; // rows of a tile: two vectors share each broadcast of an activation
  const int64_t K = w.columns;
  float *tile = static_cast<float*>(scratch), *row = tile + width * K; // tile (K, width)
  const Decode decode = find_decode(w.type);
  for (int64_t first = begin; first < end; first += width) {
    const int64_t rows = end - first < width ? end - first : width;
    for (int64_t r = 0; r < width; ++r) {
      if (r < rows) decode(w.data + (first + r) * w.row_bytes, K, row);
      for (int64_t k = 0; k < K; ++k) tile[k * width + r] = r < rows ? row[k] : 0.0f;
    }
    const float* x = panels;
    for (int64_t t = 0; t < T; t += panel, x += panel * K) {
      alignas(64) float result[panel * width] = {};
      // Sums of 256 products each, because rounding errors grow with the length of a running sum.
      for (int64_t start = 0; start < K; start += 256) {
        const int64_t stop = start + 256 < K ? start + 256 : K;
        vf low[panel], high[panel];
        for (int i = 0; i < panel; ++i) low[i] = high[i] = vf{};
        for (int64_t k = start; k < stop; ++k) {
          const vf a = load<vf>(tile + k * width), b = load<vf>(tile + k * width + lanes);
          for (int i = 0; i < panel; ++i) {
            low[i] += a * x[k * panel + i];
            high[i] += b * x[k * panel + i];
          }
        }
        for (int i = 0; i < panel; ++i) {
          float* r = result + i * width;
          store(r, load<vf>(r) + low[i]);
          store(r + lanes, load<vf>(r + lanes) + high[i]);
        }
      }
      for (int64_t i = 0; i < panel && t + i < T; ++i)
        std::memcpy(out + (t + i) * stride + first, result + i * width, size_t(rows) * 4);
    }
  }
}

// ---- many tokens, both operands rounded to 14 bits: twice as fast as floats, 64 times as exact as int8 ----

constexpr int largest_short = 8191; // 32 products of two such numbers fit in an int32

bool can_multiply_shorts(int64_t columns) { return multiplies_pairs && columns % 32 == 0; }

// Rounds `rows` rows to a panel of tokens or a tile of weights: q (K / 2, width, 2), scale (K / 32, width).
template <int width, class Float> void shorten_rows(const Float* x, int64_t stride, int64_t rows, int64_t K, lltool::Shortened out) {
  alignas(64) int16_t q[width][strip];
  alignas(64) float scale[width][lanes];
  clear_rows(q, rows);
  clear_rows(scale, rows);
  for (int64_t k = 0; k < K; k += strip) {
    const int64_t count = K - k < strip ? K - k : strip;
    for (int64_t r = 0; r < rows; ++r) quantize_strip<largest_short>(x + r * stride + k, count, q[r], scale[r]);
    transpose_rows<width>(reinterpret_cast<const int32_t*>(q), strip / 2, count / 2, reinterpret_cast<int32_t*>(out.q + k * width));
    transpose_rows<width>(scale[0], lanes, count / 32, out.scale + k / 32 * width);
  }
}

void shorten_panel(const float* x, int64_t stride, int tokens, int64_t K, lltool::Shortened out) {
  shorten_rows<panel>(x, stride, tokens, K, out);
}

// Multiplies a tile by N tokens of a panel; out is (N, lanes), `stride` floats apart.
template <int N> inline void multiply_short_tile(lltool::Shortened w, lltool::Shortened x, int64_t K, float* out, int64_t stride) {
  vf acc[N];
  for (int t = 0; t < N; ++t) acc[t] = vf{};
  for (int64_t g = 0; g < K / 32; ++g, w.scale += lanes, x.scale += panel) {
    vi dot[N];
    for (int t = 0; t < N; ++t) dot[t] = vi{};
    for (int k = 0; k < 16; ++k, w.q += lanes * 2, x.q += panel * 2) {
      const vi two = load<vi>(w.q);
      for (int t = 0; t < N; ++t) dot[t] = dot2_splat(dot[t], two, x.q + 2 * t);
    }
    const vf s = load<vf>(w.scale);
    for (int t = 0; t < N; ++t) acc[t] += to_float(dot[t]) * (s * x.scale[t]);
  }
  for (int t = 0; t < N; ++t) store(out + t * stride, acc[t]);
}

template <class F>
void multiply_shorts(const Matrix& w, int64_t begin, int64_t end, lltool::Shortened x, int64_t T, float* out, int64_t stride, void* scratch) {
  const int64_t K = w.columns;
  lltool::Shortened tile;
  tile.scale = static_cast<float*>(scratch);
  tile.q = reinterpret_cast<int16_t*>(tile.scale + K / 32 * lanes);
  for (int64_t first = begin; first < end; first += lanes) {
    const int64_t rows = std::min<int64_t>(end - first, lanes);
    shorten_rows<lanes>(reinterpret_cast<const Item<F>*>(w.data + first * w.row_bytes), K, rows, K, tile);
    lltool::Shortened at = x;
    for (int64_t t = 0; t < T; t += panel, at = at.token(panel, K))
      write_tile(rows, std::min<int64_t>(panel, T - t), out + t * stride + first, stride, [&](auto N, float* to, int64_t to_stride) {
        multiply_short_tile<N>(tile, at, K, to, to_stride);
      });
  }
}

void matmul_shorts(const Matrix& w, int64_t begin, int64_t end, lltool::Shortened x, int64_t T, float* out, int64_t stride, void* scratch) {
  FloatFormats::find(w.type, [&](auto format) { multiply_shorts<decltype(format)>(w, begin, end, x, T, out, stride, scratch); });
}

} // namespace
