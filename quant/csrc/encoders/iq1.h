// Encoders of IQ1, whose levels -1, 0 and 1 are all shifted up or down by an eighth.
// Source: quantize_row_iq1_s_impl, quantize_row_iq1_m_impl and iq1_find_best_neighbour2 of ggml-quants.c.
//
// In ascending order, the weights of a group are split into a low, a middle and a high part. All splits are tried with all
// shifts; the best one gives the scale. Then the levels of each eight weights become an entry of the codebook.
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

// The best split so far, with one group per lane; of equally good ones, the first.
struct Split {
  vf score = splat(-3.40282347e38f), scale{};
  vi middle{}, high{}, down{}; // where the parts begin; one bit for each eight weights that are shifted down
  vi is_found{};

  // Tries the shifts of one split, in ggml's order. Most improve no lane, so all are first checked together.
  template <int n>
  void consider(const vf (&sum_xq)[n], const vf (&sum_qq)[n], const int (&downs)[n], int middle_, int high_) {
    vi is_any{};
    for (int k = 0; k < n; ++k) is_any |= sum_xq[k] * sum_xq[k] > score * sum_qq[k];
    if (!any(is_any)) return;
    for (int k = 0; k < n; ++k) {
      const vi is_better = (sum_qq[k] > 0) & (sum_xq[k] * sum_xq[k] > score * sum_qq[k]);
      scale = is_better ? sum_xq[k] / sum_qq[k] : scale;
      score = is_better ? scale * sum_xq[k] : score;
      middle = is_better ? vi{} + middle_ : middle;
      high = is_better ? vi{} + high_ : high;
      down = is_better ? vi{} + downs[k] : down;
      is_found |= is_better;
    }
  }
};

// Splits 32 sorted weights, which have the same shift. The sums over a split's parts are differences of running sums.
inline Split split_group(const vf (&x)[32], const vf (&weight)[32], const vi (&)[32]) {
  constexpr int n = 32;
  const auto square = [](vf w, float level) { return w * level * level; };
  vf sum_x[n + 1]{}, sum_w[n + 1]{};
  for (int i = 0; i < n; ++i) {
    sum_x[i + 1] = sum_x[i] + weight[i] * x[i];
    sum_w[i + 1] = sum_w[i] + weight[i];
  }
  struct Part { vf up_x, up_w, down_x, down_w; } tops[n + 1];
  for (int i = 0; i <= n; ++i) {
    const vf high_x = sum_x[n] - sum_x[i], high_w = sum_w[n] - sum_w[i];
    tops[i] = {high_x * shifted_up[2], square(high_w, shifted_up[2]), high_x * shifted_down[2],
               square(high_w, shifted_down[2])};
  }
  Split best;
  for (int middle = 0; middle <= n; ++middle) {
    const Part low{sum_x[middle] * shifted_up[0], square(sum_w[middle], shifted_up[0]),
                   sum_x[middle] * shifted_down[0], square(sum_w[middle], shifted_down[0])};
    for (int high = middle; high <= n; ++high) {
      const Part& top = tops[high];
      const vf x_here = (sum_x[high] - sum_x[middle]) * shifted_up[1];
      const vf w_here = square(sum_w[high] - sum_w[middle], shifted_up[1]);
      best.consider({low.up_x + x_here + top.up_x, low.down_x - x_here + top.down_x},
                    {low.up_w + w_here + top.up_w, low.down_w + w_here + top.down_w}, {0, 15}, middle, high);
    }
  }
  return best;
}

// Splits 16 sorted weights; the first and the second eight (`is_second`) have separate shifts and sums. Levels are one apart,
// so the parts' sums times their levels add up to the total times the highest level, minus the running sums at the
// beginnings of the middle and the high part. For squares of levels, these two sums get factors.
inline Split split_group(const vf (&x)[16], const vf (&weight)[16], const vi (&is_second)[16]) {
  constexpr int n = 16;
  vf sum_x[2][n + 1]{}, sum_w[2][n + 1]{};
  for (int i = 0; i < n; ++i)
    for (int half = 0; half < 2; ++half) {
      const vi is_here = half ? is_second[i] : ~is_second[i];
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
      vf xq[2][2], qq[2][2]; // for each half and each shift
      for (int half = 0; half < 2; ++half) {
        const vf *x_to = sum_x[half], *w_to = sum_w[half], below = x_to[middle] + x_to[high];
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

// The search for one scale, with one group per lane. Groups of zeros get scale 0 and entry 0 and are not shifted down.
template <int size> struct Group1 {
  static constexpr int parts = size / 8;
  static constexpr float least = size == 32 ? 1e-12f : 1e-7f; // a group without larger weights is zero

  vf weight[size], scale;
  vi entry[parts], down; // entries as words of levels; one bit for each part that is shifted down

  void search(const vf* x) {
    vi rank[size];
    vf sorted_x[size], sorted_weight[size];
    vi is_second[size];
    find_ranks(x, rank);
    for (int i = 0; i < size; ++i)
      for (int l = 0; l < lanes; ++l) {
        const int to = rank[i][l];
        sorted_x[to][l] = x[i][l];
        sorted_weight[to][l] = weight[i][l];
        if (size == 16) is_second[to][l] = i < 8 ? 0 : -1;
      }
    const Split best = split_group(sorted_x, sorted_weight, is_second);
    const vi is_some = best.is_found & (largest_size(x, size) >= least), is_negative = best.scale < 0;
    scale = is_some ? abs(best.scale) : vf{};
    down = is_some & (is_negative ? ~best.down & ((1 << parts) - 1) : best.down);
    vi any_off_grid{};
    for (int k = 0; k < parts; ++k) {
      vi point{};
      for (int i = 8 * k + 7; i >= 8 * k; --i) {
        const vi level = 2 + (rank[i] < best.middle) + (rank[i] < best.high);
        point = point * 3 + (is_negative ? 2 - level : level);
      }
      entry[k] = choose(x, k, point, is_some);
      any_off_grid |= entry[k] & Neighbours<8>::is_off_grid;
    }
    if (!any(any_off_grid != 0)) return;
    vf sum_xq{}, sum_qq{};
    for (int i = 0; i < size; ++i) add(i, x[i], level(i), sum_xq, sum_qq);
    scale = (any_off_grid != 0) & (sum_xq > 0) & (sum_qq > 0) ? sum_xq / sum_qq : scale;
  }

  // The decoded value of weight i, in units of the scale.
  vf level(int i) const { return to_float(Neighbours<8>::level_in(entry[i / 8], i % 8)) - 1.0f + shift(i / 8); }

  void add(int i, vf x, vf q, vf& sum_xq, vf& sum_qq) const {
    sum_xq += weight[i] * q * x;
    sum_qq += weight[i] * q * q;
  }

  // The number of the k-th entry.
  vi number(int k) const {
    vi point{}, out;
    for (int i = 7; i >= 0; --i) point = point * 3 + Neighbours<8>::level_in(entry[k], i);
    for (int l = 0; l < lanes; ++l) out[l] = neighbours_iq1().entry_at(point[l]);
    return out;
  }

private:
  vf shift(int k) const { return (down >> k & 1) != 0 ? splat(-0.125f) : splat(0.125f); }

  // The rank of each weight in ascending order; equal weights keep their order.
  static void find_ranks(const vf* x, vi* rank) {
    for (int i = 0; i < size; ++i) rank[i] = vi{} + i;
    for (int i = 0; i < size; ++i)
      for (int j = i + 1; j < size; ++j) {
        const vi is_less = x[j] < x[i];
        rank[i] -= is_less;
        rank[j] += is_less;
      }
  }

  vi choose(const vf* x, int k, vi point, vi wanted) const {
    vf terms[32]{};
    for (int i = 0; i < 8; ++i)
      for (int level = 0; level < 3; ++level) {
        const vf difference = scale * (float(level - 1) + shift(k)) - x[8 * k + i];
        terms[4 * i + level] = weight[8 * k + i] * difference * difference;
      }
    vi words{};
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

inline vi scales_of_3_bits(vf scale, vf inverse) {
  return clamp(nearest(0.5f * (inverse * scale - 1.0f)), 0, 7);
}

template <> struct Encoder<IQ1_S> {
  static constexpr int halves[] = {0};
  static constexpr auto importance = Importance::needed;
  static void encode(const vf* x, const vf* weight, const Blocks& out) {
    const vf mean_square = 2.0f * sum_of_squares(x, 256) / 256.0f;
    vf scale[8], largest{};
    vi low[32], words[8], down[8];
    Group1<32> group;
    for (int g = 0; g < 8; ++g) {
      damp(x + 32 * g, weight + 32 * g, 32, mean_square, group.weight);
      group.search(x + 32 * g);
      scale[g] = group.scale;
      largest = larger(largest, scale[g]);
      down[g] = group.down & 1;
      words[g] = vi{};
      for (int k = 0; k < 4; ++k) {
        const vi number = group.number(k);
        low[4 * g + k] = number & 255;
        words[g] |= number >> 8 << 3 * k;
      }
    }
    const vf d = largest / 15.0f, inverse = 1.0f / d;
    out.store_halves(0, d * 1.125f); // ggml's factor, which was found to be better than 1
    out.store_bytes(2, low, 32);
    for (int g = 0; g < 8; ++g) {
      const vi high = scales_of_3_bits(scale[g], inverse) << 12 | down[g] << 15;
      out.store_halfwords(34 + 2 * g, words[g] | (largest != 0 ? high : vi{}));
    }
  }
};

template <> struct Encoder<IQ1_M> {
  static constexpr auto halves = no_halves; // the bits of its f16 are scattered; see has_finite_scales
  static constexpr auto importance = Importance::plain;
  static void encode(const vf* x, const vf* weight, const Blocks& out) {
    const vf mean_square = 2.0f * sum_of_squares(x, 256) / 256.0f;
    Group1<16> groups[16];
    vf largest{};
    vi low[32], high[16], words[4]{};
    for (int g = 0; g < 16; ++g) {
      const vf* from = x + 16 * g;
      if (weight)
        damp(from, weight + 16 * g, 16, mean_square, groups[g].weight);
      else
        for (int i = 0; i < 16; ++i) groups[g].weight[i] = from[i] * from[i];
      groups[g].search(from);
      largest = larger(largest, groups[g].scale);
      const vi first = groups[g].number(0), second = groups[g].number(1);
      low[2 * g] = first & 255;
      low[2 * g + 1] = second & 255;
      high[g] = first >> 8 | second >> 8 << 4;
    }
    vf d = largest / 15.0f, sum_xq{}, sum_qq{};
    const vf inverse = 1.0f / d;
    const vi is_some = largest != 0;
    for (int g = 0; g < 16; ++g) {
      const vi scale = scales_of_3_bits(groups[g].scale, inverse);
      const vf odd = to_float(2 * scale + 1);
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
