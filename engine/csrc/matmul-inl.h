// Products of many tokens: a tile of `lanes` rows of a weight against panels of tokens.
#pragma once
#include "linear-inl.h"

namespace {

// One tile and one panel. codes (K / 4, lanes, 4), scale and min (K / group, lanes); q, x_scale, sum in panel layout.
template <int group, int zero, int max_code, bool has_min>
inline void multiply_tile(const uint8_t* codes, const float* scale, const float* min, Quantized x, int64_t K, float* out) {
  constexpr int whole = (panel + lanes - 1) / lanes * lanes;
  const int8_t* q = x.q;
  const int32_t* sum = group == 32 ? x.sum + K / 16 * panel : x.sum;
  vf acc[panel];
  for (int t = 0; t < panel; ++t) acc[t] = vf{};
  for (int64_t g = 0; g < K / group; ++g) {
    const float* xs = x.scale + (group == 32 ? g : g / 2) * panel;
    vi dot[panel];
    if constexpr (zero != 0) { // the offset of symmetric formats is the accumulator's start value
      int32_t start[whole];
      for (int i = 0; i < whole; i += lanes) store(start + i, load<vi>(sum + g * panel + i) * -zero);
      for (int t = 0; t < panel; ++t) dot[t] = splat(start[t]);
    } else {
      for (int t = 0; t < panel; ++t) dot[t] = vi{};
    }
    for (int k = 0; k < group / 4; ++k, codes += lanes * 4, q += panel * 4) {
      dot4_splat<max_code>(dot, load<vb>(codes), q);
    }
    const vf s = load<vf>(scale + g * lanes);
    for (int t = 0; t < panel; ++t) acc[t] += to_float(dot[t]) * (s * xs[t]);
    if constexpr (has_min) {
      const vf m = load<vf>(min + g * lanes);
      float product[whole];
      for (int i = 0; i < whole; i += lanes) store(product + i, load<vf>(xs + i) * to_float(load<vi>(sum + g * panel + i)));
      for (int t = 0; t < panel; ++t) acc[t] += m * product[t];
    }
  }
  for (int t = 0; t < panel; ++t) store(out + t * lanes, acc[t]);
}

inline void copy_tile(const float* tile, int64_t rows, int64_t tokens, float* out, int64_t stride) {
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t r = 0; r < rows; ++r) out[t * stride + r] = tile[t * lanes + r];
}

template <class F>
void matmul_format(const Matrix& w, int64_t begin, int64_t end, Quantized x, int64_t T, float* out, int64_t stride, void* scratch) {
  const int64_t K = w.columns, groups = K / F::group, tiles = (end - begin + lanes - 1) / lanes;
  uint8_t* codes = static_cast<uint8_t*>(scratch); // (tiles, K / 4, lanes, 4)
  float* scale = reinterpret_cast<float*>(codes + tiles * lanes * K);
  float* min = scale + tiles * lanes * groups;
  Row row;
  row.codes = reinterpret_cast<uint8_t*>(min + tiles * lanes * groups);
  row.scale = reinterpret_cast<float*>(row.codes + padded(K));
  row.min = row.scale + groups;
  for (int64_t r = 0; r < tiles * lanes; ++r) {
    if (begin + r < end) {
      unpack_row<F>(w.data + (begin + r) * w.row_bytes, K, row);
    } else {
      std::memset(row.codes, 0, size_t(K));
      std::memset(row.scale, 0, size_t(2 * groups) * 4);
    }
    const int64_t lane = r % lanes;
    uint8_t* c = codes + r / lanes * lanes * K + lane * 4;
    for (int64_t k = 0; k < K / 4; ++k) std::memcpy(c + k * lanes * 4, row.codes + 4 * k, 4);
    float *s = scale + r / lanes * lanes * groups + lane, *m = min + r / lanes * lanes * groups + lane;
    for (int64_t g = 0; g < groups; ++g) s[g * lanes] = row.scale[g];
    if constexpr (F::has_min)
      for (int64_t g = 0; g < groups; ++g) m[g * lanes] = row.min[g];
  }
  alignas(64) float tile[panel * lanes];
  for (int64_t t = 0; t < T; t += panel) {
    const int64_t p = t / panel;
    for (int64_t i = 0; i < tiles; ++i) {
      multiply_tile<F::group, F::zero - dot_bias<F::max_code>, F::max_code, F::has_min>(
          codes + i * lanes * K, scale + i * lanes * groups, min + i * lanes * groups, x.token(p * panel, K), K, tile);
      const int64_t first = begin + i * lanes;
      copy_tile(tile, end - first < lanes ? end - first : lanes, T - t < panel ? T - t : panel, out + t * stride + first, stride);
    }
  }
}

void matmul(const Matrix& w, int64_t begin, int64_t end, Quantized x, int64_t T, float* out, int64_t stride, void* scratch) {
  with_format(w.type, [&](auto format) {
    matmul_format<decltype(format)>(w, begin, end, x, T, out, stride, scratch);
  });
}

void matmul_f32(const Matrix& w, int64_t begin, int64_t end, const float* panels, int64_t T, float* out, int64_t stride, void* scratch) {
  constexpr int width = 2 * lanes; // rows a tile: two vectors share each broadcast of an activation
  const int64_t K = w.columns;
  float *tile = static_cast<float*>(scratch), *row = tile + width * K; // tile (K, width)
  const Decode decode = find_decode(w.type);
  for (int64_t first = begin; first < end; first += width) {
    const int64_t rows = end - first < width ? end - first : width;
    for (int64_t r = 0; r < width; ++r) {
      if (r < rows) decode(w.data + (first + r) * w.row_bytes, K, row);
      for (int64_t k = 0; k < K; ++k) tile[k * width + r] = r < rows ? row[k] : 0.0f;
    }
    for (int64_t t = 0; t < T; t += panel) {
      const float* x = panels + t * K;
      alignas(64) float result[panel * width] = {};
      // Sums of 256 products each: rounding errors grow with the length of a running sum.
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
      for (int i = 0; i < panel && t + i < T; ++i)
        std::memcpy(out + (t + i) * stride + first, result + i * width, size_t(rows) * 4);
    }
  }
}

} // namespace
