// Products of activations with weights of any format. Nothing here knows a format but unpack_row: a row becomes codes
// with a scale (and a minimum) a group, and the loops below see only those.
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

// 32 floats to int8 with the scale that maps the largest to 127; the sums of each half go to sum[0] and sum[1].
inline float quantize_32(const float* x, int8_t* q, int32_t* sum) {
  vf top{};
  for (int i = 0; i < 32; i += lanes) top = max(top, abs(load<vf>(x + i)));
  const float largest = highest(top), scale = largest / 127.0f, inverse = largest > 0 ? 127.0f / largest : 0.0f;
  typedef int8_t narrow __attribute__((vector_size(lanes)));
  for (int i = 0; i < 32; i += lanes)
    store(q + i, __builtin_convertvector(to_int(round(load<vf>(x + i) * inverse)), narrow));
  for (int half = 0; half < 2; ++half) {
    int32_t s = 0;
    for (int i = 0; i < 16; ++i) s += q[16 * half + i];
    sum[half] = s;
  }
  return scale;
}

void quantize_row(const float* x, int64_t K, Quantized out) {
  const int64_t Kp = padded(K);
  int32_t* sum32 = out.sum + Kp / 16;
  for (int64_t g = 0; g < K / 32; ++g) {
    out.scale[g] = quantize_32(x + 32 * g, out.q + 32 * g, out.sum + 2 * g);
    sum32[g] = out.sum[2 * g] + out.sum[2 * g + 1];
  }
  for (int64_t g = K / 32; g < Kp / 32; ++g) {
    std::memset(out.q + 32 * g, 0, 32);
    out.scale[g] = 0;
    out.sum[2 * g] = out.sum[2 * g + 1] = sum32[g] = 0;
  }
}

// Panel layout: q (K / 4, panel, 4), scale (K / 32, panel), sum (K / 16, panel) and then sums of 32 (K / 32, panel).
void quantize_panel(const float* x, int64_t stride, int tokens, int64_t K, Quantized out) {
  alignas(64) int8_t q[32];
  int32_t sum[2];
  for (int t = 0; t < panel; ++t)
    for (int64_t g = 0; g < K / 32; ++g) {
      float scale = 0;
      if (t < tokens) {
        scale = quantize_32(x + t * stride + 32 * g, q, sum);
      } else {
        std::memset(q, 0, 32);
        sum[0] = sum[1] = 0;
      }
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

// ---- a few tokens: one row of the weight at a time ----

#if defined(__AVX512VNNI__)
typedef Codes64 Width;
#else
typedef Codes32 Width;
#endif

// Where dot_rows takes codes from: at(r, k, whole) is Width::count of row r from column k on; not whole, only 32 are left.
struct StoredCodes {
  const uint8_t* codes;
  int64_t stride; // bytes a row
  Width::Bytes at(int r, int64_t k, bool) const { return load<Width::Bytes>(codes + r * stride + k); }
};
// Made in registers from the file's bytes. The rows that come next are fetched as these are multiplied, so that memory
// never waits for arithmetic, or the reverse.
template <class F> struct PackedCodes {
  const uint8_t* data;
  int64_t row_bytes, next_rows; // bytes a row, and to the rows that come next
  Width::Bytes at(int r, int64_t k, bool whole) const {
    const uint8_t* block = data + k / F::block * F::bytes + r * row_bytes;
    __builtin_prefetch(block + next_rows);
    return F::template codes<Width>(block, F::block == 32 && whole ? block + F::bytes : block, int(k % F::block / 32));
  }
};

// Scales (and minima) of a few rows, and scratch for scale * activation scale of each group; `stride` floats a row.
struct Scales {
  float *scale, *min, *product;
  int64_t stride;
};

// out[r] = sum over k of (scale * (code - zero) + min) * x[k] for R rows, which share the reads of x.
template <class F, int R, class Codes>
inline void dot_rows(const Codes& codes, Scales s, const int8_t* q, const float* x_scale, const int32_t* sum, int64_t K, float* out) {
  constexpr int group = F::group;
  const int64_t Kp = padded(K), groups = Kp / group;
  const int32_t* group_sum = group == 32 ? sum + Kp / 16 : sum;
  vf acc[R];
  for (int r = 0; r < R; ++r) acc[r] = vf{};
  const auto x_scales = [&](int64_t at) {
    if constexpr (group == 32) {
      return load<vf>(x_scale + at);
    } else {
      vi twice;
      for (int i = 0; i < lanes; ++i) twice[i] = i / 2;
      return __builtin_shuffle(load<vf>(x_scale + at / 2), twice);
    }
  };
  for (int64_t g = 0; g < groups; g += lanes) {
    const vf xs = x_scales(g), scaled = xs * to_float(load<vi>(group_sum + g)), offset = scaled * float(F::zero);
    for (int r = 0; r < R; ++r) {
      const vf scale = load<vf>(s.scale + r * s.stride + g);
      store(s.product + r * s.stride + g, scale * xs);
      if constexpr (F::zero != 0) acc[r] -= scale * offset;
      if constexpr (F::has_min) acc[r] += load<vf>(s.min + r * s.stride + g) * scaled;
    }
  }
  const auto multiply = [&](int64_t k, bool whole) {
    constexpr int step = lanes * 4; // codes a vector
    for (int r = 0; r < R; ++r) {
      const Width::Bytes made = codes.at(r, k, whole);
      for (int i = 0; i < Width::count; i += step) {
        const vb w = load<vb>(reinterpret_cast<const uint8_t*>(&made) + i);
        const vi dot = dot4<F::max_code>(vi{}, w, load<vb>(q + k + i));
        acc[r] += to_float(dot) * spread<group>(s.product + r * s.stride + (k + i) / group);
      }
    }
  };
  int64_t k = 0;
  for (; k + Width::count <= K; k += Width::count) multiply(k, true);
  if (k < K) multiply(k, false); // x is zero past the end
  for (int r = 0; r < R; ++r) out[r] = sum_of(acc[r]);
}

// The half at position `at` of each of n blocks of F, eight at a time.
template <class F> inline void gather_halves(const uint8_t* blocks, int64_t at, int64_t n, uint8_t* halves) {
  typedef uint16_t Halves8 __attribute__((vector_size(16)));
  constexpr int64_t step = F::bytes;
  const uint8_t* p = blocks + 2 * at;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8, p += 8 * step)
    store(halves + 2 * i, Halves8{load_u16(p), load_u16(p + step), load_u16(p + 2 * step), load_u16(p + 3 * step), load_u16(p + 4 * step),
                                  load_u16(p + 5 * step), load_u16(p + 6 * step), load_u16(p + 7 * step)});
  for (; i < n; ++i, p += step) std::memcpy(halves + 2 * i, p, 2);
}

// The scales and minima of R rows. Halves are gathered first and converted together, with `halves` as scratch.
template <class F, int R> inline void read_scales(const uint8_t* data, int64_t row_bytes, int64_t K, Scales s, uint8_t* halves) {
  const int64_t blocks = K / F::block;
  constexpr int groups = F::block / F::group, kinds = F::has_min ? 2 : 1;
  if constexpr (F::block == 32) { // halves is (R, kinds, blocks)
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < kinds; ++i) gather_halves<F>(data + r * row_bytes, i, blocks, halves + 2 * (r * kinds + i) * blocks);
    for (int r = 0; r < R; ++r) {
      f16_row_to_f32(halves + 2 * (r * kinds) * blocks, blocks, s.scale + r * s.stride);
      if constexpr (F::has_min) f16_row_to_f32(halves + 2 * (r * kinds + 1) * blocks, blocks, s.min + r * s.stride);
    }
  } else {
    for (int r = 0; r < R; ++r)
      for (int64_t b = 0; b < blocks; ++b)
        F::scales(data + r * row_bytes + b * F::bytes, s.scale + r * s.stride + b * groups, s.min + r * s.stride + b * groups);
  }
}

// Reading the scales of a few rows before multiplying them keeps their scalar stores away from the vector loads.
constexpr int rows_at_once = 4;

// `codes` is scratch of R padded rows.
template <class F, int R>
void matvec_rows(const Matrix& w, int64_t r, Quantized x, int tokens, float* out, int64_t stride, uint8_t* codes, Scales s) {
  const int64_t K = w.columns, Kp = padded(K);
  const uint8_t* data = w.data + r * w.row_bytes;
  if constexpr (is_in_registers<F>) {
    if (tokens == 1) {
      read_scales<F, R>(data, w.row_bytes, K, s, codes);
      const PackedCodes<F> packed{data, w.row_bytes, R * w.row_bytes};
      dot_rows<F, R>(packed, s, x.q, x.scale, x.sum, K, out + r);
      return;
    }
  }
  // The hardware's prefetcher stops at pages, and starves while rows are multiplied.
  for (int64_t i = 0; i < R * w.row_bytes; i += 64) __builtin_prefetch(data + R * w.row_bytes + i, 0, 2);
  for (int i = 0; i < R; ++i) {
    const Row row{codes + i * Kp, s.scale + i * s.stride, s.min + i * s.stride};
    unpack_row<F>(data + i * w.row_bytes, K, row);
  }
  for (int t = 0; t < tokens; ++t)
    dot_rows<F, R>(StoredCodes{codes, Kp}, s, x.q + t * Kp, x.scale + t * (Kp / 32), x.sum + t * (Kp / 16 + Kp / 32), K,
                   out + t * stride + r);
}

template <class F>
void matvec_format(const Matrix& w, int64_t begin, int64_t end, Quantized x, int tokens, float* out, int64_t stride, void* scratch) {
  const int64_t Kp = padded(w.columns), groups = Kp / F::group;
  Scales s;
  s.stride = Kp / 16;
  s.scale = static_cast<float*>(scratch);
  s.min = s.scale + rows_at_once * s.stride;
  s.product = s.min + rows_at_once * s.stride;
  uint8_t* codes = reinterpret_cast<uint8_t*>(s.product + rows_at_once * s.stride);
  for (int i = 0; i < rows_at_once; ++i)
    for (int64_t g = w.columns / F::group; g < groups; ++g) s.scale[i * s.stride + g] = s.min[i * s.stride + g] = 0;
  int64_t r = begin;
  for (; r + rows_at_once <= end; r += rows_at_once) matvec_rows<F, rows_at_once>(w, r, x, tokens, out, stride, codes, s);
  for (; r < end; ++r) matvec_rows<F, 1>(w, r, x, tokens, out, stride, codes, s);
}

void matvec(const Matrix& w, int64_t begin, int64_t end, Quantized x, int tokens, float* out, int64_t stride, void* scratch) {
  with_format(w.type, [&](auto format) {
    matvec_format<decltype(format)>(w, begin, end, x, tokens, out, stride, scratch);
  });
}

inline float dot_f32(const float* a, const float* b, int64_t K) {
  vf acc[4] = {};
  int64_t k = 0;
  for (; k + 4 * lanes <= K; k += 4 * lanes)
    for (int i = 0; i < 4; ++i) acc[i] += load<vf>(a + k + i * lanes) * load<vf>(b + k + i * lanes);
  float tail = 0;
  for (; k < K; ++k) tail += a[k] * b[k];
  return sum_of((acc[0] + acc[1]) + (acc[2] + acc[3])) + tail;
}

void matvec_f32(const Matrix& w, int64_t begin, int64_t end, const float* x, int64_t x_stride, int tokens, float* out,
                int64_t stride, void* scratch) {
  float* row = static_cast<float*>(scratch);
  const Decode decode = find_decode(w.type);
  for (int64_t r = begin; r < end; ++r) {
    decode(w.data + r * w.row_bytes, w.columns, row);
    for (int t = 0; t < tokens; ++t) out[t * stride + r] = dot_f32(row, x + t * x_stride, w.columns);
  }
}

// ---- many tokens: a tile of `lanes` rows against panels of tokens ----

// One tile and one panel. codes (K / 4, lanes, 4), scale and min (K / group, lanes); q, x_scale, sum in panel layout.
template <int group, int zero, int max_code, bool has_min>
inline void multiply_tile(const uint8_t* codes, const float* scale, const float* min, const int8_t* q, const float* x_scale,
                          const int32_t* sum, int64_t K, float* out) {
  constexpr int whole = (panel + lanes - 1) / lanes * lanes;
  if (group == 32) sum += K / 16 * panel;
  vf acc[panel];
  for (int t = 0; t < panel; ++t) acc[t] = vf{};
  for (int64_t g = 0; g < K / group; ++g) {
    const float* xs = x_scale + (group == 32 ? g : g / 2) * panel;
    vi dot[panel];
    if constexpr (zero != 0) { // the offset of symmetric formats is the accumulator's start value
      int32_t start[whole];
      for (int i = 0; i < whole; i += lanes) store(start + i, load<vi>(sum + g * panel + i) * -zero);
      for (int t = 0; t < panel; ++t) dot[t] = splat(start[t]);
    } else {
      for (int t = 0; t < panel; ++t) dot[t] = vi{};
    }
    for (int k = 0; k < group / 4; ++k, codes += lanes * 4, q += panel * 4) {
      const vb w = load<vb>(codes);
      for (int t = 0; t < panel; ++t) dot[t] = dot4_splat<max_code>(dot[t], w, q + 4 * t);
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
      multiply_tile<F::group, F::zero, F::max_code, F::has_min>(
          codes + i * lanes * K, scale + i * lanes * groups, min + i * lanes * groups, x.q + p * panel * K,
          x.scale + p * panel * (K / 32), x.sum + p * panel * (K / 16 + K / 32), K, tile);
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
