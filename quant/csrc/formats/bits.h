// Bit tricks that several formats share. Words are little endian: byte i is weight i.
#pragma once
#include "../half.h"

namespace {

typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint8_t Bytes32 __attribute__((vector_size(32)));
typedef uint8_t Bytes64 __attribute__((vector_size(64)));
typedef uint64_t Words2 __attribute__((vector_size(16)));
typedef uint64_t Words4 __attribute__((vector_size(32)));
typedef uint64_t Words8 __attribute__((vector_size(64)));

template <class V> inline V load_words(const uint8_t* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

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

inline Words4 twice(Words2 a) { return __builtin_shufflevector(a, a, 0, 1, 0, 1); }
inline Words8 twice(Words4 a) { return __builtin_shufflevector(a, a, 0, 1, 2, 3, 0, 1, 2, 3); }
inline Words8 join(Words4 a, Words4 b) { return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7); }

// Formats whose codes are made in registers are written in terms of a width: Codes32 makes the 32 codes of a block (or of
// a part of a large one), Codes64 those of two neighbours at once, for machines with vectors of 64 bytes.
struct Codes32 {
  static constexpr int count = 32;
  typedef Bytes32 Bytes;
  // 32 bytes.
  static Bytes bytes(const uint8_t* p, const uint8_t*) { return load_words<Bytes>(p); }
  // 16 bytes of nibbles: the low ones are weights 0-15, the high ones 16-31.
  static Bytes nibbles(const uint8_t* p, const uint8_t*) {
    return (Bytes)(twice(load_words<Words2>(p)) >> Words4{0, 0, 4, 4} & 0x0f * every_byte);
  }
  // 16 where the bit of the weight is set.
  static Bytes fifth_bits(const uint8_t* p, const uint8_t*) {
    const Words4 bytes = (load_u32(p) - Words4{}) >> Words4{0, 8, 16, 24} & 255, bit = 0x8040201008040201 - Words4{};
    return (Bytes)((Bytes)(bytes * every_byte & bit) == (Bytes)bit) & 16;
  }
  // 32 bytes shifted right by `shift`, and by `more` in the second half of 64 codes.
  static Words4 shifted(const uint8_t* p, int shift, int) { return load_words<Words4>(p) >> shift; }
};

struct Codes64 {
  static constexpr int count = 64;
  typedef Bytes64 Bytes;
  static Bytes bytes(const uint8_t* p, const uint8_t* next) { return (Bytes)join(load_words<Words4>(p), load_words<Words4>(next)); }
  static Bytes nibbles(const uint8_t* p, const uint8_t* next) {
    const Words4 both = __builtin_shufflevector(load_words<Words2>(p), load_words<Words2>(next), 0, 1, 2, 3);
    const Words8 all = __builtin_shufflevector(both, both, 0, 1, 0, 1, 2, 3, 2, 3);
    return (Bytes)(all >> Words8{0, 0, 4, 4, 0, 0, 4, 4} & 0x0f * every_byte);
  }
  static Bytes fifth_bits(const uint8_t* p, const uint8_t* next) {
    const uint64_t bits = load_u32(p) | uint64_t(load_u32(next)) << 32;
#if defined(__AVX512BW__) // a mask register is what the bits are
    return (Bytes)_mm512_maskz_set1_epi8(bits, 16);
#else
    const Words8 bytes = (bits - Words8{}) >> Words8{0, 8, 16, 24, 32, 40, 48, 56} & 255, bit = 0x8040201008040201 - Words8{};
    return (Bytes)((Bytes)(bytes * every_byte & bit) == (Bytes)bit) & 16;
#endif
  }
  static Words8 shifted(const uint8_t* p, int shift, int more) {
    const uint64_t m = uint64_t(more);
    return twice(load_words<Words4>(p)) >> shift >> Words8{0, 0, 0, 0, m, m, m, m};
  }
};

// What such a format gives: `scales` of a block, and `codes` of its part of 32 (with Codes64 also of the next part, or
// of the next block where a block is one part). A block of 32 begins with its scale (and minimum) in half precision.
template <class F> struct InRegisters {
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float* __restrict min) {
    F::scales(b, scale, min);
    for (int part = 0; part < F::block / 32; ++part) {
      const Bytes32 made = F::template codes<Codes32>(b, b, part);
      std::memcpy(codes + 32 * part, &made, 32);
    }
  }
};

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
