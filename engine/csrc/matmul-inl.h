// Products of many tokens: a tile of `lanes` rows of a weight against panels of tokens.
#pragma once
#include <algorithm>

#include "linear-inl.h"

namespace {

// A tile of `lanes` rows, unpacked: codes (K / 4, lanes, 4), scale and min (K / group, lanes).
struct UnpackedTile {
  uint8_t* codes;
  float *scale, *min;
};

// A tile times N tokens of a panel; out is (N, lanes). `zero` is the code of weight 0 where `centered`.
template <int N, int group, int max_code, bool centered, bool has_min>
inline void multiply_tile(UnpackedTile w, int zero, Quantized x, int64_t K, float* out) {
  constexpr int whole = (panel + lanes - 1) / lanes * lanes;
  const int32_t* sum = group == 32 ? x.sum + K / 16 * panel : x.sum;
  vf acc[N];
  for (int t = 0; t < N; ++t) acc[t] = vf{};
  for (int i = 0; i < lltool::outlier_columns && x.outliers; ++i) {
    const int64_t k = reinterpret_cast<const int32_t*>(x.outliers + lltool::outlier_columns * panel)[i];
    const vi code = (vi)(load<vu>(w.codes + k / 4 * lanes * 4) >> uint32_t(k % 4 * 8) & 255) - zero;
    vf weight = to_float(code) * load<vf>(w.scale + k / group * lanes);
    if constexpr (has_min) weight += load<vf>(w.min + k / group * lanes);
    for (int t = 0; t < N; ++t) acc[t] += weight * x.outliers[i * panel + t];
  }
  for (int64_t g = 0; g < K / group; ++g, sum += panel) {
    const float* xs = x.scale + (group == 32 ? g : g / 2) * panel;
    vi dot[N];
    if constexpr (centered) { // the offset of such formats is the accumulator's start value
      int32_t start[whole];
      for (int i = 0; i < whole; i += lanes) store(start + i, load<vu>(sum + i) * uint32_t(dot_bias<max_code> - zero));
      for (int t = 0; t < N; ++t) dot[t] = splat(start[t]);
    } else {
      for (int t = 0; t < N; ++t) dot[t] = vi{};
    }
    for (int k = 0; k < group / 4; ++k, w.codes += lanes * 4, x.q += panel * 4)
      dot4_splat<max_code>(dot, load<vb>(w.codes), x.q);
    const vf s = load<vf>(w.scale + g * lanes);
    for (int t = 0; t < N; ++t) acc[t] += to_float(dot[t]) * (s * xs[t]);
    if constexpr (has_min) {
      const vf m = load<vf>(w.min + g * lanes);
      float product[whole];
      for (int i = 0; i < whole; i += lanes) store(product + i, load<vf>(xs + i) * to_float(load<vi>(sum + i)));
      for (int t = 0; t < N; ++t) acc[t] += m * product[t];
    }
  }
  for (int t = 0; t < N; ++t) store(out + t * lanes, acc[t]);
}

template <class F> void multiply_panel(UnpackedTile w, Quantized x, int tokens, int64_t K, float* out) {
  constexpr int max_code = F::max_code <= 127 ? 127 : 255;
  constexpr bool centered = F::zero != dot_bias<max_code>;
  if constexpr (panel > 8)
    if (tokens > 8) return multiply_tile<panel, F::group, max_code, centered, F::has_min>(w, F::zero, x, K, out);
  if constexpr (panel > 4)
    if (tokens > 4) return multiply_tile<8, F::group, max_code, centered, F::has_min>(w, F::zero, x, K, out);
  multiply_tile<4, F::group, max_code, centered, F::has_min>(w, F::zero, x, K, out);
}

constexpr int unpacked = 256; // columns of a tile that are unpacked and transposed at once: no format's block is longer

template <class F> void unpack_tile(const uint8_t* p, int64_t row_bytes, int64_t rows, int64_t K, UnpackedTile to) {
  alignas(64) uint8_t codes[lanes][unpacked];
  alignas(64) float scale[lanes][unpacked / 16], min[lanes][unpacked / 16];
  for (int64_t r = rows; r < lanes; ++r) {
    std::memset(codes[r], 0, unpacked);
    std::memset(scale[r], 0, sizeof scale[r]);
    std::memset(min[r], 0, sizeof min[r]);
  }
  for (int64_t k = 0; k < K; k += unpacked, p += unpacked / F::block * F::bytes) {
    const int64_t columns = K - k < unpacked ? K - k : unpacked;
    for (int64_t r = 0; r < rows; ++r) unpack_row<F>(p + r * row_bytes, columns, {codes[r], scale[r], min[r]});
    transpose_rows<lanes>(reinterpret_cast<const int32_t*>(codes), unpacked / 4, columns / 4, reinterpret_cast<int32_t*>(to.codes + k * lanes));
    transpose_rows<lanes>(scale[0], unpacked / 16, columns / F::group, to.scale + k / F::group * lanes);
    if constexpr (F::has_min) transpose_rows<lanes>(min[0], unpacked / 16, columns / F::group, to.min + k / F::group * lanes);
  }
}

// A tile's rows are read a few columns at a time, which no hardware prefetcher follows.
inline void prefetch_lines(const uint8_t* begin, const uint8_t* end) {
  for (; begin < end; begin += 64) __builtin_prefetch(begin, 0, 2);
}

inline void copy_tile(const float* tile, int64_t rows, int64_t tokens, float* out, int64_t stride) {
  for (int64_t t = 0; t < tokens; ++t, out += stride, tile += lanes)
    rows == lanes ? store(out, load<vf>(tile)) : void(std::memcpy(out, tile, size_t(rows) * 4));
}

template <class F>
void matmul_format(const Matrix& w, int64_t begin, int64_t end, Quantized x, int64_t T, float* out, int64_t stride, void* scratch) {
  const int64_t K = w.columns, groups = K / F::group, tiles = (end - begin + lanes - 1) / lanes;
  UnpackedTile all; // the tiles one after the other
  all.codes = static_cast<uint8_t*>(scratch);
  all.scale = reinterpret_cast<float*>(all.codes + tiles * lanes * K);
  all.min = all.scale + tiles * lanes * groups;
  const auto tile = [&](int64_t i) {
    return UnpackedTile{all.codes + i * lanes * K, all.scale + i * lanes * groups, all.min + i * lanes * groups};
  };
  const auto rows = [&](int64_t i) { return std::min<int64_t>(end - begin - i * lanes, lanes); };
  const auto data = [&](int64_t i) { return w.data + std::min(begin + i * lanes, end) * w.row_bytes; };
  const auto unpack = [&](int64_t i) {
    prefetch_lines(data(i + 1), data(i + 2));
    unpack_tile<F>(data(i), w.row_bytes, rows(i), K, tile(i));
  };
  alignas(64) float result[panel * lanes];
  const auto multiply = [&](int64_t i, int64_t t, int64_t tokens) {
    multiply_panel<F>(tile(i), x, int(tokens), K, result);
    copy_tile(result, rows(i), tokens, out + t * stride + begin + i * lanes, stride);
  };
  prefetch_lines(data(0), data(1));
  if (T <= panel) { // a tile is multiplied while it is in the nearest cache
    for (int64_t i = 0; i < tiles; ++i) unpack(i), multiply(i, 0, T);
    return;
  }
  for (int64_t i = 0; i < tiles; ++i) unpack(i);
  const int64_t most = lltool::panel_tokens(T, panel);
  for (int64_t t = 0; t < T; t += most, x = x.token(panel, K))
    for (int64_t i = 0; i < tiles; ++i) multiply(i, t, std::min(most, T - t));
}

void matmul(const Matrix& w, int64_t begin, int64_t end, Quantized x, int64_t T, float* out, int64_t stride, void* scratch) {
  with_format(w.type, [&](auto format) {
    matmul_format<decltype(format)>(w, begin, end, x, T, out, stride, scratch);
  });
}

} // namespace
