// The search for the best codebook entry of a group of weights; ties are resolved as in ggml.
// Source: iq2xs_init_impl, iq3xs_init_impl and iq2_find_best_neighbour of ggml-quants.c.
//
// A group rounded to levels is a point of a lattice. A point that is not an entry has a list of candidates, which are the
// entries at the least distances from it. The candidate with the least squared error, weighted by importance, wins.
#pragma once
#include <algorithm>
#include <cassert>

#include "../formats/codebooks.h"
#include "../half.h"

namespace {

// Candidates are compared eight at a time on every target, because most lists are short.
constexpr Ints8 zero_to_seven = {0, 1, 2, 3, 4, 5, 6, 7};

// The term that each level of each weight adds to the squared error: `slots` positions per weight, one for each level.
struct Terms {
  Floats8 place[4];
};

// An entry is a word with one nibble per weight, the first in the low bits. A nibble holds the weight's level, which is also
// the position of its term among the eight of one vector.
template <int weights> class Neighbours {
public:
  static constexpr int levels = weights == 8 ? 3 : 8, slots = 32 / weights, points = weights == 8 ? 6561 : 4096;
  static constexpr int32_t is_off_grid = 8; // a flag in results of `choose`; no entry number has this bit

  // The level of weight i in a word or a vector of words.
  template <class Word> static Word level_in(Word word, int i) { return word >> (4 * i) & (slots - 1); }

  // `distances` is the number of distinct distances from a point that its candidates may have.
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
    for (int k = 0; k < 8; ++k) add(0); // eight words are read at a time
  }

  // The number of the entry at a point that is an entry.
  int entry_at(int point) const { return int(first_[point]); }

  // The entry at the point, or else the first candidate whose terms have the least sum, with is_off_grid set.
  // `make_terms` is called only if the terms are needed.
  template <class MakeTerms> int32_t choose(int point, MakeTerms make_terms) const {
    const int32_t* candidate = &words_[first_[point]];
    const int count = count_[point];
    if (!count) return *candidate;
    const Terms term = make_terms();
    Floats8 sums[most / 8], least = 3.40282347e38f - Floats8{};
    for (int n = 0; n < count; n += 8) {
      Ints8 word;
      std::memcpy(&word, candidate + n, sizeof word);
      Floats8 sum = pick(term.place[0], word);
      for (int i = 1; i < weights; ++i) sum += pick(term.place[slots * i / 8], word >> (4 * i));
      sum = zero_to_seven < count - n ? sum : __builtin_inff() - Floats8{};
      sums[n / 8] = sum;
      least = sum < least ? sum : least;
    }
    const float wanted = least_of(least);
    for (int n = 0; n < count; n += 8) {
      const int k = find(sums[n / 8], wanted);
      if (k < 8) return candidate[n + k] | is_off_grid;
    }
    return *candidate | is_off_grid; // no sum is finite; ggml gives up in this case
  }

private:
  static constexpr int most = 512; // the limit of candidates per point

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

  // The largest format needs 329,777 words. Unused parts of static objects cost no memory; a std::vector would share
  // functions between the instruction sets.
  static constexpr int room = weights == 8 ? 330000 : 26000;
  int used_ = 0;
  int32_t words_[room];        // the entries, then the points' candidates
  uint32_t first_[points];     // the index in `words_`; for an entry, its number
  uint16_t count_[points]{};   // 0 for an entry
};

} // namespace
