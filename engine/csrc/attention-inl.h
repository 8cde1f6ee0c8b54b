// Causal attention of a run of tokens over a paged cache: online softmax, a page of keys at a time, with the query heads
// that share a key/value head as extra rows (so one read of a page serves them all).
#pragma once
#include <algorithm>
#include <type_traits>

#include "kernels.h"
#include "vector.h"
#include "half.h"

namespace {

using lltool::AttentionTask;
using lltool::page_tokens;

// Query rows that share a read of keys or values: R * V sums, V vectors of these and one of A fit the registers.
constexpr int rows_at_once = lanes == 16 ? 6 : 3;

inline vf widen(const float* p) { return load<vf>(p); }
inline vf widen(const uint16_t* p) {
#if defined(__AVX512VNNI__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  vf v;
  for (int i = 0; i < lanes; ++i) v[i] = f16_to_f32(p[i]);
  return v;
#endif
}

// C (rows, n) += A (rows, k) @ B (k, n) for R rows and V vectors of columns; B is float or half.
template <int R, int V, class T>
inline void accumulate_block(const float* A, int64_t lda, const T* B, int64_t ldb, int64_t k, float* C, int64_t ldc) {
  vf acc[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) acc[r][v] = load<vf>(C + r * ldc + v * lanes);
  for (int64_t i = 0; i < k; ++i) {
    vf b[V];
    for (int v = 0; v < V; ++v) b[v] = widen(B + i * ldb + v * lanes);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) acc[r][v] += b[v] * A[r * lda + i];
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(C + r * ldc + v * lanes, acc[r][v]);
}

template <int R, int V, class T>
inline void accumulate_columns(const float* A, int64_t lda, int rows, const T* B, int64_t ldb, int64_t k, float* C, int64_t ldc) {
  for (; rows >= R; rows -= R, A += R * lda, C += R * ldc) accumulate_block<R, V>(A, lda, B, ldb, k, C, ldc);
  if constexpr (R > 1)
    if (rows) accumulate_columns<R - 1, V>(A, lda, rows, B, ldb, k, C, ldc);
}

// n is a multiple of `lanes`.
template <class T>
inline void accumulate(const float* A, int64_t lda, int rows, const T* B, int64_t ldb, int64_t k, float* C, int64_t ldc, int64_t n) {
  int64_t c = 0;
  for (; c + 4 * lanes <= n; c += 4 * lanes) accumulate_columns<rows_at_once, 4>(A, lda, rows, B + c, ldb, k, C + c, ldc);
  for (; c < n; c += lanes) accumulate_columns<rows_at_once, 1>(A, lda, rows, B + c, ldb, k, C + c, ldc);
}

inline void to_floats(const float* p, int64_t n, float* out) { std::memcpy(out, p, size_t(n) * 4); }
inline void to_floats(const uint16_t* p, int64_t n, float* out) { f16_row_to_f32(reinterpret_cast<const uint8_t*>(p), n, out); }

// Running softmax of the query rows of a task: outputs (rows, width) not yet divided by `total`, the sum of exponentials
// below the largest score, `top`.
struct Softmax {
  static constexpr float masked = -1e30f;
  float *out, *top, *total;

  // Takes the scores of a page of keys, of which row r sees [begin(r), end(r)), and leaves weights in their place.
  template <class Begin, class End>
  void take(float* scores, int rows, int width, float softcap, Begin begin, End end) const {
    for (int r = 0; r < rows; ++r) {
      float* s = scores + r * page_tokens;
      if (softcap > 0)
        for (int j = 0; j < page_tokens; j += lanes) store(s + j, tanh(load<vf>(s + j) * (1.0f / softcap)) * softcap);
      for (int j = end(r) < 0 ? 0 : end(r); j < page_tokens; ++j) s[j] = masked;
      for (int j = 0; j < begin(r) && j < page_tokens; ++j) s[j] = masked;
      vf high = load<vf>(s);
      for (int j = lanes; j < page_tokens; j += lanes) high = max(high, load<vf>(s + j));
      const float before = top[r], now = std::max(highest(high), before);
      vf part{};
      for (int j = 0; j < page_tokens; j += lanes) {
        const vf x = load<vf>(s + j);
        const vf p = x > masked ? exp(x - now) : vf{};
        store(s + j, p);
        part += p;
      }
      const float keep = before > masked ? exp(splat(before - now))[0] : 0.0f;
      top[r] = now;
      total[r] = total[r] * keep + sum_of(part);
      if (keep != 1.0f)
        for (int d = 0; d < width; d += lanes) store(out + int64_t(r) * width + d, load<vf>(out + int64_t(r) * width + d) * keep);
    }
  }
};

template <class T> void attend(const AttentionTask& task) {
  const int rows = task.tokens * task.group, dim = task.head_dim, width = lltool::attention_width(dim);
  // Half the rows of a prompt's tile would widen each key again: those are widened once, into scratch.
  const bool in_place = std::is_same_v<T, float> || rows <= rows_at_once;
  float* keys = task.scratch;                        // (dim, page)
  float* values = keys + int64_t(dim) * page_tokens; // (page, width)
  float* q = values + int64_t(page_tokens) * width;  // (rows, dim)
  float* scores = q + int64_t(rows) * dim;           // (rows, page)
  float* out = task.partial ? task.partial : scores + int64_t(rows) * page_tokens; // (rows, width)
  const Softmax softmax{out, out + int64_t(rows) * width, out + int64_t(rows) * (width + 1)};
  for (int t = 0; t < task.tokens; ++t)
    for (int h = 0; h < task.group; ++h)
      for (int d = 0; d < dim; ++d)
        q[(t * task.group + h) * dim + d] = task.q[t * task.row_stride + h * dim + d] * task.scale;
  std::memset(out, 0, size_t(rows) * size_t(width) * 4);
  for (int r = 0; r < rows; ++r) softmax.top[r] = Softmax::masked, softmax.total[r] = 0;

  const int last = task.first_position + task.tokens - 1;
  for (int page = task.first_page; page < task.end_page; ++page) {
    const int base = page * page_tokens, count = std::min(last + 1 - base, page_tokens);
    const int64_t at = int64_t(task.pages[page]) * task.page_stride;
    const T *k = static_cast<const T*>(task.k_pages) + at, *v = static_cast<const T*>(task.v_pages) + at;
    std::memset(scores, 0, size_t(rows) * page_tokens * 4);
    if (in_place) {
      accumulate(q, dim, rows, k, page_tokens, dim, scores, page_tokens, page_tokens);
    } else {
      to_floats(k, int64_t(dim) * page_tokens, keys);
      accumulate(q, dim, rows, keys, page_tokens, dim, scores, page_tokens, page_tokens);
    }
    const auto position = [&](int r) { return task.first_position + r / task.group; };
    softmax.take(
        scores, rows, width, task.softcap, [&](int r) { return task.window ? position(r) - task.window + 1 - base : 0; },
        [&](int r) { return position(r) + 1 - base; });
    if (in_place && width == dim) {
      accumulate(scores, page_tokens, rows, v, width, count, out, width, width);
    } else {
      for (int j = 0; j < count; ++j) {
        to_floats(v + int64_t(j) * dim, dim, values + int64_t(j) * width);
        for (int d = dim; d < width; ++d) values[int64_t(j) * width + d] = 0;
      }
      accumulate(scores, page_tokens, rows, values, width, count, out, width, width);
    }
  }
  if (task.partial) return;
  for (int t = 0; t < task.tokens; ++t)
    for (int h = 0; h < task.group; ++h) {
      const int r = t * task.group + h;
      const float inverse = 1.0f / softmax.total[r];
      for (int d = 0; d < dim; ++d) task.out[t * task.row_stride + h * dim + d] = out[int64_t(r) * width + d] * inverse;
    }
}

void attention(const AttentionTask& task) {
  if (task.half)
    attend<uint16_t>(task);
  else
    attend<float>(task);
}

// Puts together what tasks with the same rows left of their parts of the keys, `stride` floats apart.
void merge_attention(const AttentionTask& task, const float* parts, int count, int64_t stride) {
  const int rows = task.tokens * task.group, dim = task.head_dim, width = lltool::attention_width(dim);
  for (int t = 0; t < task.tokens; ++t)
    for (int h = 0; h < task.group; ++h) {
      const int r = t * task.group + h;
      const auto top = [&](int p) { return parts[p * stride + int64_t(rows) * width + r]; };
      const auto total = [&](int p) { return parts[p * stride + int64_t(rows) * (width + 1) + r]; };
      float highest_top = top(0), sum = 0;
      for (int p = 1; p < count; ++p) highest_top = std::max(highest_top, top(p));
      float* out = task.out + t * task.row_stride + h * dim;
      std::memset(out, 0, size_t(dim) * 4);
      for (int p = 0; p < count; ++p) {
        const float weight = exp(splat(top(p) - highest_top))[0];
        sum += total(p) * weight;
        const float* from = parts + p * stride + int64_t(r) * width;
        for (int d = 0; d < dim; ++d) out[d] += from[d] * weight;
      }
      for (int d = 0; d < dim; ++d) out[d] /= sum;
    }
}

void store_half(const float* x, int64_t n, uint16_t* out, int64_t stride) {
  for (int64_t i = 0; i < n; ++i) out[i * stride] = f32_to_f16(x[i]);
}

} // namespace
