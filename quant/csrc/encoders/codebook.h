// Which entry of a codebook is the best for a group of weights: ggml's choice, the tie included.
// Source: iq2xs_init_impl, iq3xs_init_impl and iq2_find_best_neighbour of ggml-quants.c.
//
// A group rounded to levels is a point of a lattice. A point that is no entry has a list of candidates: the entries at the
// least distances from it, as many distances as the format wants. The choice among them counts the weights' importance.
#pragma once
#include <algorithm>
#include <vector>

#include "../formats/codebooks.h"
#include "lanes.h"

namespace {

constexpr int span = lanes < 8 ? 8 : lanes; // entries of a table that `pick` looks at

// table[index & (span - 1)] in each lane.
inline Floats pick(const float* table, Ints index) {
#if defined(__AVX512F__)
  return (Floats)_mm512_permutexvar_ps((__m512i)index, _mm512_loadu_ps(table));
#elif defined(__AVX2__)
  return (Floats)_mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)index);
#else
  Floats v;
  for (int l = 0; l < lanes; ++l) v[l] = table[index[l] & (span - 1)];
  return v;
#endif
}

inline float least_lane(Floats v) {
#if defined(__AVX512F__)
  return _mm512_reduce_min_ps((__m512)v);
#elif defined(__AVX2__)
  __m128 four = _mm_min_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  four = _mm_min_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_min_ss(four, _mm_movehdup_ps(four)));
#else
  float least = v[0];
  for (int l = 1; l < lanes; ++l) least = v[l] < least ? v[l] : least;
  return least;
#endif
}

// The first lane that holds x, or `lanes`.
inline int find_lane(Floats v, float x) {
#if defined(__AVX512F__)
  return __builtin_ctz(_mm512_cmp_ps_mask((__m512)v, _mm512_set1_ps(x), _CMP_EQ_OQ) | 1 << 16);
#elif defined(__AVX2__)
  return __builtin_ctz(_mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_set1_ps(x), _CMP_EQ_OQ)) | 1 << 8);
#else
  int l = 0;
  while (l < lanes && v[l] != x) ++l;
  return l;
#endif
}

inline Ints lane_numbers() {
  Ints v{};
  for (int l = 0; l < lanes; ++l) v[l] = l;
  return v;
}

// Entries are words of a nibble a weight, the first in the low bits: its level, and a place in a table of what each level of
// each weight adds to the squared error. Tables have 32 places, `slots` of them a weight.
template <int weights> class Neighbours {
public:
  static constexpr int levels = weights == 8 ? 3 : 8, slots = 32 / weights, points = weights == 8 ? 6561 : 4096;
  static constexpr int level_mask = slots - 1;
  static constexpr int32_t is_off_grid = 8; // in what `choose` gives; no entry has this bit

  template <int entries> Neighbours(const uint16_t (&packed)[entries], int distances) {
    constexpr int bits = 16 / weights;
    uint8_t level[weights][entries], distance[entries];
    for (int n = 0; n < entries; ++n) {
      uint32_t word = 0;
      for (int i = 0; i < weights; ++i) {
        level[i][n] = uint8_t(packed[n] >> (bits * i) & level_mask);
        word |= uint32_t(level[i][n] + slots * i % 16) << (4 * i);
      }
      candidates_.push_back(int32_t(word));
    }
    for (int point = 0; point < points; ++point) {
      std::memset(distance, 0, sizeof distance);
      for (int i = 0, rest = point; i < weights; ++i, rest /= levels)
        for (int n = 0; n < entries; ++n) {
          const int difference = level[i][n] - rest % levels;
          distance[n] = uint8_t(distance[n] + difference * difference);
        }
      add_candidates(point, distance, entries, distances);
    }
    candidates_.resize(candidates_.size() + lanes); // reads go by whole vectors
  }

  // The number of the entry at a point that is one.
  int entry_at(int point) const { return int(first_[point]); }

  // The entry at the point, or the candidate whose terms have the least sum, with is_off_grid.
  int32_t choose(int point, const float (&term)[32]) const {
    const int32_t* candidate = &candidates_[first_[point]];
    const int count = count_[point];
    if (!count) return *candidate;
    Floats sums[most / lanes], least = all_lanes(3.40282347e38f);
    for (int n = 0; n < count; n += lanes) {
      Ints word;
      std::memcpy(&word, candidate + n, sizeof word);
      Floats sum = pick(term, word);
      for (int i = 1; i < weights; ++i) sum += pick(term + slots * i / span * span, word >> (4 * i));
      sum = lane_numbers() < count - n ? sum : all_lanes(__builtin_inff());
      sums[n / lanes] = sum;
      least = smaller(sum, least);
    }
    const float wanted = least_lane(least);
    for (int n = 0; n < count; n += lanes) {
      const int l = find_lane(sums[n / lanes], wanted);
      if (l < lanes) return candidate[n + l] | is_off_grid;
    }
    return *candidate | is_off_grid; // no sum is finite
  }

private:
  static constexpr int most = 512; // candidates of a point

  void add_candidates(int point, const uint8_t* distance, int entries, int distances) {
    int least = 255;
    for (int n = 0; n < entries; ++n) least = distance[n] < least ? distance[n] : least;
    if (least == 0) {
      first_[point] = uint32_t(std::find(distance, distance + entries, 0) - distance);
      return;
    }
    first_[point] = uint32_t(candidates_.size());
    for (; distances > 0 && least < 255; --distances) {
      int next = 255;
      for (int n = 0; n < entries; ++n) {
        const int d = distance[n] > least ? distance[n] : 255;
        next = d < next ? d : next;
      }
      for (int n = 0; n < entries; ++n)
        if (distance[n] == least) candidates_.push_back(candidates_[n]);
      least = next;
    }
    count_[point] = uint16_t(candidates_.size() - first_[point]);
  }

  std::vector<int32_t> candidates_; // the entries themselves, then the points' lists
  uint32_t first_[points];
  uint16_t count_[points]{}; // 0 of an entry: `first_` is its number
};

} // namespace
