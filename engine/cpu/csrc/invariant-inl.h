// Products of one or two tokens with a weight whose results have the bits that matmul-inl.h gives them in a panel: activations
// are rounded as there, and products are added in the same order (`add_products`). Rows are read one after another, as in
// matvec-inl.h. Their dot products of each step are kept for four rows, whose sums are then in the lanes of a vector.
#pragma once
#include "matvec-inl.h"

namespace {

// The layout of a token: steps of lane_groups groups of 32, each group in 16 bytes of a vector. In a step, q holds columns
// 0-15 of its groups, then 16-31. There is a scale for each group, and for each the sum of its first 16 q, in the order that
// sum_fours gives for four steps; after those of all groups (whole vectors) come the sums of the last 16. If K is not a
// multiple of the step, the last step overlaps the one before, with zeros for the shared columns.
struct Steps {
  int64_t whole, count;  // steps that overlap none, and all
  int64_t groups, shift; // groups of all steps, and how many of them come before the rest of the last step's groups

  explicit Steps(int64_t K)
      : whole(K / step), count((K + step - 1) / step), groups(count * lane_groups), shift(K < step ? 0 : groups - K / 32) {}
  int64_t place(int64_t group) const { return group < whole * lane_groups ? group : group + shift; }
};

void quantize_invariant(const float* x, int64_t K, Quantized out) {
  const Steps steps(K);
  const int64_t groups = K / 32, places = whole_vectors(steps.groups), full = steps.whole * lane_groups;
  int32_t columns[1][outlier_columns];
  float* most = out.scale;
  const int count = find_outliers(x, K, columns[0], most, reinterpret_cast<float*>(out.sum));
  out.outliers.set<1>(columns, &count, 1, x, 0);
  for (int i = 0; i < count; ++i) {
    const int64_t group = columns[0][i] / 32;
    float left = 0; // the largest of the others
    for (int64_t k = 32 * group; k < 32 * group + 32; ++k)
      if (k != columns[0][i]) left = std::fabs(x[k]) > left ? std::fabs(x[k]) : left;
    most[group] = left;
  }
  if (steps.count > steps.whole) std::memset(out.q + steps.whole * step, 0, step);
  const auto codes = [&](int64_t group) {
    const int64_t place = steps.place(group);
    return out.q + place / lane_groups * step + place % lane_groups * 16;
  };
  for (int64_t first = 0; first < groups; first += lanes) {
    const vf top = load<vf>(most + first), inverse = top > 0.0f ? 127.0f / top : vf{};
    store(out.scale + first, top / 127.0f);
    for (int64_t g = first; g < groups && g < first + lanes; ++g)
      for (int half = 0; half < 2; ++half)
        for (int i = 0; i < 16; i += lanes)
          store_rounded(codes(g) + half * step / 2 + i, load<vf>(x + 32 * g + 16 * half + i) * inverse[g - first]);
  }
  for (int i = 0; i < count; ++i)
    codes(columns[0][i] / 32)[columns[0][i] % 32 / 16 * step / 2 + columns[0][i] % 16] = 0;
  if (steps.shift) {
    std::memmove(out.scale + full + steps.shift, out.scale + full, size_t(groups - full) * 4);
    std::fill_n(out.scale + full, steps.shift, 0.0f);
  }
  std::fill_n(out.scale + full + steps.shift + groups - full, places - full - steps.shift - (groups - full), 0.0f);
  for (int64_t place = 0; place < places; place += lanes)
    for (int half = 0; half < 2; ++half) {
      vi sums[4];
      for (int i = 0; i < 4; ++i) {
        const int64_t at = place / lane_groups + i; // the step
        sums[i] = at < steps.count ? dot4<1>(vi{}, vb{} + 1, load<vb>(out.q + at * step + half * step / 2)) : vi{};
      }
      store(out.sum + half * places + place, sum_fours(sums));
    }
}

template <class F> constexpr int parts_of_32 = 32 / F::group; // that have their own scales

// The weights of a step, in the layout of the activations.
struct Codes {
  vb half[2]; // columns 0-15 of the groups, then 16-31
};

// Codes of a packed row in the file, whose codes are unpacked in registers.
template <class F> struct PackedCodes {
  static_assert(F::block == 32 || F::block % step == 0);
  static constexpr int together = F::block == 32 ? 4 : F::block / step; // steps that are multiplied in turn
  const uint8_t* p;
  float *scale, *min; // where those of blocks with several go

  void begin() {
    if constexpr (F::block > 32) {
      F::scales(p, scale, min);
      scale += F::block / F::group;
      min += F::block / F::group;
    }
  }
  void move() {
    constexpr int bytes = together * step / F::block * F::bytes;
    p += bytes;
    fetch_ahead<bytes>(p);
  }
  Codes codes(int64_t column) const {
    const auto groups = F::template codes<Lanes<lane_groups>>(p + column / F::block * F::bytes, int(column % F::block / 32));
    return {(vb)groups.low, (vb)groups.high};
  }
};

// Of a row that was unpacked to memory.
template <class F> struct UnpackedCodes {
  static constexpr int together = 4;
  const uint8_t* p;

  void begin() {}
  void move() { p += together * step; }
  Codes codes(int64_t column) const {
    const auto half = [&](int i) { return (vb)Lanes<lane_groups>::gather([&](int j) { return p + column + 32 * j + 16 * i; }); };
    return {half(0), half(1)};
  }
};

// A token: its steps, and for each step and part what is added to dot products, and what minima are multiplied with, both
// repeated in four lanes.
struct Token {
  const int8_t* q;
  const float* scale;
  int32_t* start;
  float* offset;
};

template <class F> inline Token take_token(Quantized x, const Steps& steps, uint8_t*& space) {
  constexpr int parts = parts_of_32<F>, bias = dot_bias<F::max_code>;
  const int64_t items = parts * steps.count * lanes, places = whole_vectors(steps.groups);
  Token token{x.q, x.scale, reinterpret_cast<int32_t*>(space), reinterpret_cast<float*>(space) + items};
  space += 2 * items * 4;
  if constexpr (F::has_min || F::zero != bias)
    for (int64_t s = 0; s < steps.count; ++s)
      for (int part = 0; part < parts; ++part)
        for (int j = 0; j < lane_groups; ++j) {
          const int32_t* half = x.sum + s / 4 * lanes + 4 * j + s % 4;
          const int32_t sum = parts == 2 ? half[part * places] : half[0] + half[places];
          for (int64_t i = (s * parts + part) * lanes + 4 * j, end = i + 4; i < end; ++i) {
            token.start[i] = sum * (bias - F::zero);
            token.offset[i] = float(sum);
          }
        }
  return token;
}

// Multiplies a row by N tokens, to the lanes of each step's dot products.
template <class F, int N, class AnyRow> inline void multiply_row(AnyRow row, const Token (&x)[N], const Steps& steps, int32_t* const (&to)[N]) {
  constexpr int parts = parts_of_32<F>, together = AnyRow::together;
  const auto multiply = [&](int64_t s, Codes w) {
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      const int8_t* q = x[n].q + s * step;
      const vb halves[2] = {load<vb>(q), load<vb>(q + step / 2)};
      int32_t* out = to[n] + s * parts * lanes;
      if constexpr (parts == 1) {
        store(out, dot4<F::max_code>(vi{}, w.half, halves));
      } else {
        store(out, dot4<F::max_code>(vi{}, w.half[0], halves[0]));
        store(out + lanes, dot4<F::max_code>(vi{}, w.half[1], halves[1]));
      }
    }
  };
  int64_t s = 0;
  for (; s + together <= steps.whole; s += together, row.move()) {
    row.begin();
#pragma GCC unroll 8
    for (int i = 0; i < together; ++i) multiply(s + i, row.codes(i * step));
  }
  const int64_t first = s;
  for (; s < steps.whole; ++s) multiply(s, row.codes((s - first) * step));
  if (s < steps.count) multiply(s, row.codes((s - first) * step - steps.shift * 32));
}

// The scales of four rows, of which each has `places` groups from a group on, in the lanes of sum_fours.
template <class F> struct Scales {
  vf scale[parts_of_32<F>], min[parts_of_32<F>];

  void take(const uint8_t* const (&rows)[4], int64_t group) {
    if constexpr (F::has_min)
      gather_half_pairs(rows, group * F::bytes, F::bytes, scale[0], min[0]);
    else
      scale[0] = gather_halves(rows, group * F::bytes, F::bytes);
  }
  void take(const Row& rows, int64_t stride, int64_t group) {
    columns_of_rows(rows.scale + group * parts_of_32<F>, stride, scale);
    if constexpr (F::has_min) columns_of_rows(rows.min + group * parts_of_32<F>, stride, min);
  }
};

// What rows have at a token's outliers, for what is not read from the file again.
struct AtOutliers {
  int32_t code[outlier_columns][lanes];
  float scale[outlier_columns][lanes], min[outlier_columns][lanes];

  template <class F> void take(Outliers outliers, Row row, int64_t number) {
    for (int i = 0; i < *outliers.count; ++i) {
      const int32_t column = outliers.columns()[i];
      scale[i][number] = row.scale[column / F::group];
      if constexpr (F::has_min) min[i][number] = row.min[column / F::group];
      if constexpr (!is_in_registers<F>) code[i][number] = row.codes[column];
    }
  }
};

// The weights of `rows` rows in a token's outlier number i, of which the first row is at p.
template <class F> inline vf weights_at(const uint8_t* p, int64_t row_bytes, int64_t rows, int32_t column, const AtOutliers& at, int i) {
  vf scale, min{};
  if constexpr (!is_in_registers<F>) {
    return weights_of<F>(load<vi>(at.code[i]), load<vf>(at.scale[i]), F::has_min ? load<vf>(at.min[i]) : min);
  } else {
    uint8_t copy[lanes * F::bytes];
    p += column / F::block * F::bytes;
    if (rows < lanes) {
      std::memset(copy, 0, sizeof copy);
      for (int64_t r = 0; r < rows; ++r) std::memcpy(copy + r * F::bytes, p + r * row_bytes, F::bytes);
      p = copy;
      row_bytes = F::bytes;
    }
    if constexpr (F::block > 32) {
      scale = load<vf>(at.scale[i]);
      if constexpr (F::has_min) min = load<vf>(at.min[i]);
    } else if constexpr (F::has_min) {
      const uint8_t* four[4] = {p, p + row_bytes, p + 2 * row_bytes, p + 3 * row_bytes};
      gather_half_pairs(four, 0, 4 * row_bytes, scale, min);
    } else {
      scale = gather_halves(p, row_bytes);
    }
    vi codes[2][4];
    take_group<F>(p, row_bytes, column % F::block / 32, codes[0], codes[1]);
    keep_in_memory(codes);
    const vi code = (vi)((vu)codes[column % 32 / 16][column % 16 / 4] >> uint32_t(column % 4 * 8) & 255);
    return weights_of<F>(code, scale, min);
  }
}

// The products of four rows with the steps of a token, from their dot products (4 rows, steps, parts, lanes); scales(column)
// gives the scales of the step that begins there.
template <class F, int N, class AllScales>
inline void finish_rows(const Token (&x)[N], const Steps& steps, const int32_t* const (&dots)[N], float* const (&out)[N], AllScales scales) {
  constexpr int parts = parts_of_32<F>;
  const int64_t dots_of_row = steps.count * parts * lanes;
  const auto finish = [&](int64_t s, const Scales<F>& w) {
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      vf product{};
#pragma GCC unroll 2
      for (int part = 0; part < parts; ++part) {
        const int64_t place = (s * parts + part) * lanes;
        vi dot[4];
        for (int i = 0; i < 4; ++i) dot[i] = load<vi>(dots[n] + i * dots_of_row + place);
        vi sum = sum_fours(dot);
        if constexpr (F::zero != dot_bias<F::max_code>) sum += load<vi>(x[n].start + place);
        product = add_products<F>(part, product, to_float(sum), w.scale[part], w.min[part], [&] { return load<vf>(x[n].offset + place); });
      }
      store(out[n] + s * lanes, product);
    }
  };
  for (int64_t s = 0; s < steps.whole; ++s) finish(s, scales(s * lane_groups));
  if (steps.whole < steps.count) finish(steps.whole, scales(steps.whole * lane_groups - steps.shift));
}

template <class F, bool packed, int N>
void multiply_invariant(const Matrix& w, int64_t begin, int64_t end, Quantized x, float* out, int64_t stride, void* scratch) {
  constexpr int parts = parts_of_32<F>;
  const int64_t K = w.columns, scales_of_row = padded(K) / F::group;
  const Steps steps(K);
  uint8_t* space = static_cast<uint8_t*>(scratch);
  const auto take = [&](int64_t items) {
    uint8_t* taken = space;
    space += items * 4;
    return taken;
  };
  Token token[N];
  Outliers outliers[N];
  int32_t* dots[N];   // (4 rows, steps, parts, lanes)
  float* products[N]; // (lane_groups, steps, lanes), each lane_groups groups of four rows
  const int64_t dots_of_row = steps.count * parts * lanes;
  for (int n = 0; n < N; ++n) {
    const Quantized of_token = x.token(n, padded(K));
    token[n] = take_token<F>(of_token, steps, space);
    outliers[n] = of_token.outliers;
    dots[n] = reinterpret_cast<int32_t*>(take(4 * dots_of_row));
    products[n] = reinterpret_cast<float*>(take(lane_groups * steps.count * lanes));
  }
  const Row four{nullptr, reinterpret_cast<float*>(take(4 * scales_of_row)), reinterpret_cast<float*>(take(4 * scales_of_row))};
  std::fill_n(four.scale, 8 * scales_of_row, 0.0f); // steps may have more groups than the row
  uint8_t* codes = take(padded(K) / 4);
  AtOutliers at[N];
  for (int64_t r = begin; r < end; r += lanes) {
    const int64_t rows = std::min<int64_t>(end - r, lanes);
    const uint8_t* first = w.data + r * w.row_bytes;
    for (int64_t quad = 0; quad * 4 < rows; ++quad) {
      const uint8_t* row[4];
      for (int64_t i = 0; i < 4; ++i) {
        const int64_t number = quad * 4 + i;
        row[i] = first + std::min(number, rows - 1) * w.row_bytes;
        if (number >= rows) continue;
        touch_ahead(row[i], w.row_bytes);
        int32_t* to[N];
        for (int n = 0; n < N; ++n) to[n] = dots[n] + i * dots_of_row;
        const Row unpacked{codes, four.scale + i * scales_of_row, four.min + i * scales_of_row};
        if constexpr (packed) {
          multiply_row<F>(PackedCodes<F>{row[i], unpacked.scale, unpacked.min}, token, steps, to);
        } else {
          unpack_row<F>(row[i], K, unpacked);
          multiply_row<F>(UnpackedCodes<F>{codes}, token, steps, to);
        }
        if constexpr (!is_in_registers<F> || F::block > 32)
          for (int n = 0; n < N; ++n) at[n].template take<F>(outliers[n], unpacked, number);
      }
      float* to[N];
      for (int n = 0; n < N; ++n) to[n] = products[n] + quad * steps.count * lanes;
      finish_rows<F>(token, steps, dots, to, [&](int64_t group) {
        Scales<F> scales;
        if constexpr (packed && F::block == 32)
          scales.take(row, group);
        else
          scales.take(four, scales_of_row, group);
        return scales;
      });
    }
    vf acc[N] = {};
    for (int n = 0; n < N; ++n)
      for (int i = 0; i < *outliers[n].count; ++i) {
        const vf weight = weights_at<F>(first, w.row_bytes, rows, outliers[n].columns()[i], at[n], i);
        acc[n] = fused(weight, splat(outliers[n].values(1)[i]), acc[n]);
      }
    for (int64_t s = 0; s < steps.count; ++s)
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        vf product[lane_groups];
        for (int quad = 0; quad < lane_groups; ++quad) product[quad] = load<vf>(products[n] + (quad * steps.count + s) * lanes);
        transpose_parts(product);
        for (int j = 0; j < lane_groups; ++j) acc[n] = fused(product[j], splat(token[n].scale[s * lane_groups + j]), acc[n]);
      }
    for (int n = 0; n < N; ++n) std::memcpy(out + n * stride + r, &acc[n], size_t(rows) * 4);
  }
}

void matvec_invariant(const Matrix& w, int64_t begin, int64_t end, Quantized x, int tokens, float* out, int64_t stride, void* scratch) {
  QuantizedFormats::find(w.type, [&](auto format) {
    using F = decltype(format);
    const auto multiply = [&](auto packed) {
      tokens == 1 ? multiply_invariant<F, packed, 1>(w, begin, end, x, out, stride, scratch)
                  : multiply_invariant<F, packed, 2>(w, begin, end, x, out, stride, scratch);
    };
    if constexpr (is_in_registers<F>)
      if (w.columns >= step) return multiply(std::true_type{});
    multiply(std::false_type{});
  });
}

} // namespace
