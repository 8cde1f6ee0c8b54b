// The vector types of an instruction set, and what the compiler does with them as well as an intrinsic would. An instruction
// set includes it after its widths; the types are extensions of GCC and Clang.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace {

typedef float vf __attribute__((vector_size(lanes * 4)));
typedef int32_t vi __attribute__((vector_size(lanes * 4)));
typedef uint32_t vu __attribute__((vector_size(lanes * 4)));
typedef uint8_t vb __attribute__((vector_size(lanes * 4)));
// Vectors with the same size on every target.
typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint8_t Bytes32 __attribute__((vector_size(32)));
typedef uint8_t Bytes64 __attribute__((vector_size(64)));
typedef uint64_t Words2 __attribute__((vector_size(16)));
typedef uint64_t Words4 __attribute__((vector_size(32)));
typedef uint64_t Words8 __attribute__((vector_size(64)));
typedef float Floats4 __attribute__((vector_size(16)));
typedef float Floats8 __attribute__((vector_size(32)));
typedef int32_t Ints8 __attribute__((vector_size(32)));
struct Float16 {
  uint16_t bits;
};
struct Brain16 {
  uint16_t bits;
};

template <class V, class T> inline V load(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
template <class V, class T> inline void store(T* p, V v) { std::memcpy(p, &v, sizeof(V)); }
inline uint16_t load_u16(const uint8_t* p) { return load<uint16_t>(p); }
inline uint32_t load_u32(const uint8_t* p) { return load<uint32_t>(p); }
inline uint64_t load_u64(const uint8_t* p) { return load<uint64_t>(p); }
inline float bits_f32(uint32_t bits) { return load<float>(&bits); }
inline uint32_t f32_bits(float f) { return load<uint32_t>(&f); }

inline vf splat(float x) { return x - vf{}; }
inline vi splat(int32_t x) { return x - vi{}; }
inline vf to_float(vi v) { return __builtin_convertvector(v, vf); }
inline vi to_int(vf v) { return __builtin_convertvector(v, vi); }
inline vf abs(vf a) { return (vf)((vi)a & 0x7fffffff); }

// Prevents GCC from holding an array in registers.
template <class T, int n> inline void keep_in_memory(T (&array)[n]) { asm("" : "+m"(array)); }

constexpr uint64_t every_byte = 0x0101010101010101;
// Bit i of `bits` as byte i: 0 or 1.
inline uint64_t spread_bits(uint8_t bits) {
  const uint64_t picked = bits * every_byte & 0x8040201008040201;
  return (picked + 0x7f * every_byte) >> 7 & every_byte;
}

template <class V> V repeat(Words2 v); // every 16 bytes of the result are v

// The 16 bits at p and those at the same place of the next blocks or rows of `stride` bytes; n is at most four. The loads are
// scalar, because vector ports limit the kernels.
template <int n> inline uint64_t words_of_blocks(const uint8_t* p, int64_t stride) {
  uint64_t words = 0;
  for (int j = 0; j < n; ++j) words |= uint64_t(load_u16(p + j * stride)) << 16 * j;
  return words;
}

// Interleaves the lanes of a and b from `first` on.
template <int first, int... l> inline vi zip(vi a, vi b, std::integer_sequence<int, l...>) {
  return __builtin_shufflevector(a, b, (first + l / 2 + l % 2 * lanes)...);
}
constexpr std::make_integer_sequence<int, lanes> every_lane;
inline vi zip_low(vi a, vi b) { return zip<0>(a, b, every_lane); }
inline vi zip_high(vi a, vi b) { return zip<lanes / 2>(a, b, every_lane); }
// Each round rotates the bits of a lane's index (row, column) by one; after log2(lanes) rounds the two are swapped.
inline void transpose(vi (&v)[lanes]) {
#pragma GCC unroll 4
  for (int round = 1; round < lanes; round *= 2) {
    vi next[lanes];
    for (int i = 0; i < lanes / 2; ++i) {
      next[2 * i] = zip_low(v[i], v[i + lanes / 2]);
      next[2 * i + 1] = zip_high(v[i], v[i + lanes / 2]);
    }
    for (int i = 0; i < lanes; ++i) v[i] = next[i];
  }
}

} // namespace
