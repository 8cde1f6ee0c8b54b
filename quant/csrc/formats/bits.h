// Bit operations that several formats share. Words are little-endian: byte i is weight i.
#pragma once
#include <type_traits>

#include "../half.h"

namespace {

inline void store_u64(uint8_t* p, uint64_t v) { std::memcpy(p, &v, 8); }
inline void store_floats(float* p, Floats8 v) { std::memcpy(p, &v, sizeof v); }

// A position in the first of several rows that lie `stride` bytes apart.
struct RowPlace {
  const uint8_t* p;
  int64_t stride;
  RowPlace(const uint8_t* place, int64_t bytes = 0) : p(place), stride(bytes) {}
  RowPlace operator+(int64_t bytes) const { return {p + bytes, stride}; }
};

// Formats that unpack codes in registers unpack n groups of 32 at once, each in a lane of 16 bytes: `low` are codes 0-15
// of the groups, `high` 16-31. The groups follow each other in a row (Lanes) or lie at the same place of n rows (Rows).
template <int n> struct Groups {
  using Words = std::conditional_t<n == 1, Words2, std::conditional_t<n == 2, Words4, Words8>>;
  Words low, high;

  // Loads the 16 bytes at at(j) into lane j.
  template <class At> static Words gather(At at) {
    if constexpr (n == 1)
      return load<Words>(at(0));
    else if constexpr (n == 2)
      return join(load<Words2>(at(0)), at(1));
    else
      return join(join(load<Words2>(at(0)), at(1)), join(load<Words2>(at(2)), at(3)));
  }
  static Words gather(const uint8_t* p, int64_t stride) {
    return gather([&](int64_t j) { return p + j * stride; });
  }
  // Writes the 32 n codes in the order of a row's weights.
  void store(uint8_t* codes) const { store_groups(codes, low, high); }
};

// One group of each of n rows.
template <int n> struct Rows : Groups<n> {
  using typename Groups<n>::Words;
  using Groups<n>::gather;
  Rows(Words low, Words high) : Groups<n>{low, high} {}

  template <int> static Words gather(RowPlace p) { return Groups<n>::gather(p.p, p.stride); }
  // 16 bytes of each row: bit `first` of each byte moves to bit `to`, and its neighbours move with it.
  static Words moved(RowPlace p, int first, int, int to) {
    return first < to ? gather<0>(p) << (to - first) : gather<0>(p) >> (first - to);
  }
  // The nibbles of 16 bytes: the low ones are codes 0-15.
  template <int> static Rows nibbles(RowPlace p) {
    const Words both = gather<0>(p);
    return {both & 0x0f * every_byte, both >> 4 & 0x0f * every_byte};
  }
  // The nibbles of blocks of 64 codes in 32 bytes: the low ones are one group, the high ones the next.
  static Rows nibbles_of_pairs(RowPlace p, int group) { return nibbles_of(p + group / 2 * 32, group % 2); }
  // The nibbles of 128 codes in 64 bytes: the low ones are two groups, the high ones the next two.
  static Rows nibbles_of_fours(RowPlace p, int group) { return nibbles_of(p + group % 2 * 32, group / 2); }
  // Adds 16 to each code whose bit is set in the 32 bits at p.
  template <int> Rows with_fifth_bits(RowPlace p) const {
    Rows codes = *this;
    add_fifth_bits_of_rows(codes.low, codes.high, p.p, p.stride);
    return codes;
  }

private:
  static Rows nibbles_of(RowPlace p, int which) {
    return {gather<0>(p) >> 4 * which & 0x0f * every_byte, gather<0>(p + 16) >> 4 * which & 0x0f * every_byte};
  }
};

// n consecutive groups of a row; n is more than one, because Rows with one row covers a single group.
template <int n> struct Consecutive : Groups<n> {
  using typename Groups<n>::Words;
  using Groups<n>::gather;
  Consecutive(Words low, Words high) : Groups<n>{low, high} {}

  // 16 bytes of each of n blocks of `stride` bytes.
  template <int stride> static Words gather(const uint8_t* p) { return Groups<n>::gather(p, stride); }
  // The same 16 bytes in every lane: in lane j, bit `first` + `more` j of each byte moves to bit `to`, with its neighbours.
  static Words moved(const uint8_t* p, int first, int more, int to) {
    Words left{};
    for (int j = 0; j < n; ++j) left[2 * j] = left[2 * j + 1] = uint64_t(to - first - j * more) & 63;
    return rotate_left(repeat<Words>(load<Words2>(p)), left);
  }
  // As in Rows, for n blocks, or for the groups of the first block from `group` on.
  template <int stride> static Consecutive nibbles(const uint8_t* p) {
    const Words both = gather<stride>(p);
    return {both & 0x0f * every_byte, both >> 4 & 0x0f * every_byte};
  }
  static Consecutive nibbles_of_pairs(const uint8_t* p, int group) {
    const Words both = load_once<Words>(p + group / 2 * 32), a = both & 0x0f * every_byte, b = both >> 4 & 0x0f * every_byte;
    if constexpr (n == 2)
      return {__builtin_shufflevector(a, b, 0, 1, 4, 5), __builtin_shufflevector(a, b, 2, 3, 6, 7)};
    else
      return {__builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13), __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15)};
  }
  static Consecutive nibbles_of_fours(const uint8_t* p, int group) {
    if constexpr (n == 4) {
      const Words both = load_once<Words>(p), a = both & 0x0f * every_byte, b = both >> 4 & 0x0f * every_byte;
      return {__builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13), __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15)};
    } else {
      const int shift = group / 2 * 4;
      const auto bytes = [&](int from) { return Groups<n>::gather([&](int j) { return p + (group + j) % 2 * 32 + from; }); };
      return {bytes(0) >> shift & 0x0f * every_byte, bytes(16) >> shift & 0x0f * every_byte};
    }
  }
  template <int stride> Consecutive with_fifth_bits(const uint8_t* p) const {
    return {add_fifth_bits(this->low, words_of_blocks<n>(p, stride)), add_fifth_bits(this->high, words_of_blocks<n>(p + 2, stride))};
  }
};
template <int n> using Lanes = std::conditional_t<n == 1, Rows<1>, Consecutive<n>>;

// Such a format defines `scales` of a block (and, if a block has more than one group, `scales_of_rows` of as many rows as V
// has lanes), and `codes` of n groups. As Lanes, these are the groups of the n blocks from b on if a block is one group (it
// then begins with its scale, and minimum, in half precision), or else the groups of one block from `group` on. As Rows,
// from a RowPlace, they are `group` of one block of each row.
template <class F> struct InRegisters {
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float* __restrict min) {
    F::scales(b, scale, min);
    for (int group = 0; group < F::block / 32; ++group) F::template codes<Rows<1>>(RowPlace{b}, group).store(codes + 32 * group);
  }
};

// The codes of eight weights: zero + value, or zero - value if the weight's bit in `signs` is set. No value exceeds `zero`.
inline uint64_t signed_codes(uint64_t values, uint8_t signs, int zero) {
  const uint64_t negative = spread_bits(signs) * 0xff, center = uint64_t(zero) * every_byte;
  return ((center + values) & ~negative) | ((center - values) & negative);
}

} // namespace
