// Bytes of codes, several lanes of 16 bytes at once, and vectors of eight numbers.
#pragma once

namespace {

// Loads a vector that is used twice.
template <class V, class Byte> inline V load_once(const Byte* p) { return load<V>(p); }
template <class V> inline V repeat(Words2 v) {
  V out;
  for (int i = 0; i < int(sizeof(V) / 8); ++i) out[i] = v[i % 2];
  return out;
}
// v and 16 more bytes, at `next`.
template <class = void> inline Words4 join(Words2 v, const uint8_t* next) {
  return __builtin_shufflevector(v, load<Words2>(next), 0, 1, 2, 3);
}
template <class = void> inline Words8 join(Words4 a, Words4 b) { return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7); }
template <class Words> inline Words rotate_left(Words v, Words bits) { return v << bits | v >> (-bits & 63); }

// table[v] for bytes below 16.
template <class Words> inline Words look_up_bytes(const uint8_t (&table)[16], Words v) {
  using Bytes = std::conditional_t<sizeof v == 16, Bytes16, std::conditional_t<sizeof v == 32, Bytes32, Bytes64>>;
  Bytes bytes = (Bytes)v;
  for (int i = 0; i < int(sizeof v); ++i) bytes[i] = table[bytes[i]];
  return (Words)bytes;
}
// Adds 16 to each of `codes` whose bit is set in `bits`.
template <class Words> inline Words add_fifth_bits(Words codes, uint64_t bits) {
  Words v{};
  for (int i = 0; i < int(sizeof v / 8); ++i) v[i] = spread_bits(uint8_t(bits >> 8 * i)) << 4;
  return codes | v;
}
// The same for groups of 32 codes in rows that lie `stride` bytes apart: `low` are codes 0-15 of the groups, `high` 16-31.
template <class Words> inline void add_fifth_bits_of_rows(Words& low, Words& high, const uint8_t* p, int64_t stride) {
  constexpr int rows = sizeof(Words) / 16;
  low = add_fifth_bits(low, words_of_blocks<rows>(p, stride));
  high = add_fifth_bits(high, words_of_blocks<rows>(p + 2, stride));
}
// Writes such groups, each in the order of a row's weights.
template <class Words> inline void store_groups(uint8_t* codes, Words low, Words high) {
  for (int j = 0; j < int(sizeof(Words) / 16); ++j) {
    std::memcpy(codes + 32 * j, reinterpret_cast<const uint8_t*>(&low) + 16 * j, 16);
    std::memcpy(codes + 32 * j + 16, reinterpret_cast<const uint8_t*>(&high) + 16 * j, 16);
  }
}

// Eight bytes as floats.
template <class Byte, class Word> inline Floats8 widen(Word bytes) {
  Floats8 v;
  for (int i = 0; i < 8; ++i) v[i] = float(Byte(bytes >> 8 * i));
  return v;
}
// table[index & 7] in each place.
template <class = void> inline Floats8 pick(Floats8 table, Ints8 index) {
  Floats8 v;
  for (int k = 0; k < 8; ++k) v[k] = table[index[k] & 7];
  return v;
}
template <class = void> inline float least_of(Floats8 v) {
  float least = v[0];
  for (int k = 1; k < 8; ++k) least = v[k] < least ? v[k] : least;
  return least;
}
// The first position that holds x, or 8.
template <class = void> inline int find(Floats8 v, float x) {
  int k = 0;
  while (k < 8 && v[k] != x) ++k;
  return k;
}

} // namespace
