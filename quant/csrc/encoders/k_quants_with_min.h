// Encoders of the k-quants with a scale and a min a group: Q2_K, Q4_K, Q5_K. Source: quantize_row_*_ref and *_impl of
// ggml-quants.c.
#pragma once
#include "../formats/k_quants.h"
#include "encoder.h"
#include "search.h"

namespace {

// A super-block on its way: codes of the weights, of the groups' scales and mins, and what these count in. `top` is the
// highest code of a scale or min.
template <class F, int top> struct SuperBlock {
  static constexpr int n = F::group, groups = F::block / F::group;
  Ints codes[F::block], scales[groups], mins[groups];
  Floats d, dmin;

  // Each group by itself, `weigh` says how much its weights count; then scales and mins in parts of the largest.
  template <Error error_is, class Weigh> void fit(const Floats* x, Tries tries, Weigh weigh) {
    Floats scale[groups], min[groups], weight[n], largest_scale{}, largest_min{};
    for (int g = 0; g < groups; ++g) {
      weigh(x + n * g, weight);
      scale[g] = search_scale_min<n, error_is>(x + n * g, weight, F::max_code, tries, codes + n * g, min[g]);
      min[g] = -min[g];
      largest_scale = larger(scale[g], largest_scale);
      largest_min = larger(min[g], largest_min);
    }
    d = to_parts(scale, largest_scale, scales);
    dmin = to_parts(min, largest_min, mins);
  }
  static Floats to_parts(const Floats* v, Floats largest, Ints* parts) {
    const Floats inverse = largest > 0 ? float(top) / largest : Floats{};
    for (int g = 0; g < groups; ++g) {
      parts[g] = nearest(inverse * v[g]) & 255;
      if (top == 63) parts[g] = clamp(parts[g], 0, top);
    }
    return largest / float(top);
  }

  // The same with importance, damped by the mean square of the super-block; scales and mins are searched for, too.
  void fit_important(const Floats* x, const Floats* importance, Floats mean_square) {
    Floats scale[groups], min[groups], weight[n], counts[groups];
    for (int g = 0; g < groups; ++g) {
      damp(x + n * g, importance + n * g, n, mean_square, weight);
      counts[g] = Floats{};
      for (int i = 0; i < n; ++i) counts[g] += weight[i];
      scale[g] = search_scale_min<n>(x + n * g, weight, F::max_code, important_tries, codes + n * g, min[g]);
      min[g] = -min[g];
    }
    d = search_positive<groups>(scale, counts, top, scales);
    dmin = search_positive<groups>(min, counts, top, mins);
  }

  // The codes again with scales and mins as stored, but for groups of scale zero.
  void recode(const Floats* x) {
    const Floats stored = round_to_half(d), stored_min = round_to_half(dmin);
    for (int g = 0; g < groups; ++g) {
      const Floats scale = stored * to_floats(scales[g]), min = stored_min * to_floats(mins[g]);
      for (int i = n * g; i < n * g + n; ++i) {
        const Ints code = clamp(nearest((x[i] + min) / scale), 0, F::max_code);
        codes[i] = scale != 0 ? code : codes[i];
      }
    }
  }
};

template <> struct Encoder<Q2_K> {
  static constexpr int halves[] = {80, 82};
  static constexpr auto importance = Importance::plain;
  static void encode(const Floats* x, const Floats* weight, const Blocks& out) {
    SuperBlock<Q2_K, 15> block;
    if (weight)
      block.fit_important(x, weight, sum_of_squares(x, 256) / 256.0f);
    else
      block.fit<Error::absolute>(x, {-0.5f, 0.1f, 15}, [](const Floats* group, Floats* counts) {
        for (int i = 0; i < 16; ++i) counts[i] = magnitude(group[i]);
      });
    Ints bytes[64];
    for (int g = 0; g < 16; ++g) {
      bytes[g] = (block.scales[g] | block.mins[g] << 4) & 255;
      block.scales[g] = bytes[g] & 15;
      block.mins[g] = bytes[g] >> 4;
    }
    out.store_bytes(0, bytes, 16);
    block.recode(x);
    store_pairs(out, 16, block.codes);
    out.store_halves(80, block.d);
    out.store_halves(82, block.dmin);
  }
};

// Eight scales and eight mins of 6 bits to 12 bytes; they become what a reader will find there.
inline void store_scales_mins(const Blocks& out, int offset, Ints* scales, Ints* mins) {
  Ints bytes[12];
  for (int g = 0; g < 4; ++g) {
    bytes[g] = (scales[g] | scales[g + 4] >> 4 << 6) & 255;
    bytes[g + 4] = (mins[g] | mins[g + 4] >> 4 << 6) & 255;
    bytes[g + 8] = (scales[g + 4] & 15) | (mins[g + 4] & 15) << 4;
    scales[g] = bytes[g] & 63;
    mins[g] = bytes[g + 4] & 63;
    scales[g + 4] = (bytes[g + 8] & 15) | bytes[g] >> 6 << 4;
    mins[g + 4] = bytes[g + 8] >> 4 | bytes[g + 4] >> 6 << 4;
  }
  out.store_bytes(offset, bytes, 12);
}

// What Q4_K and Q5_K have in common: all but the codes' place.
template <class F>
SuperBlock<F, 63> encode_scales_mins(const Floats* x, const Floats* weight, Tries tries, const Blocks& out) {
  SuperBlock<F, 63> block;
  if (weight)
    block.fit_important(x, weight, 2.0f * sum_of_squares(x, 256) / 256.0f);
  else
    block.template fit<Error::squared>(x, tries, [](const Floats* group, Floats* counts) {
      const Floats typical = square_root(sum_of_squares(group, 32) / 32.0f);
      for (int i = 0; i < 32; ++i) counts[i] = typical + magnitude(group[i]);
    });
  if (F::type == Q5_K::type)
    for (int g = 0; g < 8; ++g) {
      block.scales[g] = clamp(block.scales[g], 0, 63);
      block.mins[g] = clamp(block.mins[g], 0, 63);
    }
  store_scales_mins(out, 4, block.scales, block.mins);
  block.recode(x);
  out.store_halves(0, block.d);
  out.store_halves(2, block.dmin);
  return block;
}

template <> struct Encoder<Q4_K> {
  static constexpr int halves[] = {0, 2};
  static constexpr auto importance = Importance::plain;
  static void encode(const Floats* x, const Floats* weight, const Blocks& out) {
    const auto block = encode_scales_mins<Q4_K>(x, weight, {-1.0f, 0.1f, 20}, out);
    store_nibbles_by_32(out, 16, block.codes);
  }
};

template <> struct Encoder<Q5_K> {
  static constexpr int halves[] = {0, 2};
  static constexpr auto importance = Importance::plain;
  static void encode(const Floats* x, const Floats* weight, const Blocks& out) {
    const auto block = encode_scales_mins<Q5_K>(x, weight, {-0.5f, 0.1f, 15}, out);
    Ints bytes[32]{};
    for (int i = 0; i < 256; ++i) bytes[i % 32] |= block.codes[i] >> 4 << i / 32;
    out.store_bytes(16, bytes, 32);
    store_nibbles_by_32(out, 48, block.codes);
  }
};

} // namespace
