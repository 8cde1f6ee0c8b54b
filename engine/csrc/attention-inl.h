// Causal attention of a run of tokens over a paged cache: online softmax, a page of keys at a time, with the query heads
// that share a key/value head as extra rows (so one read of a page serves them all).
#pragma once
#include "kernels.h"
#include "vector.h"
#include "half.h"

namespace {

using lltool::AttentionTask;
using lltool::page_tokens;

// C (rows, n) += A (rows, k) @ B (k, n) for R rows and V vectors of columns.
template <int R, int V>
inline void accumulate_block(const float* A, int64_t lda, const float* B, int64_t ldb, int64_t k, float* C, int64_t ldc) {
  vf acc[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) acc[r][v] = load<vf>(C + r * ldc + v * lanes);
  for (int64_t i = 0; i < k; ++i) {
    vf b[V];
    for (int v = 0; v < V; ++v) b[v] = load<vf>(B + i * ldb + v * lanes);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) acc[r][v] += b[v] * A[r * lda + i];
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(C + r * ldc + v * lanes, acc[r][v]);
}

template <int V>
inline void accumulate_columns(const float* A, int64_t lda, int rows, const float* B, int64_t ldb, int64_t k, float* C, int64_t ldc) {
  constexpr int R = lanes == 16 ? 6 : 3; // R * V accumulators, V vectors of B and one of A fit the registers
  int r = 0;
  for (; r + R <= rows; r += R) accumulate_block<R, V>(A + r * lda, lda, B, ldb, k, C + r * ldc, ldc);
  for (; r < rows; ++r) accumulate_block<1, V>(A + r * lda, lda, B, ldb, k, C + r * ldc, ldc);
}

// n is a multiple of `lanes`.
inline void accumulate(const float* A, int64_t lda, int rows, const float* B, int64_t ldb, int64_t k, float* C, int64_t ldc, int64_t n) {
  int64_t c = 0;
  for (; c + 4 * lanes <= n; c += 4 * lanes) accumulate_columns<4>(A, lda, rows, B + c, ldb, k, C + c, ldc);
  for (; c < n; c += lanes) accumulate_columns<1>(A, lda, rows, B + c, ldb, k, C + c, ldc);
}

inline void page_to_float(const void* page, bool half, int64_t offset, int64_t n, float* out) {
  if (half)
    f16_row_to_f32(static_cast<const uint8_t*>(page) + 2 * offset, n, out);
  else
    std::memcpy(out, static_cast<const float*>(page) + offset, size_t(n) * 4);
}

void attention(const AttentionTask& task) {
  constexpr float masked = -1e30f;
  const int rows = task.tokens * task.group, dim = task.head_dim, width = (dim + 15) / 16 * 16;
  float* keys = task.scratch;                   // (dim, page)
  float* values = keys + int64_t(dim) * page_tokens; // (page, width)
  float* q = values + int64_t(page_tokens) * width;  // (rows, dim)
  float* out = q + int64_t(rows) * dim;              // (rows, width)
  float* scores = out + int64_t(rows) * width;       // (rows, page)
  float* top = scores + int64_t(rows) * page_tokens; // (rows,) running maximum
  float* total = top + rows;                         // (rows,) running sum of exponentials
  for (int t = 0; t < task.tokens; ++t)
    for (int h = 0; h < task.group; ++h)
      for (int d = 0; d < dim; ++d)
        q[(t * task.group + h) * dim + d] = task.q[t * task.row_stride + h * dim + d] * task.scale;
  std::memset(out, 0, size_t(rows) * size_t(width) * 4);
  for (int r = 0; r < rows; ++r) top[r] = masked, total[r] = 0;

  const int last = task.first_position + task.tokens - 1;
  const int first_key = task.window && task.first_position >= task.window ? task.first_position - task.window + 1 : 0;
  for (int page = first_key / page_tokens; page <= last / page_tokens; ++page) {
    const int base = page * page_tokens, count = last + 1 - base < page_tokens ? last + 1 - base : page_tokens;
    const int64_t at = int64_t(task.pages[page]) * task.page_stride;
    page_to_float(task.k_pages, task.half, at, int64_t(dim) * page_tokens, keys);
    if (width == dim) {
      page_to_float(task.v_pages, task.half, at, int64_t(count) * dim, values);
    } else {
      for (int j = 0; j < count; ++j) {
        page_to_float(task.v_pages, task.half, at + int64_t(j) * dim, dim, values + int64_t(j) * width);
        for (int d = dim; d < width; ++d) values[int64_t(j) * width + d] = 0;
      }
    }
    std::memset(scores, 0, size_t(rows) * page_tokens * 4);
    accumulate(q, dim, rows, keys, page_tokens, dim, scores, page_tokens, page_tokens);
    for (int r = 0; r < rows; ++r) {
      float* s = scores + r * page_tokens;
      if (task.softcap > 0)
        for (int j = 0; j < page_tokens; j += lanes) store(s + j, tanh(load<vf>(s + j) * (1.0f / task.softcap)) * task.softcap);
      const int position = task.first_position + r / task.group;
      const int end = position + 1 - base; // keys [begin, end) of the page are seen
      const int begin = task.window ? position - task.window + 1 - base : 0;
      for (int j = end < 0 ? 0 : end; j < page_tokens; ++j) s[j] = masked;
      for (int j = 0; j < begin && j < page_tokens; ++j) s[j] = masked;
      vf high = load<vf>(s);
      for (int j = lanes; j < page_tokens; j += lanes) high = max(high, load<vf>(s + j));
      const float before = top[r], now = highest(high) > before ? highest(high) : before;
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
    accumulate(scores, page_tokens, rows, values, width, count, out, width, width);
  }
  for (int t = 0; t < task.tokens; ++t)
    for (int h = 0; h < task.group; ++h) {
      const int r = t * task.group + h;
      const float inverse = 1.0f / total[r];
      for (int d = 0; d < dim; ++d) task.out[t * task.row_stride + h * dim + d] = out[int64_t(r) * width + d] * inverse;
    }
}

void store_half(const float* x, int64_t n, uint16_t* out, int64_t stride) {
  for (int64_t i = 0; i < n; ++i) out[i * stride] = f32_to_f16(x[i]);
}

} // namespace
