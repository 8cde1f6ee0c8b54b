// Pages of the KV cache. For one key/value head a page holds keys transposed, (head_dim, page), so that keys lie in lanes,
// and values as they are, (page, head_dim). Types with blocks have ggml's codes in that order and behind them the scales,
// (head_dim / 32, page); byte i of a block of q4_0 holds dimensions i and i + 16.
#pragma once
#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "vector.h"
#include "half.h"

namespace {

using lltool::CacheType;
using lltool::max_head_dim;
using lltool::page_tokens;

constexpr int cache_block = 32; // dimensions that share a scale

// ---- storing

// Element i of a token's row: keys are `page_tokens` apart.
template <class T> inline void place(const T* row, int64_t n, void* page, int slot, bool is_key) {
  T* to = static_cast<T*>(page);
  if (!is_key) {
    std::memcpy(to + slot * n, row, size_t(n) * sizeof(T));
    return;
  }
  for (int64_t i = 0; i < n; ++i) to[i * page_tokens + slot] = row[i];
}

inline int rounded(float x) { return int(x + (x < 0 ? -0.5f : 0.5f)); }

// The codes and scales of a row as ggml rounds them.
inline void store_q8_0(const float* x, int64_t dim, void* page, int slot, bool is_key) {
  int8_t codes[max_head_dim];
  uint16_t* scales = reinterpret_cast<uint16_t*>(static_cast<int8_t*>(page) + dim * page_tokens) + slot;
  for (int64_t b = 0; b < dim; b += cache_block, scales += page_tokens) {
    float most = 0;
    for (int i = 0; i < cache_block; ++i) most = std::max(most, std::fabs(x[b + i]));
    const float scale = most / 127, inverse = scale != 0 ? 1 / scale : 0;
    for (int i = 0; i < cache_block; ++i) codes[b + i] = int8_t(rounded(x[b + i] * inverse));
    *scales = f32_to_f16(scale);
  }
  place(codes, dim, page, slot, is_key);
}

inline void store_q4_0(const float* x, int64_t dim, void* page, int slot, bool is_key) {
  uint8_t codes[max_head_dim / 2];
  uint16_t* scales = reinterpret_cast<uint16_t*>(static_cast<uint8_t*>(page) + dim / 2 * page_tokens) + slot;
  for (int64_t b = 0; b < dim; b += cache_block, scales += page_tokens) {
    float most = 0; // with its sign, which gets the code 0
    for (int i = 0; i < cache_block; ++i)
      if (std::fabs(x[b + i]) > std::fabs(most)) most = x[b + i];
    const float scale = most / -8, inverse = scale != 0 ? 1 / scale : 0;
    const auto code = [&](int64_t i) { return std::min(15, int(x[i] * inverse + 8.5f)); };
    for (int i = 0; i < cache_block / 2; ++i)
      codes[b / 2 + i] = uint8_t(code(b + i) | code(b + i + cache_block / 2) << 4);
    *scales = f32_to_f16(scale);
  }
  place(codes, dim / 2, page, slot, is_key);
}

void store_cache(CacheType type, const float* x, int64_t dim, void* page, int slot, bool is_key) {
  uint16_t halves[max_head_dim];
  switch (type) {
  case CacheType::f32: place(x, dim, page, slot, is_key); return;
  case CacheType::q8_0: store_q8_0(x, dim, page, slot, is_key); return;
  case CacheType::q4_0: store_q4_0(x, dim, page, slot, is_key); return;
  case CacheType::f16: f32_row_to_f16(x, dim, reinterpret_cast<uint8_t*>(halves)); break;
  case CacheType::bf16:
    for (int64_t i = 0; i < dim; ++i) halves[i] = f32_to_bf16(x[i]);
    break;
  }
  place(halves, dim, page, slot, is_key);
}

// ---- reading

// Keys of a page with blocks, as floats (dim, page).
inline void decode_keys(CacheType type, const void* page, int dim, float* out) {
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

// The first `count` values as floats (count, dim).
inline void decode_values(CacheType type, const void* page, int dim, int count, float* out) {
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

// Calls f with the page's elements where they lie, or as floats in `scratch`.
template <class Function> inline void with_keys(CacheType type, const void* page, int dim, float* scratch, Function f) {
  switch (type) {
  case CacheType::f32: return f(static_cast<const float*>(page));
  case CacheType::f16: return f(static_cast<const Float16*>(page));
  case CacheType::bf16: return f(static_cast<const Brain16*>(page));
  default: decode_keys(type, page, dim, scratch); return f(static_cast<const float*>(scratch));
  }
}
template <class Function>
inline void with_values(CacheType type, const void* page, int dim, int count, float* scratch, Function f) {
  switch (type) {
  case CacheType::f32: return f(static_cast<const float*>(page));
  case CacheType::f16: return f(static_cast<const Float16*>(page));
  case CacheType::bf16: return f(static_cast<const Brain16*>(page));
  default: decode_values(type, page, dim, count, scratch); return f(static_cast<const float*>(scratch));
  }
}

} // namespace
