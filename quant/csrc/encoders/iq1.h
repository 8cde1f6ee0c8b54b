// Encoders of IQ1: levels -1, 0 and 1, all of them an eighth higher or lower.
// Source: quantize_row_iq1_s_impl, quantize_row_iq1_m_impl and iq1_find_best_neighbour2 of ggml-quants.c.
//
// In ascending order the weights of a group fall into a low, a middle and a high part. All ways to split them are tried
// with all shifts; the best gives the scale. Then each eight levels become an entry of the codebook.
#pragma once
#include "../formats/iq.h"
#include "codebook.h"
#include "encoder.h"

namespace {

constexpr float shifted_up[] = {-0.875f, 0.125f, 1.125f}, shifted_down[] = {-1.125f, -0.125f, 0.875f};

inline const Neighbours<8>& neighbours_iq1() {
  static const Neighbours<8> once(packed_iq1, 3);
  return once;
}

// The best split of those considered, a group in each lane: of equally good ones the first.
struct Split {
  Floats score = all_lanes(-3.40282347e38f), scale{};
  Ints middle{}, high{}, down{}; // where the parts begin; the eights that are shifted down, as bits
  Ints is_found{};

  // The ways to shift one split, in ggml's order. Most are better in no lane, so all are looked at together first.
  template <int n>
  void consider(const Floats (&sum_xq)[n], const Floats (&sum_qq)[n], const int (&downs)[n], int middle_, int high_) {
    Ints is_any{};
    for (int k = 0; k < n; ++k) is_any |= sum_xq[k] * sum_xq[k] > score * sum_qq[k];
    if (!any(is_any)) return;
    for (int k = 0; k < n; ++k) {
      const Ints is_better = (sum_qq[k] > 0) & (sum_xq[k] * sum_xq[k] > score * sum_qq[k]);
      scale = is_better ? sum_xq[k] / sum_qq[k] : scale;
      score = is_better ? scale * sum_xq[k] : score;
      middle = is_better ? Ints{} + middle_ : middle;
      high = is_better ? Ints{} + high_ : high;
      down = is_better ? Ints{} + downs[k] : down;
      is_found |= is_better;
    }
  }
};

// 32 sorted weights, all shifted alike. The sums over a split's parts are differences of running sums.
inline Split split_group(const Floats (&x)[32], const Floats (&weight)[32], const Ints (&)[32]) {
  constexpr int n = 32;
  const auto square = [](Floats w, float level) { return w * level * level; };
  Floats sum_x[n + 1]{}, sum_w[n + 1]{};
  for (int i = 0; i < n; ++i) {
    sum_x[i + 1] = sum_x[i] + weight[i] * x[i];
    sum_w[i + 1] = sum_w[i] + weight[i];
  }
  struct Part { Floats up_x, up_w, down_x, down_w; } tops[n + 1];
  for (int i = 0; i <= n; ++i) {
    const Floats high_x = sum_x[n] - sum_x[i], high_w = sum_w[n] - sum_w[i];
    tops[i] = {high_x * shifted_up[2], square(high_w, shifted_up[2]), high_x * shifted_down[2],
               square(high_w, shifted_down[2])};
  }
  Split best;
  for (int middle = 0; middle <= n; ++middle) {
    const Part low{sum_x[middle] * shifted_up[0], square(sum_w[middle], shifted_up[0]),
                   sum_x[middle] * shifted_down[0], square(sum_w[middle], shifted_down[0])};
    for (int high = middle; high <= n; ++high) {
      const Part& top = tops[high];
      const Floats x_here = (sum_x[high] - sum_x[middle]) * shifted_up[1];
      const Floats w_here = square(sum_w[high] - sum_w[middle], shifted_up[1]);
      best.consider({low.up_x + x_here + top.up_x, low.down_x - x_here + top.down_x},
                    {low.up_w + w_here + top.up_w, low.down_w + w_here + top.down_w}, {0, 15}, middle, high);
    }
  }
  return best;
}

// 16 sorted weights; the first and the second eight, `is_second`, are shifted and summed each by itself. Levels are one
// apart, so the parts' sums times their levels add up to the sum of all times the highest level, less the running sums
// where the middle and the high part begin. With squares of levels these two get factors.
inline Split split_group(const Floats (&x)[16], const Floats (&weight)[16], const Ints (&is_second)[16]) {
  constexpr int n = 16;
  Floats sum_x[2][n + 1]{}, sum_w[2][n + 1]{};
  for (int i = 0; i < n; ++i)
    for (int half = 0; half < 2; ++half) {
      const Ints is_here = half ? is_second[i] : ~is_second[i];
      sum_x[half][i + 1] = is_here ? sum_x[half][i] + weight[i] * x[i] : sum_x[half][i];
      sum_w[half][i + 1] = is_here ? sum_w[half][i] + weight[i] : sum_w[half][i];
    }
  struct Shift {
    const float* level;
    float at_middle = level[0] * level[0] - level[1] * level[1], at_high = level[1] * level[1] - level[2] * level[2];
  };
  const Shift shifts[] = {{shifted_up}, {shifted_down}};
  Split best;
  for (int middle = 0; middle <= n; ++middle)
    for (int high = middle; high <= n; ++high) {
      Floats xq[2][2], qq[2][2]; // of each half, with each shift
      for (int half = 0; half < 2; ++half) {
        const Floats *x_to = sum_x[half], *w_to = sum_w[half], below = x_to[middle] + x_to[high];
        for (int k = 0; k < 2; ++k) {
          const Shift& shift = shifts[k];
          xq[half][k] = x_to[n] * shift.level[2] - below;
          qq[half][k] = w_to[n] * shift.level[2] * shift.level[2] + w_to[middle] * shift.at_middle +
                        w_to[high] * shift.at_high;
        }
      }
      best.consider({xq[0][0] + xq[1][0], xq[0][0] + xq[1][1], xq[0][1] + xq[1][0], xq[0][1] + xq[1][1]},
                    {qq[0][0] + qq[1][0], qq[0][0] + qq[1][1], qq[0][1] + qq[1][0], qq[0][1] + qq[1][1]}, {0, 2, 1, 3},
                    middle, high);
    }
  return best;
}

// The groups of one scale, one in each lane. Groups of zeros have scale 0, entry 0 and are not shifted down.
template <int size> struct Group1 {
  static constexpr int parts = size / 8;
  static constexpr float least = size == 32 ? 1e-12f : 1e-7f; // a group with no larger weight is zero

  Floats weight[size], scale;
  Ints entry[parts], down; // entries as words of levels; the parts that are shifted down, as bits

  void search(const Floats* x) {
    Ints rank[size];
    Floats sorted_x[size], sorted_weight[size];
    Ints is_second[size];
    find_ranks(x, rank);
    for (int i = 0; i < size; ++i)
      for (int l = 0; l < lanes; ++l) {
        const int to = rank[i][l];
        sorted_x[to][l] = x[i][l];
        sorted_weight[to][l] = weight[i][l];
        if (size == 16) is_second[to][l] = i < 8 ? 0 : -1;
      }
    const Split best = split_group(sorted_x, sorted_weight, is_second);
    const Ints is_some = best.is_found & (largest_size(x, size) >= least), is_negative = best.scale < 0;
    scale = is_some ? magnitude(best.scale) : Floats{};
    down = is_some & (is_negative ? ~best.down & ((1 << parts) - 1) : best.down);
    Ints any_off_grid{};
    for (int k = 0; k < parts; ++k) {
      Ints point{};
      for (int i = 8 * k + 7; i >= 8 * k; --i) {
        const Ints level = 2 + (rank[i] < best.middle) + (rank[i] < best.high);
        point = point * 3 + (is_negative ? 2 - level : level);
      }
      entry[k] = choose(x, k, point, is_some);
      any_off_grid |= entry[k] & Neighbours<8>::is_off_grid;
    }
    if (!any(any_off_grid != 0)) return;
    Floats sum_xq{}, sum_qq{};
    for (int i = 0; i < size; ++i) add(i, x[i], level(i), sum_xq, sum_qq);
    scale = (any_off_grid != 0) & (sum_xq > 0) & (sum_qq > 0) ? sum_xq / sum_qq : scale;
  }

  // What weight i is decoded to, in units of the scale.
  Floats level(int i) const { return to_floats(Neighbours<8>::level_in(entry[i / 8], i % 8)) - 1.0f + shift(i / 8); }

  void add(int i, Floats x, Floats q, Floats& sum_xq, Floats& sum_qq) const {
    sum_xq += weight[i] * q * x;
    sum_qq += weight[i] * q * q;
  }

  // The number of the k-th entry.
  Ints number(int k) const {
    Ints point{}, out;
    for (int i = 7; i >= 0; --i) point = point * 3 + Neighbours<8>::level_in(entry[k], i);
    for (int l = 0; l < lanes; ++l) out[l] = neighbours_iq1().entry_at(point[l]);
    return out;
  }

private:
  Floats shift(int k) const { return (down >> k & 1) != 0 ? all_lanes(-0.125f) : all_lanes(0.125f); }

  // How many weights come before each in ascending order, equal ones in their own.
  static void find_ranks(const Floats* x, Ints* rank) {
    for (int i = 0; i < size; ++i) rank[i] = Ints{} + i;
    for (int i = 0; i < size; ++i)
      for (int j = i + 1; j < size; ++j) {
        const Ints is_less = x[j] < x[i];
        rank[i] -= is_less;
        rank[j] += is_less;
      }
  }

  Ints choose(const Floats* x, int k, Ints point, Ints wanted) const {
    Floats terms[32]{};
    for (int i = 0; i < 8; ++i)
      for (int level = 0; level < 3; ++level) {
        const Floats difference = scale * (float(level - 1) + shift(k)) - x[8 * k + i];
        terms[4 * i + level] = weight[8 * k + i] * difference * difference;
      }
    Ints words{};
    for (int l = 0; l < lanes; ++l) {
      if (!wanted[l]) continue;
      words[l] = neighbours_iq1().choose(point[l], [&] {
        float each[32];
        for (int i = 0; i < 32; ++i) each[i] = terms[i][l];
        Terms these;
        std::memcpy(&these, each, sizeof these);
        return these;
      });
    }
    return words;
  }
};

inline Ints scales_of_3_bits(Floats scale, Floats inverse) {
  return clamp(nearest(0.5f * (inverse * scale - 1.0f)), 0, 7);
}

template <> struct Encoder<IQ1_S> {
  static constexpr int halves[] = {0};
  static constexpr auto importance = Importance::needed;
  static void encode(const Floats* x, const Floats* weight, const Blocks& out) {
    const Floats mean_square = 2.0f * sum_of_squares(x, 256) / 256.0f;
    Floats scale[8], largest{};
    Ints low[32], words[8], down[8];
    Group1<32> group;
    for (int g = 0; g < 8; ++g) {
      damp(x + 32 * g, weight + 32 * g, 32, mean_square, group.weight);
      group.search(x + 32 * g);
      scale[g] = group.scale;
      largest = larger(largest, scale[g]);
      down[g] = group.down & 1;
      words[g] = Ints{};
      for (int k = 0; k < 4; ++k) {
        const Ints number = group.number(k);
        low[4 * g + k] = number & 255;
        words[g] |= number >> 8 << 3 * k;
      }
    }
    const Floats d = largest / 15.0f, inverse = 1.0f / d;
    out.store_halves(0, d * 1.125f); // ggml's: found to be better than d
    out.store_bytes(2, low, 32);
    for (int g = 0; g < 8; ++g) {
      const Ints high = scales_of_3_bits(scale[g], inverse) << 12 | down[g] << 15;
      out.store_halfwords(34 + 2 * g, words[g] | (largest != 0 ? high : Ints{}));
    }
  }
};

template <> struct Encoder<IQ1_M> {
  static constexpr auto halves = no_halves; // the bits of its f16 are scattered; see has_finite_scales
  static constexpr auto importance = Importance::plain;
  static void encode(const Floats* x, const Floats* weight, const Blocks& out) {
    const Floats mean_square = 2.0f * sum_of_squares(x, 256) / 256.0f;
    Group1<16> groups[16];
    Floats largest{};
    Ints low[32], high[16], words[4]{};
    for (int g = 0; g < 16; ++g) {
      const Floats* from = x + 16 * g;
      if (weight)
        damp(from, weight + 16 * g, 16, mean_square, groups[g].weight);
      else
        for (int i = 0; i < 16; ++i) groups[g].weight[i] = from[i] * from[i];
      groups[g].search(from);
      largest = larger(largest, groups[g].scale);
      const Ints first = groups[g].number(0), second = groups[g].number(1);
      low[2 * g] = first & 255;
      low[2 * g + 1] = second & 255;
      high[g] = first >> 8 | second >> 8 << 4;
    }
    Floats d = largest / 15.0f, sum_xq{}, sum_qq{};
    const Floats inverse = 1.0f / d;
    const Ints is_some = largest != 0;
    for (int g = 0; g < 16; ++g) {
      const Ints scale = scales_of_3_bits(groups[g].scale, inverse);
      const Floats odd = to_floats(2 * scale + 1);
      for (int i = 0; i < 16; ++i) groups[g].add(i, x[16 * g + i], groups[g].level(i) * odd, sum_xq, sum_qq);
      words[g / 4] |= is_some & scale << 3 * (g % 4);
      high[g] |= is_some & ((groups[g].down & 1) << 3 | (groups[g].down & 2) << 6);
    }
    d = sum_qq > 0 ? sum_xq / sum_qq : d;
    for (int l = 0; l < lanes; ++l) {
      const int half = is_some[l] ? f32_to_f16(d[l] * 1.1125f) : 0; // the factor is ggml's
      for (int k = 0; k < 4; ++k) words[k][l] |= (half >> 4 * k & 15) << 12;
    }
    out.store_bytes(0, low, 32);
    out.store_bytes(32, high, 16);
    for (int k = 0; k < 4; ++k) out.store_halfwords(48 + 2 * k, words[k]);
  }
};

} // namespace
