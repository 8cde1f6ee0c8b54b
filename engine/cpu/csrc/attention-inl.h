// Attention of consecutive tokens over a paged cache: online softmax in powers of two, one page of keys at a
// time. The query heads that share a key/value head are extra rows, so that one read of a page serves them all. Keys
// are in lanes for scores, and dimensions for results; queries and weights are broadcast.
//
// Products are of floats, or of pairs of int16, which multiply twice as fast. Weights have 13 bits relative to the
// largest of a page and values 12, so that 64 products fit in 31 bits. The exponent of a value is added to the score, so
// that the product of weight and value is what is rounded.
//
// A row has the same bits whatever the other rows of its task are: the order of its sums is that of its keys, and a
// masked key adds an exact zero. Keys are reduced in parts of part_pages pages, counted from the start of the sequence,
// which are added in order, so that it does not matter either which thread reduces which part.
#pragma once
#include <type_traits>

#include "attention_products-inl.h"
#include "cache-inl.h"

namespace {

using lltool::attention_rows;
using lltool::AttentionTask;
using lltool::part_pages;

constexpr float masked = -1e30f, lowest = -1e29f; // the score of a masked key, and a lower bound of the others
constexpr float log2_e = 1.44269504f;
constexpr float weight_bits = 12.9998f;
constexpr int key_step = 16; // rows skip keys in whole steps; a multiple of `lanes`
constexpr int32_t counted[key_step] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Reduces all lanes of each of the first n vectors to a lane, in the order of reduce_each, which is slower for a few.
template <class Combine> inline vf reduce_first(vf (&v)[lanes], int n, Combine combine) {
  if (n > 2) return reduce_each(v, combine);
  vf reduced{};
  for (int i = 0; i < n; ++i) {
    for (int round = 1; round < lanes; round *= 2) v[i] = combine((vf)zip_low((vi)v[i], (vi)v[i]), (vf)zip_high((vi)v[i], (vi)v[i]));
    reduced[i] = v[i][0];
  }
  return reduced;
}

// ---- values of their own, and values that are the beginnings of keys

inline CacheType value_type(const AttentionTask& task) { return task.v_pages ? task.v_type : task.k_type; }
inline int64_t key_block(const AttentionTask& task) {
  return lltool::transformed_block(task.head_dim, task.v_pages ? 0 : task.value_dim);
}
inline int64_t value_block(const AttentionTask& task) {
  return task.v_pages ? lltool::transformed_block(task.value_dim) : key_block(task);
}

// ---- adding parts, in task.out

struct Totals {
  float top[attention_rows], total[attention_rows]; // the largest score, and the sum of 2^(score - top)
};

inline void begin(const AttentionTask& task, Totals& totals) {
  for (int t = 0; t < task.tokens; ++t) std::memset(task.out + t * task.out_stride, 0, size_t(task.group * task.value_dim) * 4);
  for (int r = 0; r < task.tokens * task.group; ++r) {
    totals.top[r] = task.sinks ? task.sinks[r % task.group] * log2_e : masked;
    totals.total[r] = task.sinks ? 1 : 0;
  }
}

// Adds a part of the keys: `out` (rows, width), and `top` and `total` as in Totals. Not inline, so that every caller has
// the same instructions.
[[gnu::noinline]] void add_part(const AttentionTask& task, Totals& totals, const float* out, const float* top, const float* total) {
  const int width = lltool::attention_width(task.value_dim);
  for (int r = 0; r < task.tokens * task.group; ++r, out += width) {
    const float now = std::max(totals.top[r], top[r]);
    const float keep = exp2(splat(totals.top[r] - now))[0], factor = exp2(splat(top[r] - now))[0];
    totals.top[r] = now;
    totals.total[r] = totals.total[r] * keep + total[r] * factor;
    float* to = task.out + r / task.group * task.out_stride + r % task.group * task.value_dim;
    for (int d = 0; d < task.value_dim; ++d) to[d] = to[d] * keep + out[d] * factor;
  }
}

// The results are sums of values, so if the cache holds transformed values, the results are transformed too.
[[gnu::noinline]] void finish(const AttentionTask& task, const Totals& totals) {
  for (int r = 0; r < task.tokens * task.group; ++r) {
    float* to = task.out + r / task.group * task.out_stride + r % task.group * task.value_dim;
    const float inverse = 1 / totals.total[r];
    for (int d = 0; d < task.value_dim; ++d) to[d] *= inverse;
    if (has_blocks(value_type(task))) hadamard(to, task.value_dim, value_block(task));
  }
}

// ---- reducing a part

template <bool pairs> class Attention {
  using Unit = std::conditional_t<pairs, int32_t, float>; // what queries and weights are multiplied as
  static constexpr int per_unit = pairs ? 2 : 1;

public:
  explicit Attention(const AttentionTask& t)
      : task(t), dim(t.head_dim), key_width(lltool::attention_width(dim)), value_dim(t.value_dim),
        width(lltool::attention_width(value_dim)), rows(t.tokens * t.group) {
    float* at = t.scratch;
    const auto take = [&](int64_t n) {
      float* p = at;
      at += n;
      return p;
    };
    own_keys = take(int64_t(key_width) * page_tokens), own_values = take(int64_t(width) * page_tokens);
    queries = (Unit*)take(int64_t(key_width) * attention_rows);
    part = task.partial ? task.partial : take(int64_t(width) * attention_rows);
    for (int r = 0; r < rows; ++r) take_query(r);
  }

  // Reduces pages up to `end`, of one part.
  void reduce(int page, int end) {
    std::memset(part, 0, size_t(rows) * size_t(width) * 4);
    std::fill_n(top, attention_rows, masked), std::fill_n(total, attention_rows, 0.0f);
    for (; page < end; ++page) {
      load_page(page);
      for (int first = 0; first < rows; first += lanes) take_rows(first, std::min(lanes, rows - first));
    }
  }

  const AttentionTask& task;
  float* part;                                      // (rows, width)
  float top[attention_rows], total[attention_rows]; // of the part

private:
  void take_query(int r) {
    const float scale = task.softcap > 0 ? task.scale / task.softcap : task.scale * log2_e;
    const float* x = task.q + r / task.group * task.row_stride + r % task.group * dim;
    Unit* to = queries + r * key_width;
    float spread[max_head_dim];
    if (has_blocks(task.k_type)) {
      std::memcpy(spread, x, size_t(dim) * 4);
      hadamard(spread, dim, key_block(task));
      x = spread;
    }
    if constexpr (pairs) {
      vf squares{};
      each_vector(x, dim, [&](int64_t, vf v) { squares += v * v; });
      const KeyScale s(splat(sum_of(squares)));
      each_vector(x, dim, [&](int64_t d, vf v) { store_rounded(reinterpret_cast<int16_t*>(to) + d, v * s.factor); });
      query_scale[r] = s.back[0] * scale;
    } else {
      each_vector(x, dim, [&](int64_t d, vf v) { store(to + d, v * scale); });
    }
  }

  // Sets the page's keys and values, in place if they can be multiplied as they are.
  void load_page(int page) {
    const int64_t at = task.pages[page] * task.page_stride;
    const uint8_t *k_page = task.k_pages + at, *v_page = task.v_pages ? task.v_pages + at : k_page;
    const uint8_t* next = page + 1 < task.end_page ? task.k_pages + task.pages[page + 1] * task.page_stride : v_page;
    base = page * page_tokens, count = std::min(task.keys - base, page_tokens);
    k_type = task.k_type, v_type = task.v_type, keys = k_page, values = v_page;
    if constexpr (pairs) {
      load_pairs(k_page, task.v_pages ? v_page : nullptr);
    } else {
      const bool is_read_often = rows > lanes;
      if (has_blocks(k_type) || (is_read_often && k_type != CacheType::f32))
        decode_keys(k_type, k_page, dim, own_keys), keys = own_keys, k_type = CacheType::f32;
      if (!task.v_pages)
        read(k_type, keys, [&](auto k) { values_of_keys(k, dim, width, count, own_values); }), values = own_values, v_type = CacheType::f32;
      else if (has_blocks(v_type) || (is_read_often && v_type != CacheType::f32))
        decode_values(v_type, v_page, value_dim, count, own_values), values = own_values, v_type = CacheType::f32;
    }
    to_values = keys != k_page ? 0 : (task.v_pages ? v_page : next) - k_page;
    to_next = values == v_page ? next - v_page : 0;
  }

  // `v_page` is null for values of keys.
  void load_pairs(const uint8_t* k_page, const uint8_t* v_page) {
    if (has_blocks(k_type)) {
      pair_keys(k_type, k_page, dim, reinterpret_cast<int32_t*>(own_keys), own_scales);
      keys = own_keys, key_scale = own_scales;
    } else {
      key_scale = reinterpret_cast<const float*>(k_page) + (dim + 1) / 2 * page_tokens;
    }
    int32_t own_exponents[page_tokens];
    const int32_t* exponents = own_exponents;
    if (!v_page) {
      pair_values_of_keys(static_cast<const int32_t*>(keys), key_scale, dim, width, count, reinterpret_cast<int32_t*>(own_values),
                          own_exponents);
      values = own_values;
    } else if (has_blocks(v_type)) {
      pair_values(v_type, v_page, value_dim, count, reinterpret_cast<int32_t*>(own_values), own_exponents);
      values = own_values;
    } else {
      exponents = reinterpret_cast<const int32_t*>(v_page) + width * page_tokens / 2;
    }
    for (int j = 0; j < page_tokens; j += lanes) {
      vi e = load<vi>(exponents + j); // anything where no token is stored yet
      e = e > -64 ? e : splat(-64), e = e < 126 ? e : splat(126);
      store(exponent + j, to_float(e));
      store(inverse + j, power_of_two(-e));
    }
  }

  // Calls f with keys or values of this type.
  template <class Function> static void read(CacheType type, const void* data, Function f) {
    if constexpr (pairs)
      f(static_cast<const int32_t*>(data));
    else if (type == CacheType::f16)
      f(static_cast<const Float16*>(data));
    else if (type == CacheType::bf16)
      f(static_cast<const Brain16*>(data));
    else
      f(static_cast<const float*>(data));
  }

  int own_key(int r) const { return task.first_position + r / task.group - base; }
  int last_key(int r) const { return own_key(r) + std::min(task.ahead, task.keys - 1 - base - own_key(r)); } // that the row sees

  // Adds the page to `n` rows, at most one per lane.
  void take_rows(int first, int n) {
    const int lo = last_key(first), hi = last_key(first + n - 1); // the last keys that the first and the last row see
    const int first_seen = std::max({0, task.first_key - base, task.window ? own_key(first) - task.window + 1 : 0});
    const int begin = first_seen / key_step * key_step;
    const int end = std::min(hi / key_step * key_step + key_step, page_tokens);
    if (hi < 0 || begin >= end) return;
    read(k_type, keys, [&](auto k) {
      multiply(queries + int64_t(first) * key_width, key_width, n, k, page_tokens, (dim + per_unit - 1) / per_unit, begin, end, scores,
               page_tokens, first ? 0 : to_values, [](int, float* at, auto sum) { store(at, sum); });
    });
    weigh(first, n, begin, end, end > lo + 1 || first_seen > begin || (task.window && own_key(first + n - 1) - task.window >= begin));
    const int from = begin / per_unit, units = (std::min(end, count) + per_unit - 1) / per_unit - from, row = pairs || !task.v_pages ? width : value_dim;
    const float* factor = factors;
    read(v_type, values, [&](auto v) {
      multiply((const Unit*)scores + from, page_tokens, n, v + from * row, row, units, 0, width, part + int64_t(first) * width, width,
               first ? 0 : to_next, [factor](int r, float* at, auto sum) { store(at, load<vf>(at) + as_float(sum) * factor[r]); });
    });
  }

  static vf as_float(vf x) { return x; }
  static vf as_float(vi x) { return to_float(x); }

  // Replaces products by weights, scales what the part has so far, and sets the factors of what the page adds.
  void weigh(int first, int n, int begin, int end, bool is_masked) {
    const float cap = task.softcap * log2_e;
    vf reduced[lanes];
    for (int r = 0; r < n; ++r) {
      vf high = splat(masked);
      const int own = own_key(first + r), last = last_key(first + r);
      const float slope = task.slopes ? task.slopes[(first + r) % task.group] * log2_e : 0;
      const float* biases = task.biases ? lltool::biases_of(task, (first + r) % task.group) : nullptr;
      for (int j = begin; j < end; j += lanes) {
        float* at = scores + r * page_tokens + j;
        vf s;
        if constexpr (pairs) {
          const vf x = to_float(load<vi>(at)), scale = load<vf>(key_scale + j) * query_scale[first + r], e = load<vf>(exponent + j);
          if (task.softcap > 0) // one statement each: what is fused does not depend on the branch
            s = tanh(x * scale) * cap + e;
          else
            s = x * scale + e;
        } else {
          s = load<vf>(at);
          if (task.softcap > 0) s = tanh(s) * cap;
        }
        if (task.slopes) s -= abs(to_float(load<vi>(counted) + (j - own))) * slope;
        if (biases) s += load<vf>(biases + std::clamp(j - own, -task.bias_reach, task.bias_reach)) * log2_e;
        if (is_masked) {
          const vi key = load<vi>(counted) + j;
          s = key <= last ? s : splat(masked);
          if (task.first_key > base) s = key >= task.first_key - base ? s : splat(masked);
          if (task.window) s = key > own - task.window ? s : splat(masked);
        }
        high = max(high, s);
        store(at, s);
      }
      reduced[r] = high;
    }
    for (int r = n; r < lanes; ++r) reduced[r] = splat(masked);
    const vf high = max(reduce_first(reduced, n, [](vf a, vf b) { return max(a, b); }), splat(lowest));
    const vf before = load<vf>(top + first), now = max(before, high), keep = exp2(before - now);
    store(top + first, now);
    float keeps[lanes], highs[lanes];
    store(keeps, keep), store(highs, high - (pairs ? weight_bits : 0));
    store(factors, exp2(high - now - (pairs ? weight_bits : 0)));
    for (int r = 0; r < n; ++r) {
      float* row = scores + r * page_tokens;
      vf sum{};
      for (int j = begin; j < end; j += lanes) {
        const vf x = exp2(load<vf>(row + j) - highs[r]);
        if constexpr (pairs) {
          sum += x * load<vf>(inverse + j);
          store_rounded(reinterpret_cast<int16_t*>(row) + j, x);
        } else {
          sum += x;
          store(row + j, x);
        }
      }
      reduced[r] = sum;
      float* o = part + int64_t(first + r) * width;
      if (keeps[r] != 1.0f)
        for (int d = 0; d < width; d += lanes) store(o + d, load<vf>(o + d) * keeps[r]);
    }
    for (int r = n; r < lanes; ++r) reduced[r] = vf{};
    const vf sum = reduce_first(reduced, n, [](vf a, vf b) { return a + b; });
    store(total + first, load<vf>(total + first) * keep + sum * load<vf>(factors));
  }

  const int dim, key_width, value_dim, width, rows; // `width` is that of values and results
  float *own_keys, *own_values;
  Unit* queries; // (rows, key_width), of which key_width / per_unit are used
  // Of the page:
  int base, count;
  CacheType k_type, v_type;
  const void *keys, *values;
  int64_t to_values, to_next; // bytes to what is read after the keys and after the values; 0 if these were copied
  const float* key_scale;
  float own_scales[page_tokens], exponent[page_tokens], inverse[page_tokens], query_scale[attention_rows];
  // Of the block of rows: scores, later replaced by weights, and factors of what the page adds.
  float scores[lanes * page_tokens], factors[lanes];
};

template <bool pairs> void attend(const AttentionTask& task) {
  Attention<pairs> attention(task);
  if (task.partial) {
    attention.reduce(task.first_page, task.end_page);
    const size_t rows = size_t(task.tokens * task.group);
    float* to = task.partial + rows * size_t(lltool::attention_width(task.value_dim));
    std::memcpy(to, attention.top, rows * 4);
    std::memcpy(to + rows, attention.total, rows * 4);
    return;
  }
  Totals totals;
  begin(task, totals);
  for (int page = task.first_page; page < task.end_page; page = page / part_pages * part_pages + part_pages) {
    attention.reduce(page, std::min(page / part_pages * part_pages + part_pages, task.end_page));
    add_part(task, totals, attention.part, attention.top, attention.total);
  }
  finish(task, totals);
}

void attention(const AttentionTask& task) {
  if constexpr (multiplies_pairs)
    if (task.pairs) return attend<true>(task);
  attend<false>(task);
}

// Adds the partial results of `count` tasks with the same rows, one for each part, `stride` floats apart.
void merge_attention(const AttentionTask& task, const float* parts, int count, int64_t stride) {
  const int64_t rows = task.tokens * task.group, width = lltool::attention_width(task.value_dim);
  Totals totals;
  begin(task, totals);
  for (int p = 0; p < count; ++p, parts += stride)
    add_part(task, totals, parts, parts + rows * width, parts + rows * (width + 1));
  finish(task, totals);
}

} // namespace
