// Products of a few rows with keys or values: of floats, or of pairs of int16. A sum has one order, whatever the number of
// rows and columns that are multiplied at once.
#pragma once
#include "vector.h"

namespace {

// Rows that share a read of keys or values, and vectors of these: of few rows more vectors, to hide the latency of sums.
constexpr int rows_at_once = registers == 32 ? 6 : 4;
template <int rows> constexpr int vectors_at_once = registers == 32 ? 4 : rows == 1 ? 8 : rows == 2 ? 4 : 2;

inline vf multiply_add(vf acc, vf x, vf y) { return acc + x * y; }
inline vi multiply_add(vi acc, vi x, vi y) { return dot2(acc, x, y); } // of pairs of int16
inline vi widen(const int32_t* pairs) { return load<vi>(pairs); }

// Calls f(row, at, sum) with each vector of a (R rows from `first` on, n) @ b (n, V vectors), whose place in c is `at`.
// Where `ahead` is not zero, prefetches the data so many bytes after b to the L2 cache: L1 can wait for only 24 lines, and
// the hardware does not predict the next page.
template <int R, int V, bool fetches, class A, class B, class Function>
inline void multiply_block(const A* a, int64_t lda, int first, const B* b, int64_t ldb, int n, float* c, int64_t ldc, int64_t ahead,
                           Function f) {
  decltype(widen(b)) acc[R][V]; // cleared in a loop, because GCC would clear an initialized array in memory
  a += first * lda, c += first * ldc;
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) acc[r][v] = decltype(widen(b)){};
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (fetches) {
      const char* next = reinterpret_cast<const char*>(b + i * ldb) + ahead;
      for (size_t line = 0; line < V * lanes * sizeof(B); line += 64) __builtin_prefetch(next + line, 0, 2);
    }
    decltype(widen(b)) x[V];
    for (int v = 0; v < V; ++v) x[v] = widen(b + i * ldb + v * lanes);
    for (int r = 0; r < R; ++r) {
      const auto y = splat(a[r * lda + i]);
      for (int v = 0; v < V; ++v) acc[r][v] = multiply_add(acc[r][v], x[v], y);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) f(first + r, c + r * ldc + v * lanes, acc[r][v]);
}

// The same for rows [first, rows) and columns [from, to), whole vectors; R rows at most at once.
template <int R, int V, class A, class B, class Function>
inline void multiply_rows(const A* a, int64_t lda, int first, int rows, const B* b, int64_t ldb, int n, float* c, int64_t ldc,
                          int64_t ahead, Function f) {
  for (; rows - first >= R; first += R)
    if (ahead && first == 0)
      multiply_block<R, V, true>(a, lda, first, b, ldb, n, c, ldc, ahead, f);
    else
      multiply_block<R, V, false>(a, lda, first, b, ldb, n, c, ldc, 0, f);
  if constexpr (R > 1)
    if (first < rows) multiply_rows<R - 1, V>(a, lda, first, rows, b, ldb, n, c, ldc, ahead, f);
}
template <int R, int V, class A, class B, class Function>
inline void multiply_columns(const A* a, int64_t lda, int rows, const B* b, int64_t ldb, int n, int from, int to, float* c, int64_t ldc,
                             int64_t ahead, Function f) {
  for (; from + V * lanes <= to; from += V * lanes) multiply_rows<R, V>(a, lda, 0, rows, b + from, ldb, n, c + from, ldc, ahead, f);
  if constexpr (V > 1)
    if (from < to) multiply_columns<R, V / 2>(a, lda, rows, b, ldb, n, from, to, c, ldc, ahead, f);
}
template <class A, class B, class Function>
inline void multiply(const A* a, int64_t lda, int rows, const B* b, int64_t ldb, int n, int from, int to, float* c, int64_t ldc,
                     int64_t ahead, Function f) {
  if (rows == 1) return multiply_columns<1, vectors_at_once<1>>(a, lda, rows, b, ldb, n, from, to, c, ldc, ahead, f);
  if (rows == 2) return multiply_columns<2, vectors_at_once<2>>(a, lda, rows, b, ldb, n, from, to, c, ldc, ahead, f);
  multiply_columns<rows_at_once, vectors_at_once<3>>(a, lda, rows, b, ldb, n, from, to, c, ldc, ahead, f);
}

} // namespace
