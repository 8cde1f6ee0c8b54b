// Attention of many query rows: rows lie in lanes, so that softmax has no sums across lanes, and elements of keys and values
// are broadcast. A page is converted once a task, to floats or to pairs of int16, which are multiplied twice as fast.
//
// With pairs q and k are rounded to 15 bits of their length, so a product of two rows fits 31. Weights p have 13 bits below
// the largest of a page and values 12 of their largest: 64 products fit 31 bits. A value's scale is a power of two, which the
// score takes up as its exponent: what is rounded is p |v|. No number depends on other rows or on later keys.
#pragma once
#include <type_traits>

#include "cache-inl.h"
#include "dot.h"

namespace {

using lltool::AttentionTask;

constexpr float masked = -1e30f, lowest = -1e29f; // a score that is hidden, and less than any other
constexpr float log2_e = 1.44269504f;
constexpr float length = 32766, weight_bits = 12.9998f;
constexpr int value_bits = 12;
constexpr int columns_at_once = 4, vectors_at_once = registers == 32 ? 4 : 2; // accumulators of a block

template <class Unit> constexpr int per_unit = std::is_same_v<Unit, float> ? 1 : 2;
template <class Unit> using Vector = std::conditional_t<std::is_same_v<Unit, float>, vf, vi>;

inline vf multiply_add(vf acc, vf x, vf y) { return acc + x * y; }
// Of pairs of int16.
inline vi multiply_add(vi acc, vi x, vi y) {
#if defined(__AVX512VNNI__)
  asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(y));
  return acc;
#elif defined(__AVX2__)
  return acc + (vi)_mm256_madd_epi16((__m256i)x, (__m256i)y);
#else
  return acc + (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
#endif
}

inline vf square_root(vf x) {
#if defined(__AVX512VNNI__)
  return _mm512_sqrt_ps(x);
#elif defined(LLTOOL_NEON)
  return vsqrtq_f32(x);
#else
  for (int i = 0; i < lanes; ++i) x[i] = std::sqrt(x[i]);
  return x;
#endif
}

// Rounded a and b, which fit int16: the sum's lowest bits are the integer.
inline vi pair(vf a, vf b) { return ((vi)(a + 12582912.0f) & 0xffff) | (vi)(b + 12582912.0f) << 16; }

// Calls f(d, x) with the vectors of a row of n elements; what is missing in the last one is zero.
template <class T, class Function> inline void each_vector(const T* row, int n, Function f) {
  int d = 0;
  for (; d + lanes <= n; d += lanes) f(d, widen(row + d));
  if (d == n) return;
  vf last = widen(row + d);
  for (int i = n - d; i < lanes; ++i) last[i] = 0;
  f(d, last);
}

// For scaling a row: units a row of dim elements has, its scale, and what undoes it.
struct Scale {
  vf factor, back;
  explicit Scale(vf squares) {
    const vf norm = square_root(squares);
    factor = length / max(norm, splat(1e-30f));
    back = norm * (1 / length);
  }
};

template <class Unit> struct AttentionTile {
  const AttentionTask& task;
  int dim, width, rows, stride;
  Unit *q, *keys, *values;       // (units, rows), (units, page), (units of page, width)
  float *scores, *out;           // (page, rows of a block), then the weights; (width, rows)
  float *q_scale, *top, *total;  // of rows
  int32_t* position;
  float *key_scale, *exponent, *inverse; // of keys: the last two of values

  AttentionTile(const AttentionTask& t, float* at)
      : task(t), dim(t.head_dim), width(lltool::attention_width(dim)), rows(t.tokens * t.group),
        stride((rows + lanes - 1) / lanes * lanes) {
    const auto take = [&](int64_t n) {
      float* p = at;
      at += (n + 15) / 16 * 16;
      return p;
    };
    q = (Unit*)take(int64_t(width) * stride), keys = (Unit*)take(int64_t(width) * page_tokens);
    values = (Unit*)take(int64_t(width) * page_tokens);
    scores = take(page_tokens * vectors_at_once * lanes), out = take(int64_t(width) * stride);
    q_scale = take(stride), top = take(stride), total = take(stride), position = (int32_t*)take(stride);
    key_scale = take(page_tokens), exponent = take(page_tokens), inverse = take(page_tokens);
  }

  // Rows past the last have no query and see what the last one sees.
  void begin() {
    const float scale = task.softcap > 0 ? task.scale / task.softcap : task.scale * log2_e;
    std::memset(out, 0, size_t(width) * size_t(stride) * 4);
    for (int first = 0; first < stride; first += lanes) {
      Unit* units = values; // (lanes, width): no page is there yet
      for (int i = 0; i < lanes; ++i, units += width) {
        const int r = first + i, t = std::min(r, rows - 1) / task.group, h = r % task.group;
        const bool has_sink = task.sinks && r < rows;
        top[r] = has_sink ? task.sinks[h] * log2_e : masked, total[r] = has_sink ? 1 : 0;
        position[r] = task.first_position + t;
        if (r < rows)
          take_query(task.q + t * task.row_stride + h * dim, scale, units, q_scale + r);
        else
          std::memset(units, 0, size_t(width) * 4), q_scale[r] = 0;
      }
      for (int d = 0; d < width; d += lanes) {
        vi v[lanes];
        for (int i = 0; i < lanes; ++i) v[i] = load<vi>(values + i * width + d);
        transpose(v);
        for (int i = 0; i < lanes; ++i) store(q + (d + i) * stride + first, v[i]);
      }
    }
  }

  void take_query(const float* x, float scale, Unit* units, float* back) {
    if constexpr (std::is_same_v<Unit, float>) {
      each_vector(x, dim, [&](int d, vf v) { store(units + d, v * scale); });
    } else {
      vf squares{};
      each_vector(x, dim, [&](int, vf v) { squares += v * v; });
      const Scale s(splat(sum_of(squares)));
      each_vector(x, dim, [&](int d, vf v) { store_rounded(reinterpret_cast<int16_t*>(units) + d, v * s.factor); });
      *back = s.back[0] * scale;
    }
  }

  template <class T> void take_keys(const T* k) {
    if constexpr (std::is_same_v<Unit, float>) {
      for (int i = 0; i < dim * page_tokens; i += lanes) store(keys + i, widen(k + i));
    } else {
      constexpr int n = page_tokens / lanes;
      vf squares[n], factor[n];
      for (int j = 0; j < n; ++j) squares[j] = vf{};
      for (int d = 0; d < dim; ++d)
        for (int j = 0; j < n; ++j) {
          const vf x = widen(k + d * page_tokens + j * lanes);
          squares[j] += x * x;
        }
      for (int j = 0; j < n; ++j) {
        const Scale s(squares[j]);
        factor[j] = s.factor;
        store(key_scale + j * lanes, s.back);
      }
      for (int d = 0; d < dim; d += 2)
        for (int j = 0; j < n; ++j) {
          const T* x = k + d * page_tokens + j * lanes;
          const vf y = d + 1 < dim ? widen(x + page_tokens) : vf{};
          store(keys + d / 2 * page_tokens + j * lanes, pair(widen(x) * factor[j], y * factor[j]));
        }
    }
  }

  // The first `count` values; the others are zero.
  template <class T> void take_values(const T* v, int count) {
    if constexpr (std::is_same_v<Unit, float>) {
      for (int j = 0; j < count; ++j)
        each_vector(v + j * dim, dim, [&](int d, vf x) { store(values + j * width + d, x); });
      std::memset(values + count * width, 0, size_t((page_tokens - count) * width) * 4);
    } else {
      for (int j = 0; j < page_tokens; j += lanes) {
        vf most[lanes];
        for (int i = 0; i < lanes; ++i) {
          vf top{};
          if (j + i < count) each_vector(v + (j + i) * dim, dim, [&](int, vf x) { top = max(top, abs(x)); });
          most[i] = top;
        }
        vi bits = ((vi)reduce_each(most, [](vf a, vf b) { return max(a, b); }) >> 23) + (1 - 127 - value_bits);
        bits = bits > -64 ? bits : splat(-64); // of zeros
        store(exponent + j, to_float(bits));
        store(inverse + j, (127 - bits) << 23);
      }
      for (int j = 0; j < page_tokens; j += 2) {
        int32_t* to = values + j / 2 * width;
        const float x_scale = inverse[j], y_scale = inverse[j + 1];
        const T* next = v + (j + 1) * dim;
        if (j + 1 < count)
          each_vector(v + j * dim, dim, [&](int d, vf x) { store(to + d, pair(x * x_scale, widen(next + d) * y_scale)); });
        else if (j < count)
          each_vector(v + j * dim, dim, [&](int d, vf x) { store(to + d, pair(x * x_scale, vf{})); });
        else
          std::memset(to, 0, size_t(width) * 4);
      }
    }
  }

  // a (n, R vectors) times b (n, columns_at_once): f(column, vector, sum).
  template <int R, class Function>
  static void multiply(const Unit* a, int64_t lda, const Unit* b, int64_t ldb, int64_t n, Function f) {
    using V = Vector<Unit>;
    V acc[columns_at_once][R]; // GCC would clear it as memory
    for (int c = 0; c < columns_at_once; ++c)
      for (int r = 0; r < R; ++r) acc[c][r] = V{};
    for (int64_t i = 0; i < n; ++i) {
      V x[R];
      for (int r = 0; r < R; ++r) x[r] = load<V>(a + i * lda + r * lanes);
      for (int c = 0; c < columns_at_once; ++c) {
        const V y = splat(b[i * ldb + c]);
        for (int r = 0; r < R; ++r) acc[c][r] = multiply_add(acc[c][r], x[r], y);
      }
    }
    for (int c = 0; c < columns_at_once; ++c)
      for (int r = 0; r < R; ++r) {
        if constexpr (std::is_same_v<Unit, float>)
          f(c, r, acc[c][r]);
        else
          f(c, r, to_float(acc[c][r]));
      }
  }

  // R vectors of rows from `first` on see keys [begin, end) of the page at `base`, whole columns_at_once.
  template <int R> void take_page(int first, int base, int begin, int end, bool is_masked) {
    constexpr bool floats = std::is_same_v<Unit, float>;
    constexpr int width_of_block = R * lanes;
    vf high[R], keep[R], factor[R], sum[R] = {};
    vi last[R];
    for (int r = 0; r < R; ++r) {
      high[r] = splat(masked);
      last[r] = load<vi>(position + first + r * lanes) - base;
    }
    const vf cap = splat(task.softcap * log2_e);
    for (int j = begin; j < end; j += columns_at_once)
      multiply<R>(q + first, stride, keys + j, page_tokens, (dim + per_unit<Unit> - 1) / per_unit<Unit>, [&](int c, int r, vf s) {
        if (!floats) s *= load<vf>(q_scale + first + r * lanes) * key_scale[j + c];
        if (task.softcap > 0) s = tanh(s) * cap;
        if (!floats) s += exponent[j + c];
        if (is_masked) {
          s = last[r] >= j + c ? s : splat(masked);
          if (task.window) s = last[r] - task.window < j + c ? s : splat(masked);
        }
        high[r] = max(high[r], s);
        store(scores + (j + c) * width_of_block + r * lanes, s);
      });
    for (int r = 0; r < R; ++r) {
      float* t = top + first + r * lanes;
      high[r] = max(high[r], splat(lowest));
      const vf before = load<vf>(t), now = max(before, high[r]);
      store(t, now);
      keep[r] = exp2(before - now);
      factor[r] = exp2(high[r] - now - (floats ? 0 : weight_bits));
      high[r] -= floats ? 0 : weight_bits;
    }
    Unit* weights = (Unit*)scores;
    for (int j = begin; j < end; j += 2)
      for (int r = 0; r < R; ++r) {
        const float* s = scores + j * width_of_block + r * lanes;
        const vf x = exp2(load<vf>(s) - high[r]), y = exp2(load<vf>(s + width_of_block) - high[r]);
        if constexpr (floats) {
          sum[r] += x + y;
          store(weights + j * width_of_block + r * lanes, x);
          store(weights + (j + 1) * width_of_block + r * lanes, y);
        } else {
          sum[r] += x * inverse[j] + y * inverse[j + 1];
          store(weights + j / 2 * width_of_block + r * lanes, pair(x, y));
        }
      }
    for (int r = 0; r < R; ++r) {
      float* t = total + first + r * lanes;
      store(t, load<vf>(t) * keep[r] + sum[r] * factor[r]);
    }
    const int from = begin / per_unit<Unit>, count = (end - begin) / per_unit<Unit>;
    for (int d = 0; d < dim; d += columns_at_once)
      multiply<R>(weights + from * width_of_block, width_of_block, values + from * width + d, width, count,
                  [&](int c, int r, vf s) {
                    float* o = out + (d + c) * stride + first + r * lanes;
                    store(o, load<vf>(o) * keep[r] + s * factor[r]);
                  });
  }

  template <int R = vectors_at_once> void take_rows(int first, int vectors, int base) {
    if constexpr (R > 1)
      if (vectors < R) return take_rows<R - 1>(first, vectors, base);
    const int lo = position[first] - base, hi = position[first + R * lanes - 1] - base; // keys of the first row and of the last
    const int begin = task.window ? std::max(0, lo - task.window + 1) / columns_at_once * columns_at_once : 0;
    const int end = std::min(hi / columns_at_once * columns_at_once + columns_at_once, page_tokens);
    if (hi < 0 || begin >= end) return;
    take_page<R>(first, base, begin, end, end > lo + 1 || (task.window && hi - task.window >= begin));
  }

  void finish() {
    if (task.partial) {
      std::memcpy(task.partial + int64_t(rows) * width, top, size_t(rows) * 4);
      std::memcpy(task.partial + int64_t(rows) * (width + 1), total, size_t(rows) * 4);
    }
    for (int first = 0; first < stride; first += lanes)
      for (int d = 0; d < dim; d += lanes) {
        vi v[lanes];
        for (int i = 0; i < lanes; ++i) v[i] = load<vi>(out + (d + i) * stride + first);
        transpose(v);
        for (int i = 0; i < lanes && first + i < rows; ++i) {
          const int r = first + i;
          const vf row = (vf)v[i] * (task.partial ? 1 : 1 / total[r]);
          float* to = task.partial ? task.partial + int64_t(r) * width
                                   : task.out + r / task.group * task.row_stride + r % task.group * dim;
          std::memcpy(to + d, &row, size_t(std::min(lanes, dim - d)) * 4);
        }
      }
  }
};

template <class Unit> void attend_tile(const AttentionTask& task) {
  float* decoded = task.scratch;
  AttentionTile<Unit> tile(task, decoded + int64_t(lltool::attention_width(task.head_dim)) * page_tokens);
  tile.begin();
  const int last = task.first_position + task.tokens - 1;
  for (int page = task.first_page; page < task.end_page; ++page) {
    const int base = page * page_tokens, count = std::min(last + 1 - base, page_tokens);
    const int64_t at = task.pages[page] * task.page_stride;
    with_keys(task.k_type, task.k_pages + at, task.head_dim, decoded, [&](auto k) { tile.take_keys(k); });
    with_values(task.v_type, task.v_pages + at, task.head_dim, count, decoded, [&](auto v) { tile.take_values(v, count); });
    for (int first = 0; first < tile.stride; first += vectors_at_once * lanes)
      tile.take_rows(first, (tile.stride - first) / lanes, base);
  }
  tile.finish();
}

} // namespace
