// Encoders of the k-quants with a scale and a min per group: Q2_K, Q4_K, Q5_K. Source: quantize_row_*_ref and *_impl of
// ggml-quants.c.
#pragma once
#include "../formats/k_quants.h"
#include "encoder.h"
#include "search.h"

namespace {

// A super-block during encoding: the codes of the weights and of the groups' scales and mins, and the units of the latter.
// `top` is the highest code of a scale or min.
template <class F, int top> struct SuperBlock {
  static constexpr int n = F::group, groups = F::block / F::group;
  vi codes[F::block], scales[groups], mins[groups];
  vf d, dmin;

  // Encodes each group separately, weighted by `weigh`; then codes scales and mins as fractions of the largest.
  template <Error error_is, class Weigh> void fit(const vf* x, Tries tries, Weigh weigh) {
    vf scale[groups], min[groups], weight[n], largest_scale{}, largest_min{};
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
  static vf to_parts(const vf* v, vf largest, vi* parts) {
    const vf inverse = largest > 0 ? float(top) / largest : vf{};
    for (int g = 0; g < groups; ++g) {
      parts[g] = nearest(inverse * v[g]) & 255;
      if (top == 63) parts[g] = clamp(parts[g], 0, top);
    }
    return largest / float(top);
  }

  // The same with importance, damped by the mean square of the super-block; the codes of scales and mins are searched too.
  void fit_important(const vf* x, const vf* importance, vf mean_square) {
    vf scale[groups], min[groups], weight[n], counts[groups];
    for (int g = 0; g < groups; ++g) {
      damp(x + n * g, importance + n * g, n, mean_square, weight);
      counts[g] = vf{};
      for (int i = 0; i < n; ++i) counts[g] += weight[i];
      scale[g] = search_scale_min<n>(x + n * g, weight, F::max_code, important_tries, codes + n * g, min[g]);
      min[g] = -min[g];
    }
    d = search_positive<groups>(scale, counts, top, scales);
    dmin = search_positive<groups>(min, counts, top, mins);
  }

  // Computes the codes again with the stored scales and mins, except in groups of scale zero.
  void recode(const vf* x) {
    const vf stored = round_to_half(d), stored_min = round_to_half(dmin);
    for (int g = 0; g < groups; ++g) {
      const vf scale = stored * to_float(scales[g]), min = stored_min * to_float(mins[g]);
      for (int i = n * g; i < n * g + n; ++i) {
        const vi code = clamp(nearest((x[i] + min) / scale), 0, F::max_code);
        codes[i] = scale != 0 ? code : codes[i];
      }
    }
  }
};

template <> struct Encoder<Q2_K> {
  static constexpr int halves[] = {80, 82};
  static constexpr auto importance = Importance::plain;
  static void encode(const vf* x, const vf* weight, const Blocks& out) {
    SuperBlock<Q2_K, 15> block;
    if (weight)
      block.fit_important(x, weight, sum_of_squares(x, 256) / 256.0f);
    else
      block.fit<Error::absolute>(x, {-0.5f, 0.1f, 15}, [](const vf* group, vf* counts) {
        for (int i = 0; i < 16; ++i) counts[i] = abs(group[i]);
      });
    vi bytes[64];
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

// Packs eight scales and eight mins of 6 bits into 12 bytes, and sets them to the values that a reader will decode.
inline void store_scales_mins(const Blocks& out, int offset, vi* scales, vi* mins) {
  vi bytes[12];
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

// The common part of Q4_K and Q5_K, which is everything but the layout of the codes.
template <class F>
SuperBlock<F, 63> encode_scales_mins(const vf* x, const vf* weight, Tries tries, const Blocks& out) {
  SuperBlock<F, 63> block;
  if (weight)
    block.fit_important(x, weight, 2.0f * sum_of_squares(x, 256) / 256.0f);
  else
    block.template fit<Error::squared>(x, tries, [](const vf* group, vf* counts) {
      const vf typical = square_root(sum_of_squares(group, 32) / 32.0f);
      for (int i = 0; i < 32; ++i) counts[i] = typical + abs(group[i]);
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
  static void encode(const vf* x, const vf* weight, const Blocks& out) {
    const auto block = encode_scales_mins<Q4_K>(x, weight, {-1.0f, 0.1f, 20}, out);
    store_nibbles_by_32(out, 16, block.codes);
  }
};

template <> struct Encoder<Q5_K> {
  static constexpr int halves[] = {0, 2};
  static constexpr auto importance = Importance::plain;
  static void encode(const vf* x, const vf* weight, const Blocks& out) {
    const auto block = encode_scales_mins<Q5_K>(x, weight, {-0.5f, 0.1f, 15}, out);
    vi bytes[32]{};
    for (int i = 0; i < 256; ++i) bytes[i % 32] |= block.codes[i] >> 4 << i / 32;
    out.store_bytes(16, bytes, 32);
    store_nibbles_by_32(out, 48, block.codes);
  }
};

} // namespace
