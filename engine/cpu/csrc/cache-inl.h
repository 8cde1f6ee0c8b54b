// The layout of KV cache pages. For each key/value head, a page holds keys transposed, (head_dim, page), so that keys
// are in lanes, and values as (page, head_dim). Types with blocks store ggml's codes in that order, followed by the
// scales, (head_dim / 32, page); byte i of a q4_0 block holds dimensions i and i + 16.
//
// Where attention multiplies pairs of int16, the types without blocks hold these pairs, made of numbers of the type: keys
// as (head_dim / 2, page, 2) with a float scale per key, values as (page / 2, width, 2) with an exponent per value.
// A key is relative to its length, 15 bits, so that a product of a query and a key fits in 31 bits; a value has 12 bits
// relative to its largest element, and its scale is a power of two.
#pragma once
#include <algorithm>
#include <cmath>

#include "hadamard-inl.h"
#include "kernels.h"
#include "vector.h"
#include "half.h"

namespace {

using lltool::CacheType;
using lltool::has_blocks;
using lltool::max_head_dim;
using lltool::page_tokens;

constexpr int cache_block = 32; // dimensions that share a scale
constexpr float key_length = 32766;
constexpr int value_bits = 12;

// Rounds a and b, which must fit int16, to a pair: the lowest bits of the float sum are the integer.
inline vi pair(vf a, vf b) { return ((vi)(a + 12582912.0f) & 0xffff) | (vi)(b + 12582912.0f) << 16; }

// Calls f(d, x) for each vector x of a row of n elements; the last one is padded with zeros.
template <class T, class Function> inline void each_vector(const T* row, int64_t n, Function f) {
  int64_t d = 0;
  for (; d + lanes <= n; d += lanes) f(d, widen(row + d));
  if (d == n) return;
  vf last = widen(row + d);
  for (int64_t i = n - d; i < lanes; ++i) last[i] = 0;
  f(d, last);
}

// The factor that scales a row to integers, and the factor that undoes it, from the row's sum of squares.
struct KeyScale {
  vf factor, back;
  explicit KeyScale(vf squares) {
    const vf norm = square_root(squares);
    factor = key_length / max(norm, splat(1e-30f));
    back = norm * (1 / key_length);
  }
};

// The exponents of values with these largest elements; exponents are limited for values that are all zero.
inline vi value_exponent(vf most) {
  const vi bits = ((vi)most >> 23) + (1 - 127 - value_bits);
  return bits > -64 ? bits : splat(-64);
}
inline vf power_of_two(vi exponent) { return (vf)((exponent + 127) << 23); }

// ---- storing

// Writes a token's row to its slot; the elements of a key are `page_tokens` apart.
template <class T> inline void place(const T* row, int64_t n, void* page, int slot, bool is_key) {
  T* to = static_cast<T*>(page);
  if (!is_key) {
    std::memcpy(to + slot * n, row, size_t(n) * sizeof(T));
    return;
  }
  for (int64_t i = 0; i < n; ++i) to[i * page_tokens + slot] = row[i];
}

// Stores the codes and scales of a row; a value halfway between two codes gets the even one.
inline void store_q8_0(const float* x, int64_t dim, void* page, int slot, bool is_key) {
  int8_t codes[max_head_dim];
  uint16_t* scales = reinterpret_cast<uint16_t*>(static_cast<int8_t*>(page) + dim * page_tokens) + slot;
  for (int64_t b = 0; b < dim; b += cache_block, scales += page_tokens) {
    vf most{};
    for (int i = 0; i < cache_block; i += lanes) most = max(most, abs(load<vf>(x + b + i)));
    const float scale = highest(most) / 127, inverse = scale != 0 ? 1 / scale : 0;
    for (int i = 0; i < cache_block; i += lanes) store_rounded(codes + b + i, load<vf>(x + b + i) * inverse);
    *scales = f32_to_f16(scale);
  }
  place(codes, dim, page, slot, is_key);
}

inline vf q4_0_code(vf x) { return min(max(round(x), splat(-8.0f)), splat(7.0f)); }

// The largest value of a block maps to one of these, before rounding: ggml's -8 alone has a tenth more error. None is
// halfway between two codes, where a single bit of `x` would decide.
constexpr float q4_0_ends[] = {-7.6f, -8.0f, -8.4f};

// Takes the codes of the best of three scales, then the scale with the least squared error for these codes.
inline void store_q4_0(const float* x, int64_t dim, void* page, int slot, bool is_key) {
  constexpr int n = cache_block / lanes;
  uint8_t codes[max_head_dim / 2];
  uint16_t* scales = reinterpret_cast<uint16_t*>(static_cast<uint8_t*>(page) + dim / 2 * page_tokens) + slot;
  for (int64_t b = 0; b < dim; b += cache_block, scales += page_tokens) {
    vf v[n], high{}, low{};
    for (int i = 0; i < n; ++i) {
      v[i] = load<vf>(x + b + i * lanes);
      high = max(high, v[i]), low = min(low, v[i]);
    }
    const float top = highest(high), bottom = -highest(-low), most = top < -bottom ? bottom : top;
    float least = INFINITY, chosen = 0;
    for (const float end : q4_0_ends) {
      const float scale = most / end, inverse = most != 0 ? 1 / scale : 0;
      vf errors{};
      for (int i = 0; i < n; ++i) {
        const vf error = v[i] - q4_0_code(v[i] * inverse) * scale;
        errors += error * error;
      }
      const float error = sum_of(errors);
      if (error < least) least = error, chosen = inverse;
    }
    int8_t code[cache_block];
    vf squares{};
    for (int i = 0; i < n; ++i) {
      const vf c = q4_0_code(v[i] * chosen);
      squares += c * c;
      store_rounded(code + i * lanes, c);
    }
    double products[4] = {}; // in float32, the order of summation would change one in some thousand scales
    for (int i = 0; i < cache_block; i += 4)
      for (int j = 0; j < 4; ++j) products[j] += double(code[i + j]) * double(x[b + i + j]);
    for (int i = 0; i < cache_block / 2; ++i) codes[b / 2 + i] = uint8_t((code[i] + 8) | (code[i + cache_block / 2] + 8) << 4);
    const double product = products[0] + products[1] + products[2] + products[3];
    *scales = f32_to_f16(most != 0 ? float(product / double(sum_of(squares))) : 0);
  }
  place(codes, dim / 2, page, slot, is_key);
}

template <class T> inline void store_key_pairs(const T* x, int64_t dim, void* page, int slot) {
  int16_t codes[max_head_dim + lanes];
  vf squares{};
  each_vector(x, dim, [&](int64_t, vf v) { squares += v * v; });
  const KeyScale scale(splat(sum_of(squares)));
  each_vector(x, dim, [&](int64_t d, vf v) { store_rounded(codes + d, v * scale.factor); });
  const int64_t pairs = (dim + 1) / 2;
  int16_t* to = static_cast<int16_t*>(page);
  for (int64_t d = 0; d < 2 * pairs; ++d) to[(d / 2 * page_tokens + slot) * 2 + d % 2] = codes[d];
  reinterpret_cast<float*>(to + pairs * 2 * page_tokens)[slot] = scale.back[0];
}

template <class T> inline void store_value_pairs(const T* x, int64_t dim, void* page, int slot) {
  int16_t codes[max_head_dim + lanes];
  vf most{};
  each_vector(x, dim, [&](int64_t, vf v) { most = max(most, abs(v)); });
  const vi exponent = value_exponent(splat(highest(most)));
  each_vector(x, dim, [&](int64_t d, vf v) { store_rounded(codes + d, v * power_of_two(-exponent)); });
  const int64_t width = lltool::attention_width(int(dim));
  int16_t* to = static_cast<int16_t*>(page);
  for (int64_t d = 0; d < dim; ++d) to[(slot / 2 * width + d) * 2 + slot % 2] = codes[d];
  reinterpret_cast<int32_t*>(to + width * page_tokens)[slot] = exponent[0];
}

// Types with blocks store the Hadamard transform of x; the others store `pairs` where these are multiplied.
void store_cache(CacheType type, bool pairs, const float* x, int64_t dim, int64_t block, void* page, int slot, bool is_key) {
  uint16_t halves[max_head_dim + lanes];
  float spread[max_head_dim];
  if (has_blocks(type)) {
    std::memcpy(spread, x, size_t(dim) * 4);
    hadamard(spread, dim, block);
  }
  const auto store_pairs = [&](const auto* row) {
    is_key ? store_key_pairs(row, dim, page, slot) : store_value_pairs(row, dim, page, slot);
  };
  switch (type) {
  case CacheType::f32: return pairs ? store_pairs(x) : place(x, dim, page, slot, is_key);
  case CacheType::q8_0: return store_q8_0(spread, dim, page, slot, is_key);
  case CacheType::q4_0: return store_q4_0(spread, dim, page, slot, is_key);
  case CacheType::f16:
    f32_row_to_f16(x, dim, reinterpret_cast<uint8_t*>(halves));
    return pairs ? store_pairs(reinterpret_cast<const Float16*>(halves)) : place(halves, dim, page, slot, is_key);
  case CacheType::bf16:
    for (int64_t i = 0; i < dim; ++i) halves[i] = f32_to_bf16(x[i]);
    return pairs ? store_pairs(reinterpret_cast<const Brain16*>(halves)) : place(halves, dim, page, slot, is_key);
  }
}

// ---- reading

inline void decode_halves(CacheType type, const void* from, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += lanes)
    store(out + i, type == CacheType::f16 ? widen(static_cast<const Float16*>(from) + i) : widen(static_cast<const Brain16*>(from) + i));
}

// Decodes the keys of a page, not float32, to floats (dim, page).
inline void decode_keys(CacheType type, const void* page, int dim, float* out) {
  if (!has_blocks(type)) return decode_halves(type, page, int64_t(dim) * page_tokens, out);
  const int8_t* codes = static_cast<const int8_t*>(page);
  const Float16* scales = reinterpret_cast<const Float16*>(codes + (type == CacheType::q8_0 ? dim : dim / 2) * page_tokens);
  for (int d = 0; d < dim; d += cache_block, scales += page_tokens)
    for (int j = 0; j < page_tokens; j += lanes) {
      const vf scale = widen(scales + j);
      float* to = out + d * page_tokens + j;
      if (type == CacheType::q8_0) {
        for (int i = 0; i < cache_block; ++i)
          store(to + i * page_tokens, to_float(widen(codes + (d + i) * page_tokens + j)) * scale);
      } else {
        for (int i = 0; i < cache_block / 2; ++i) {
          const vi pair = widen(codes + (d / 2 + i) * page_tokens + j);
          store(to + i * page_tokens, to_float((pair & 15) - 8) * scale);
          store(to + (i + cache_block / 2) * page_tokens, to_float((pair >> 4 & 15) - 8) * scale);
        }
      }
    }
}

// Decodes the first `count` values, not float32, to floats (count, dim).
inline void decode_values(CacheType type, const void* page, int dim, int count, float* out) {
  if (!has_blocks(type)) return decode_halves(type, page, int64_t(dim) * count, out);
  const int8_t* codes = static_cast<const int8_t*>(page);
  const Float16* scales = reinterpret_cast<const Float16*>(codes + (type == CacheType::q8_0 ? dim : dim / 2) * page_tokens);
  for (int j = 0; j < count; ++j)
    for (int d = 0; d < dim; d += cache_block, out += cache_block) {
      const float scale = f16_to_f32(scales[d / cache_block * page_tokens + j].bits);
      if (type == CacheType::q8_0) {
        for (int i = 0; i < cache_block; i += lanes) store(out + i, to_float(widen(codes + j * dim + d + i)) * scale);
      } else {
        for (int i = 0; i < cache_block / 2; i += lanes) {
          const vi pair = widen(codes + (j * dim + d) / 2 + i);
          store(out + i, to_float((pair & 15) - 8) * scale);
          store(out + i + cache_block / 2, to_float((pair >> 4 & 15) - 8) * scale);
        }
      }
    }
}

// The keys of a page with blocks as pairs (dim / 2, page), and their scales. The length of a key is taken to be the most
// that its scales allow, one bit more than it is.
inline void pair_keys(CacheType type, const void* page, int dim, int32_t* keys, float* key_scales) {
  const bool has_bytes = type == CacheType::q8_0;
  const int8_t* codes = static_cast<const int8_t*>(page);
  const Float16* scales = reinterpret_cast<const Float16*>(codes + (has_bytes ? dim : dim / 2) * page_tokens);
  const float largest = has_bytes ? 127 : 8;
  for (int j = 0; j < page_tokens; j += lanes) {
    vf squares{};
    for (int b = 0; b < dim / cache_block; ++b) {
      const vf x = widen(scales + b * page_tokens + j);
      squares += x * x;
    }
    const KeyScale s(squares * (cache_block * largest * largest));
    store(key_scales + j, s.back);
    for (int d = 0; d < dim; d += cache_block) {
      const vf factor = widen(scales + d / cache_block * page_tokens + j) * s.factor;
      int32_t* to = keys + d / 2 * page_tokens + j;
      if (has_bytes) {
        const auto code = [&](int i) { return to_float(widen(codes + (d + i) * page_tokens + j)); };
        for (int i = 0; i < cache_block; i += 2) store(to + i / 2 * page_tokens, pair(code(i) * factor, code(i + 1) * factor));
      } else {
        for (int i = 0; i < cache_block / 2; i += 2) {
          const vi x = widen(codes + (d / 2 + i) * page_tokens + j), y = widen(codes + (d / 2 + i + 1) * page_tokens + j);
          store(to + i / 2 * page_tokens, pair(to_float((x & 15) - 8) * factor, to_float((y & 15) - 8) * factor));
          store(to + (i / 2 + cache_block / 4) * page_tokens,
                pair(to_float((x >> 4 & 15) - 8) * factor, to_float((y >> 4 & 15) - 8) * factor));
        }
      }
    }
  }
}

// The first `count` values of a page with blocks as pairs (page / 2, width), and their exponents.
inline void pair_values(CacheType type, const void* page, int dim, int count, int32_t* values, int32_t* exponents) {
  const bool has_bytes = type == CacheType::q8_0;
  const int8_t* codes = static_cast<const int8_t*>(page);
  const int row = has_bytes ? dim : dim / 2, width = lltool::attention_width(dim);
  const float largest = has_bytes ? 127 : 8;
  const Float16* scales = reinterpret_cast<const Float16*>(codes + row * page_tokens);
  float factors[max_head_dim / cache_block * page_tokens]; // (dim / cache_block, page)
  for (int j = 0; j < page_tokens; j += lanes) {
    vf most{};
    for (int b = 0; b < dim; b += cache_block) most = max(most, abs(widen(scales + b / cache_block * page_tokens + j)));
    const vi exponent = value_exponent(most * largest);
    store(exponents + j, exponent);
    for (int b = 0; b < dim; b += cache_block) {
      const int at = b / cache_block * page_tokens + j;
      store(factors + at, widen(scales + at) * power_of_two(-exponent));
    }
  }
  for (int j = 0; j < count; j += 2) { // the value after the last one may be anything: its weight is zero
    const int8_t *x = codes + j * row, *y = x + row;
    for (int d = 0; d < dim; d += cache_block) {
      const float a = factors[d / cache_block * page_tokens + j], b = factors[d / cache_block * page_tokens + j + 1];
      int32_t* to = values + j / 2 * width + d;
      if (has_bytes) {
        for (int i = 0; i < cache_block; i += lanes)
          store(to + i, pair(to_float(widen(x + d + i)) * a, to_float(widen(y + d + i)) * b));
      } else {
        for (int i = 0; i < cache_block / 2; i += lanes) {
          const vi low = widen(x + d / 2 + i), high = widen(y + d / 2 + i);
          store(to + i, pair(to_float((low & 15) - 8) * a, to_float((high & 15) - 8) * b));
          store(to + i + cache_block / 2, pair(to_float((low >> 4 & 15) - 8) * a, to_float((high >> 4 & 15) - 8) * b));
        }
      }
    }
  }
}

// ---- values that are the beginnings of keys

// The keys' dimensions [d, d + lanes) of tokens [j, j + lanes), a vector for each token. `key(d, j)` has tokens in lanes.
template <class Function> inline void turn(int dim, int d, int j, Function key, vi (&rows)[lanes]) {
  for (int i = 0; i < lanes; ++i) rows[i] = d + i < dim ? (vi)key(d + i, j) : vi{};
  transpose(rows);
}

// The first `width` dimensions of the first `count` keys (dim, page), as values (count, width).
template <class T> inline void values_of_keys(const T* keys, int dim, int width, int count, float* values) {
  const auto key = [&](int d, int j) { return widen(keys + d * page_tokens + j); };
  vi rows[lanes];
  for (int j = 0; j < count; j += lanes)
    for (int d = 0; d < width; d += lanes) {
      turn(dim, d, j, key, rows);
      for (int i = 0; i < lanes; ++i) store(values + (j + i) * width + d, rows[i]);
    }
}

// The same of pairs with a scale per key, as pairs of values (page / 2, width) and their exponents.
inline void pair_values_of_keys(const int32_t* keys, const float* key_scales, int dim, int width, int count, int32_t* values,
                                int32_t* exponents) {
  const auto key = [&](int d, int j) {
    const vi both = load<vi>(keys + d / 2 * page_tokens + j);
    return to_float(d % 2 ? both >> 16 : both << 16 >> 16);
  };
  vi rows[lanes];
  for (int j = 0; j < count; j += lanes) {
    vf most{};
    for (int d = 0; d < std::min(width, dim); ++d) most = max(most, abs(key(d, j)));
    const vf scale = load<vf>(key_scales + j);
    const vi exponent = value_exponent(most * scale);
    const vf factor = scale * power_of_two(-exponent);
    store(exponents + j, exponent);
    for (int d = 0; d < width; d += lanes) {
      turn(dim, d, j, [&](int e, int at) { return key(e, at) * factor; }, rows);
      for (int i = 0; i < lanes; i += 2) store(values + (j + i) / 2 * width + d, pair((vf)rows[i], (vf)rows[i + 1]));
    }
  }
}

} // namespace
