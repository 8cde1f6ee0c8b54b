// Bit tricks that several formats share. Words are little endian: byte i is weight i.
#pragma once
#include "../half.h"

namespace {

typedef uint8_t Bytes16 __attribute__((vector_size(16)));

constexpr uint64_t every_byte = 0x0101010101010101;

inline uint64_t load_u64(const uint8_t* p) {
  uint64_t v;
  std::memcpy(&v, p, 8);
  return v;
}
inline void store_u64(uint8_t* p, uint64_t v) { std::memcpy(p, &v, 8); }

// Bit i of `bits` as byte i: 0 or 1.
inline uint64_t spread_bits(uint8_t bits) {
  const uint64_t picked = bits * every_byte & 0x8040201008040201;
  return (picked + 0x7f * every_byte) >> 7 & every_byte;
}

// Codes of eight weights: zero + value, or zero - value where the weight's bit in `signs` is set. No value exceeds zero.
inline uint64_t signed_codes(uint64_t values, uint8_t signs, int zero) {
  const uint64_t negative = spread_bits(signs) * 0xff, center = uint64_t(zero) * every_byte;
  return ((center + values) & ~negative) | ((center - values) & negative);
}

// Low nibbles of 16 bytes become weights 0-15, high nibbles 16-31.
inline void unpack_nibbles(const uint8_t* bytes, uint8_t* codes) {
  Bytes16 v;
  std::memcpy(&v, bytes, 16);
  const Bytes16 low = v & 15, high = v >> 4;
  std::memcpy(codes, &low, 16);
  std::memcpy(codes + 16, &high, 16);
}

// codes[i] = table[codes[i]] for n codes below 16; n is a multiple of 16.
inline void look_up(const uint8_t (&table)[16], uint8_t* codes, int n) {
#if defined(__GNUC__) && !defined(__clang__)
  Bytes16 values, index;
  std::memcpy(&values, table, 16);
  for (int i = 0; i < n; i += 16) {
    std::memcpy(&index, codes + i, 16);
    index = __builtin_shuffle(values, index);
    std::memcpy(codes + i, &index, 16);
  }
#else
  for (int i = 0; i < n; ++i) codes[i] = table[codes[i]];
#endif
}

} // namespace
