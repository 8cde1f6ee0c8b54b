// Encoders of IQ2 and IQ3. Source: quantize_row_iq2_xxs_impl and similar functions of ggml-quants.c.
//
// While scales are searched, each lane works on its own group, as in all encoders; while an entry is chosen for one group,
// the lanes hold its candidates.
#pragma once
#include "../formats/iq.h"
#include "codebook.h"
#include "encoder.h"
#include "search.h"

namespace {

// The entries of a group that are chosen again with the best scale, instead of the scale that found them.
enum class Again { those_off_grid, all_if_one_is_off_grid, all };

// The parameters in which the formats differ.
template <class F> struct Plan;
template <> struct Plan<IQ2_XXS> {
  static constexpr auto& book = packed_iq2_xxs;
  static constexpr int distances = 2;            // distinct distances of candidates in the codebook
  static constexpr int size = 32, weights = 8;   // weights of a group with one scale; weights of an entry
  static constexpr bool has_even_signs = true;   // of each eight sign bits, seven are stored
  static constexpr auto again = Again::all;
  static constexpr int last = 6;                 // each try maps the largest weight to its level, plus or minus up to `last`
  static constexpr float step = 0.1f;            // of these steps
  static constexpr float least = 1e-15f;         // a group without larger weights is stored as zeros
  static constexpr float mean = 1;               // the factor of the mean square in the damping of importance
  static constexpr float stretch = 1;            // the factor of the stored scale
};
template <> struct Plan<IQ2_XS> {
  static constexpr auto& book = packed_iq2_xs;
  static constexpr int distances = 2, size = 16, weights = 8, last = 9;
  static constexpr bool has_even_signs = true;
  static constexpr auto again = Again::those_off_grid;
  static constexpr float step = 0.1f, least = 1e-15f, mean = 1, stretch = 1;
};
template <> struct Plan<IQ2_S> {
  static constexpr auto& book = packed_iq2_s;
  static constexpr int distances = 1, size = 16, weights = 8, last = 9;
  static constexpr bool has_even_signs = false;
  static constexpr auto again = Again::those_off_grid;
  static constexpr float step = 0.1f, least = 1e-8f, mean = 2, stretch = 0.9875f;
};
template <> struct Plan<IQ3_XXS> {
  static constexpr auto& book = packed_iq3_xxs;
  static constexpr int distances = 2, size = 32, weights = 4, last = 15;
  static constexpr bool has_even_signs = true;
  static constexpr auto again = Again::those_off_grid;
  static constexpr float step = 0.2f, least = 1e-8f, mean = 2, stretch = 1.0125f;
};
template <> struct Plan<IQ3_S> {
  static constexpr auto& book = packed_iq3_s;
  static constexpr int distances = 3, size = 32, weights = 4, last = 9;
  static constexpr bool has_even_signs = false;
  static constexpr auto again = Again::all_if_one_is_off_grid;
  static constexpr float step = 0.2f, least = __FLT_DENORM_MIN__, mean = 2, stretch = 1.033f;
};

// The codebook is built when a format is first encoded, which takes some milliseconds.
template <class F> const Neighbours<Plan<F>::weights>& neighbours_of() {
  static const Neighbours<Plan<F>::weights> neighbours(Plan<F>::book, Plan<F>::distances);
  return neighbours;
}

// The signs of eight weights as bits, and the magnitudes. If only an even number of minus signs can be stored and it is odd,
// the least important weight gets the wrong sign and a negative magnitude.
template <bool even> vi split_signs(const vf* x, const vf* weight, vf* size) {
  vi signs{}, odd{}, at{};
  vf least{};
  for (int i = 0; i < 8; ++i) {
    const auto is_negative = ~(vi)(x[i] >= 0);
    size[i] = is_negative ? -x[i] : x[i];
    signs |= is_negative & (1 << i);
    odd ^= is_negative;
    const vf counts = weight[i] * x[i] * x[i];
    const vi is_less = i == 0 ? vi{} - 1 : counts < least;
    least = is_less ? counts : least;
    at = is_less ? vi{} + i : at;
  }
  if (!even) return signs;
  for (int i = 0; i < 8; ++i) {
    const auto flips = odd & (at == i);
    size[i] = flips ? -size[i] : size[i];
    signs ^= flips & (1 << i);
  }
  return signs;
}

// The search for one scale, with one group per lane.
template <class F> struct Group {
  using P = Plan<F>;
  using Table = Neighbours<P::weights>;
  static constexpr int size = P::size, weights = P::weights, entries = size / weights, tries = 2 * P::last + 1;

  vf x[size], weight[size];
  vi entry[entries], signs[size / 8]; // entries as words of levels
  vf scale;
  vi is_zero;

  // `raw` are the weights with signs; `weight` are their weights in the squared error.
  void search(const vf* raw) {
    for (int k = 0; k < size / 8; ++k)
      signs[k] = split_signs<P::has_even_signs>(raw + 8 * k, weight + 8 * k, x + 8 * k);
    vf largest = x[0];
    for (int i = 1; i < size; ++i) largest = larger(largest, x[i]);
    constexpr float top = 2 * Table::levels - 1;
    is_zero = largest < P::least;
    if constexpr (P::again == Again::all) { // for IQ2_XXS, ggml starts from the best scale without a codebook
      vi codes[size];
      scale = search_positive<size>(x, weight, Table::levels + 1, codes);
      largest = scale * float(Table::levels);
      is_zero |= largest <= 0;
    } else {
      scale = largest / top;
    }
    // ggml treats the first guess as an entry, except for IQ3_S.
    for (vi& e : entry) e = vi{} + (P::again == Again::all_if_one_is_off_grid ? Table::is_off_grid : 0);

    vf inverse[tries], tried[tries];
    for (int t = 0; t < tries; ++t) {
      inverse[t] = (top + float(t - P::last) * P::step) / largest;
      tried[t] = 1.0f / inverse[t];
    }
    vi found[entries][tries];
    vf sum_xq[tries]{}, sum_qq[tries]{};
    for (int k = 0; k < entries; ++k) {
      choose(k, tries, inverse, tried, ~is_zero, found[k]);
      for (int t = 0; t < tries; ++t) add(k, found[k][t], sum_xq[t], sum_qq[t]);
    }
    vf best{};
    for (int t = 0; t < tries; ++t) {
      const auto is_better = (sum_qq[t] > 0) & (sum_xq[t] * sum_xq[t] > best * sum_qq[t]);
      scale = is_better ? sum_xq[t] / sum_qq[t] : scale;
      best = is_better ? scale * sum_xq[t] : best;
      for (int k = 0; k < entries; ++k) entry[k] = is_better ? found[k][t] : entry[k];
    }
    choose_again();
    const auto is_negative = scale < 0;
    scale = is_zero ? vf{} : is_negative ? -scale : scale;
    for (vi& s : signs) s = is_zero ? vi{} : is_negative ? ~s & 255 : s;
  }

private:
  void choose_again() {
    vi wanted[entries], any_wanted{};
    for (int k = 0; k < entries; ++k) {
      wanted[k] = P::again == Again::all ? vi{} - 1 : (entry[k] & Table::is_off_grid) != 0;
      any_wanted |= wanted[k];
    }
    any_wanted &= (scale > 0) & ~is_zero;
    const vf inverse = 1.0f / scale;
    vf sum_xq{}, sum_qq{};
    for (int k = 0; k < entries; ++k) {
      const vi here = P::again == Again::all_if_one_is_off_grid ? any_wanted : wanted[k] & any_wanted;
      vi found;
      choose(k, 1, &inverse, &scale, here, &found);
      entry[k] = here ? found : entry[k];
      add(k, entry[k], sum_xq, sum_qq);
    }
    scale = (any_wanted != 0) & (sum_qq > 0) ? sum_xq / sum_qq : scale;
  }

  // Chooses the k-th entry for each of the scales, in the selected lanes.
  void choose(int k, int scales, const vf* inverse, const vf* scale, vi wanted, vi* found) const {
    const Table& table = neighbours_of<F>();
    const vf* part = x + weights * k;
    vi point[tries];
    for (int t = 0; t < scales; ++t) {
      found[t] = point[t] = vi{};
      for (int i = weights - 1; i >= 0; --i)
        point[t] = point[t] * Table::levels +
                   clamp(nearest(0.5f * (inverse[t] * part[i] - 1.0f)), 0, Table::levels - 1);
    }
    vf root[weights]; // ggml's distance weights by the square root of importance
    for (int i = 0; i < weights; ++i) root[i] = square_root(weight[weights * k + i]);
    for (int l = 0; l < lanes; ++l) {
      if (!wanted[l]) continue;
      float x_at[32], root_at[32];
      for (int i = 0; i < weights; ++i) {
        fill_slots(x_at + Table::slots * i, part[i][l]);
        fill_slots(root_at + Table::slots * i, root[i][l]);
      }
      for (int t = 0; t < scales; ++t)
        found[t][l] = table.choose(point[t][l], [&, this_scale = scale[t][l]] {
          Terms terms;
          for (int v = 0; v < 4; ++v) {
            const Floats8 difference = this_scale * values - load<Floats8>(x_at + 8 * v);
            terms.place[v] = load<Floats8>(root_at + 8 * v) * difference * difference;
          }
          return terms;
        });
    }
  }

  // The values of the levels in the slots of Terms; those of two weights if there are four slots per weight.
  static constexpr Floats8 values = weights == 8 ? Floats8{1, 3, 5, 7, 1, 3, 5, 7} : Floats8{1, 3, 5, 7, 9, 11, 13, 15};
  static void fill_slots(float* slot, float v) {
    typedef float Slots __attribute__((vector_size(4 * Table::slots)));
    const Slots all = v - Slots{};
    std::memcpy(slot, &all, sizeof all);
  }

  void add(int k, vi word, vf& sum_xq, vf& sum_qq) const {
    for (int i = 0; i < weights; ++i) {
      const vf q = to_float(2 * Table::level_in(word, i) + 1), w = weight[weights * k + i];
      sum_xq += w * x[weights * k + i] * q;
      sum_qq += w * q * q;
    }
  }

public:
  // The numbers of the entries.
  void number(vi* out) const {
    for (int k = 0; k < entries; ++k) {
      vi point{};
      for (int i = weights - 1; i >= 0; --i) point = point * Table::levels + Table::level_in(entry[k], i);
      for (int l = 0; l < lanes; ++l) out[k][l] = is_zero[l] ? 0 : neighbours_of<F>().entry_at(point[l]);
    }
  }
};

// Searches all groups of a tile; returns the entries' numbers, the signs of each eight weights, and scales of 4 bits.
template <class F> struct Searched {
  using P = Plan<F>;
  static constexpr int groups = 256 / P::size;
  vi entries[256 / P::weights], signs[32], scales[groups], is_zero[groups];
  vf d;

  Searched(const vf* x, const vf* importance) {
    const vf mean_square = P::mean * sum_of_squares(x, 256) / 256.0f;
    vf scale[groups], largest{};
    Group<F> group;
    for (int g = 0; g < groups; ++g) {
      const vf* from = x + P::size * g;
      if (importance)
        damp(from, importance + P::size * g, P::size, mean_square, group.weight);
      else
        for (int i = 0; i < P::size; ++i) group.weight[i] = without_importance(from[i], mean_square);
      group.search(from);
      group.number(entries + P::size / P::weights * g);
      for (int k = 0; k < P::size / 8; ++k) signs[P::size / 8 * g + k] = group.signs[k];
      scale[g] = group.scale;
      is_zero[g] = group.is_zero;
      largest = larger(largest, scale[g]);
    }
    const vf step = largest / 31.0f, inverse = 1.0f / step;
    d = step * P::stretch;
    for (int g = 0; g < groups; ++g) scales[g] = clamp(nearest(0.5f * (inverse * scale[g] - 1.0f)), 0, 15);
    if (!P::has_even_signs) return;
    for (vi& v : entries) v = largest != 0 ? v : vi{};
    for (vi& v : signs) v = largest != 0 ? v : vi{};
  }

private:
  static vf without_importance(vf x, vf mean_square) {
    return P::weights == 8 ? 0.25f * mean_square + x * x : x * x;
  }
};

// Packs four times seven signs and a scale of 4 bits.
inline vi pack_signs(const vi* signs, vi scale) {
  return (signs[0] & 127) | (signs[1] & 127) << 7 | (signs[2] & 127) << 14 | (signs[3] & 127) << 21 | scale << 28;
}
inline void store_scale_pairs(const Blocks& out, int offset, const vi* scales, int pairs) {
  vi bytes[8];
  for (int i = 0; i < pairs; ++i) bytes[i] = scales[2 * i] | scales[2 * i + 1] << 4;
  out.store_bytes(offset, bytes, pairs);
}

template <> struct Encoder<IQ2_XXS> {
  static constexpr int halves[] = {0};
  static constexpr auto importance = Importance::needed;
  static void encode(const vf* x, const vf* weight, const Blocks& out) {
    const Searched<IQ2_XXS> found(x, weight);
    out.store_halves(0, found.d);
    for (int g = 0; g < 8; ++g) {
      out.store_bytes(2 + 8 * g, found.entries + 4 * g, 4);
      out.store_words(6 + 8 * g, pack_signs(found.signs + 4 * g, found.scales[g]));
    }
  }
};

template <> struct Encoder<IQ2_XS> {
  static constexpr int halves[] = {0};
  static constexpr auto importance = Importance::needed;
  static void encode(const vf* x, const vf* weight, const Blocks& out) {
    const Searched<IQ2_XS> found(x, weight);
    out.store_halves(0, found.d);
    for (int i = 0; i < 32; i += 2)
      out.store_words(2 + 2 * i, found.entries[i] | (found.signs[i] & 127) << 9 | found.entries[i + 1] << 16 |
                                     (found.signs[i + 1] & 127) << 25);
    store_scale_pairs(out, 66, found.scales, 8);
  }
};

template <> struct Encoder<IQ2_S> {
  static constexpr int halves[] = {0};
  static constexpr auto importance = Importance::plain;
  static void encode(const vf* x, const vf* weight, const Blocks& out) {
    const Searched<IQ2_S> found(x, weight);
    vi low[32], high[8]{};
    for (int i = 0; i < 32; ++i) {
      low[i] = found.entries[i] & 255;
      high[i / 4] |= found.entries[i] >> 8 << 2 * (i % 4);
    }
    out.store_halves(0, found.d);
    out.store_bytes(2, low, 32);
    out.store_bytes(34, found.signs, 32);
    out.store_bytes(66, high, 8);
    store_scale_pairs(out, 74, found.scales, 8);
  }
};

template <> struct Encoder<IQ3_XXS> {
  static constexpr int halves[] = {0};
  static constexpr auto importance = Importance::plain;
  static void encode(const vf* x, const vf* weight, const Blocks& out) {
    const Searched<IQ3_XXS> found(x, weight);
    out.store_halves(0, found.d);
    out.store_bytes(2, found.entries, 64);
    for (int g = 0; g < 8; ++g) out.store_words(66 + 4 * g, pack_signs(found.signs + 4 * g, found.scales[g]));
  }
};

template <> struct Encoder<IQ3_S> {
  static constexpr int halves[] = {0};
  static constexpr auto importance = Importance::plain;
  static void encode(const vf* x, const vf* weight, const Blocks& out) {
    const Searched<IQ3_S> found(x, weight);
    vi low[64], high[8]{}, signs[32];
    for (int i = 0; i < 64; ++i) {
      low[i] = found.entries[i] & 255;
      high[i / 8] |= found.entries[i] >> 8 << i % 8;
    }
    for (int i = 0; i < 32; ++i) signs[i] = found.signs[i];
    // ggml does not advance in these two fields after a group of zeros, so later groups move up.
    for (int g = 7; g >= 0; --g) {
      const vi moves = found.is_zero[g];
      for (int i = 8 * g; i < 64; ++i) low[i] = !moves ? low[i] : i < 56 ? low[i + 8] : vi{};
      for (int i = 4 * g; i < 32; ++i) signs[i] = !moves ? signs[i] : i < 28 ? signs[i + 4] : vi{};
    }
    out.store_halves(0, found.d);
    out.store_bytes(2, low, 64);
    out.store_bytes(66, high, 8);
    out.store_bytes(74, signs, 32);
    store_scale_pairs(out, 106, found.scales, 4);
  }
};

} // namespace
