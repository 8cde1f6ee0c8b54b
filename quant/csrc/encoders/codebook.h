// The best entry of a codebook for a group of weights, ggml's choice where two are as good.
// Source: iq2xs_init_impl, iq3xs_init_impl and iq2_find_best_neighbour of ggml-quants.c.
//
// A group rounded to levels is a point of a lattice. A point that is no entry has a list of candidates: the entries at
// the least distances from it. Among these the squared error decides, where weights count by their importance.
#pragma once
#include <algorithm>
#include <cassert>

#include "../formats/codebooks.h"
#include "../half.h"

namespace {

// Candidates are weighed eight at a time, whatever the width of the target: most lists are short.
typedef float Eight __attribute__((vector_size(32)));
typedef int32_t EightInts __attribute__((vector_size(32)));
constexpr EightInts zero_to_seven = {0, 1, 2, 3, 4, 5, 6, 7};

inline Eight load_eight(const float* from) {
  Eight v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// table[index & 7] in each place.
inline Eight pick(Eight table, EightInts index) {
#if defined(__AVX2__)
  return (Eight)_mm256_permutevar8x32_ps((__m256)table, (__m256i)index);
#else
  Eight v;
  for (int k = 0; k < 8; ++k) v[k] = table[index[k] & 7];
  return v;
#endif
}

inline float least_of(Eight v) {
#if defined(__AVX2__)
  __m128 four = _mm_min_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  four = _mm_min_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_min_ss(four, _mm_movehdup_ps(four)));
#else
  float least = v[0];
  for (int k = 1; k < 8; ++k) least = v[k] < least ? v[k] : least;
  return least;
#endif
}

// The first place that holds x, or 8.
inline int find(Eight v, float x) {
#if defined(__AVX2__)
  return __builtin_ctz(uint32_t(_mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_set1_ps(x), _CMP_EQ_OQ))) | 256);
#else
  int k = 0;
  while (k < 8 && v[k] != x) ++k;
  return k;
#endif
}

// What each level of each weight adds to the squared error: `slots` places a weight, one for a level.
struct Terms {
  Eight place[4];
};

// An entry is a word of a nibble a weight, the first in the low bits. A nibble names the weight's level, and the place
// of its term among the eight of one vector.
template <int weights> class Neighbours {
public:
  static constexpr int levels = weights == 8 ? 3 : 8, slots = 32 / weights, points = weights == 8 ? 6561 : 4096;
  static constexpr int32_t is_off_grid = 8; // in what `choose` gives; no entry has this bit

  // The level of weight i in a word or a vector of words.
  template <class Word> static Word level_in(Word word, int i) { return word >> (4 * i) & (slots - 1); }

  // `distances`: how many different distances the candidates of a point are at.
  template <int entries> Neighbours(const uint16_t (&packed)[entries], int distances) {
    constexpr int bits = 16 / weights;
    uint8_t level[weights][entries], distance[entries];
    for (int n = 0; n < entries; ++n) {
      uint32_t word = 0;
      for (int i = 0; i < weights; ++i) {
        level[i][n] = uint8_t(packed[n] >> (bits * i) & (slots - 1));
        word |= uint32_t(level[i][n] + slots * i % 8) << (4 * i);
      }
      add(int32_t(word));
    }
    for (int point = 0; point < points; ++point) {
      std::memset(distance, 0, sizeof distance);
      for (int i = 0, rest = point; i < weights; ++i, rest /= levels)
        for (int n = 0; n < entries; ++n) {
          const int difference = level[i][n] - rest % levels;
          distance[n] = uint8_t(distance[n] + difference * difference);
        }
      list_candidates(point, distance, entries, distances);
    }
    for (int k = 0; k < 8; ++k) add(0); // reads go by eight
  }

  // The number of the entry at a point that is one.
  int entry_at(int point) const { return int(first_[point]); }

  // The entry at the point; else the candidate whose terms have the least sum, the first of those, with is_off_grid.
  // `make_terms` is called when they are needed.
  template <class MakeTerms> int32_t choose(int point, MakeTerms make_terms) const {
    const int32_t* candidate = &words_[first_[point]];
    const int count = count_[point];
    if (!count) return *candidate;
    const Terms term = make_terms();
    Eight sums[most / 8], least = 3.40282347e38f - Eight{};
    for (int n = 0; n < count; n += 8) {
      EightInts word;
      std::memcpy(&word, candidate + n, sizeof word);
      Eight sum = pick(term.place[0], word);
      for (int i = 1; i < weights; ++i) sum += pick(term.place[slots * i / 8], word >> (4 * i));
      sum = zero_to_seven < count - n ? sum : __builtin_inff() - Eight{};
      sums[n / 8] = sum;
      least = sum < least ? sum : least;
    }
    const float wanted = least_of(least);
    for (int n = 0; n < count; n += 8) {
      const int k = find(sums[n / 8], wanted);
      if (k < 8) return candidate[n + k] | is_off_grid;
    }
    return *candidate | is_off_grid; // no sum is finite: ggml gives up here
  }

private:
  static constexpr int most = 512; // candidates of a point

  void add(int32_t word) {
    assert(used_ < room);
    words_[used_++] = word;
  }

  void list_candidates(int point, const uint8_t* distance, int entries, int distances) {
    int least = *std::min_element(distance, distance + entries);
    if (least == 0) {
      first_[point] = uint32_t(std::find(distance, distance + entries, 0) - distance);
      return;
    }
    first_[point] = uint32_t(used_);
    for (; distances > 0 && least < 255; --distances) {
      int next = 255;
      for (int n = 0; n < entries; ++n) {
        const int d = distance[n] > least ? distance[n] : 255;
        next = d < next ? d : next;
      }
      for (int n = 0; n < entries; ++n)
        if (distance[n] == least) add(words_[n]);
      least = next;
    }
    count_[point] = uint16_t(used_ - first_[point]);
  }

  // The most that a format has is 329,777. Of static objects, what is not used costs nothing; a std::vector's functions
  // would be shared between the instruction sets.
  static constexpr int room = weights == 8 ? 330000 : 26000;
  int used_ = 0;
  int32_t words_[room];        // the entries, then the points' candidates
  uint32_t first_[points];     // in `words_`; of an entry it is its number
  uint16_t count_[points]{};   // 0 of an entry
};

} // namespace
