// Causal attention of a run of tokens over a paged cache: online softmax in powers of two, a page of keys at a time, with the
// query heads that share a key/value head as extra rows (so one read of a page serves them all). Here is what reads a page
// for a few rows where it lies.
#pragma once
#include "attention_tile-inl.h"

namespace {

// Query rows that share a read of keys or values: R * V sums, V vectors of these and one of A fit the registers.
constexpr int rows_at_once = registers == 32 ? 6 : 3;
constexpr int few_rows = registers == 32 ? 12 : 8; // so many cost less than converting the page

// C (rows, n) += A (rows, k) @ B (k, n) for R rows and V vectors of columns. What lies `ahead` bytes behind B is fetched,
// to the second cache: the first can wait for 24 lines only, and the processor does not guess the next page.
template <int R, int V, class T>
inline void accumulate_block(const float* A, int64_t lda, const T* B, int64_t ldb, int64_t k, float* C, int64_t ldc, int64_t ahead) {
  vf acc[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) acc[r][v] = load<vf>(C + r * ldc + v * lanes);
  for (int64_t i = 0; i < k; ++i) {
    const char* next = reinterpret_cast<const char*>(B + i * ldb) + ahead;
    for (size_t line = 0; line < V * lanes * sizeof(T); line += 64) __builtin_prefetch(next + line, 0, 2);
    vf b[V];
    for (int v = 0; v < V; ++v) b[v] = widen(B + i * ldb + v * lanes);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) acc[r][v] += b[v] * A[r * lda + i];
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(C + r * ldc + v * lanes, acc[r][v]);
}

template <int R, int V, class T>
inline void accumulate_columns(const float* A, int64_t lda, int rows, const T* B, int64_t ldb, int64_t k, float* C, int64_t ldc,
                               int64_t ahead) {
  for (; rows >= R; rows -= R, A += R * lda, C += R * ldc) accumulate_block<R, V>(A, lda, B, ldb, k, C, ldc, ahead);
  if constexpr (R > 1)
    if (rows) accumulate_columns<R - 1, V>(A, lda, rows, B, ldb, k, C, ldc, ahead);
}

// n is a multiple of `lanes`.
template <class T>
inline void accumulate(const float* A, int64_t lda, int rows, const T* B, int64_t ldb, int64_t k, float* C, int64_t ldc, int64_t n,
                       int64_t ahead) {
  int64_t c = 0;
  for (; c + 4 * lanes <= n; c += 4 * lanes)
    accumulate_columns<rows_at_once, 4>(A, lda, rows, B + c, ldb, k, C + c, ldc, ahead);
  for (; c < n; c += lanes) accumulate_columns<rows_at_once, 1>(A, lda, rows, B + c, ldb, k, C + c, ldc, ahead);
}

// Takes the scores of a page of keys, of which row r sees [begin(r), end(r)), and leaves weights in their place. Results are
// (rows, width) outputs not yet divided by `total`, the sum of weights below the largest score, `top`.
template <class Begin, class End>
inline void weigh(const AttentionTask& task, float* scores, int rows, float* out, float* top, float* total, Begin begin, End end) {
  const int width = lltool::attention_width(task.head_dim);
  for (int r = 0; r < rows; ++r) {
    float* s = scores + r * page_tokens;
    if (task.softcap > 0)
      for (int j = 0; j < page_tokens; j += lanes) store(s + j, tanh(load<vf>(s + j)) * (task.softcap * log2_e));
    for (int j = std::max(end(r), 0); j < page_tokens; ++j) s[j] = masked;
    for (int j = 0; j < begin(r) && j < page_tokens; ++j) s[j] = masked;
    vf high = load<vf>(s), part{};
    for (int j = lanes; j < page_tokens; j += lanes) high = max(high, load<vf>(s + j));
    const float now = std::max({highest(high), top[r], lowest}), keep = exp2(splat(top[r] - now))[0];
    for (int j = 0; j < page_tokens; j += lanes) {
      const vf p = exp2(load<vf>(s + j) - now);
      store(s + j, p);
      part += p;
    }
    top[r] = now;
    total[r] = total[r] * keep + sum_of(part);
    if (keep == 1.0f) continue;
    for (int d = 0; d < width; d += lanes) store(out + int64_t(r) * width + d, load<vf>(out + int64_t(r) * width + d) * keep);
  }
}

void attend_few(const AttentionTask& task) {
  const int rows = task.tokens * task.group, dim = task.head_dim, width = lltool::attention_width(dim);
  float* decoded = task.scratch;                                                   // a page
  float* q = decoded + int64_t(width) * page_tokens;                               // (rows, dim)
  float* scores = q + int64_t(rows) * width;                                       // (rows, page)
  float* out = task.partial ? task.partial : scores + int64_t(rows) * page_tokens; // (rows, width)
  float *top = out + int64_t(rows) * width, *total = top + rows;
  const float scale = task.softcap > 0 ? task.scale / task.softcap : task.scale * log2_e;
  std::memset(out, 0, size_t(rows) * size_t(width) * 4);
  for (int r = 0; r < rows; ++r) {
    const int t = r / task.group, h = r % task.group;
    for (int d = 0; d < dim; ++d) q[r * dim + d] = task.q[t * task.row_stride + h * dim + d] * scale;
    top[r] = task.sinks ? task.sinks[h] * log2_e : masked, total[r] = task.sinks ? 1 : 0;
  }

  const int last = task.first_position + task.tokens - 1;
  for (int page = task.first_page; page < task.end_page; ++page) {
    const int base = page * page_tokens, count = std::min(last + 1 - base, page_tokens);
    const int64_t at = task.pages[page] * task.page_stride;
    const uint8_t *keys = task.k_pages + at, *values = task.v_pages + at;
    const uint8_t* next = page + 1 < task.end_page ? task.k_pages + task.pages[page + 1] * task.page_stride : values;
    std::memset(scores, 0, size_t(rows) * page_tokens * 4);
    with_keys(task.k_type, keys, dim, decoded, [&](auto k) {
      accumulate(q, dim, rows, k, page_tokens, dim, scores, page_tokens, page_tokens, values - keys);
    });
    const auto position = [&](int r) { return task.first_position + r / task.group - base; };
    weigh(
        task, scores, rows, out, top, total, [&](int r) { return task.window ? position(r) - task.window + 1 : 0; },
        [&](int r) { return position(r) + 1; });
    with_values(task.v_type, values, dim, count, decoded,
                [&](auto v) { accumulate(scores, page_tokens, rows, v, dim, count, out, width, width, next - values); });
  }
  if (task.partial) return;
  for (int r = 0; r < rows; ++r) {
    const float inverse = 1.0f / total[r];
    float* to = task.out + r / task.group * task.row_stride + r % task.group * dim;
    for (int d = 0; d < dim; ++d) to[d] = out[int64_t(r) * width + d] * inverse;
  }
}

void attention(const AttentionTask& task) {
  if (!task.tiled && task.tokens * task.group <= few_rows)
    attend_few(task);
  else if (task.exact || !multiplies_pairs)
    attend_tile<float>(task);
  else
    attend_tile<int32_t>(task);
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
        const float weight = exp2(splat(top(p) - highest_top))[0];
        sum += total(p) * weight;
        const float* from = parts + p * stride + int64_t(r) * width;
        for (int d = 0; d < dim; ++d) out[d] += from[d] * weight;
      }
      for (int d = 0; d < dim; ++d) out[d] /= sum;
    }
}

} // namespace
