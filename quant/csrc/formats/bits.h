// Bit tricks that several formats share. Words are little endian: byte i is weight i.
#pragma once
#include <type_traits>

#include "../half.h"

namespace {

typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint8_t Bytes32 __attribute__((vector_size(32)));
typedef uint8_t Bytes64 __attribute__((vector_size(64)));
typedef float Floats8 __attribute__((vector_size(32)));
typedef uint64_t Words2 __attribute__((vector_size(16)));
typedef uint64_t Words4 __attribute__((vector_size(32)));
typedef uint64_t Words8 __attribute__((vector_size(64)));

template <class V> inline V load_words(const uint8_t* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

constexpr uint64_t every_byte = 0x0101010101010101;

// Loads a vector that is used twice. GCC would load it for each use, and as blocks are not aligned, each load takes two.
template <class V> inline V load_once(const uint8_t* p) {
  V v = load_words<V>(p);
#if defined(__AVX2__)
  asm("" : "+v"(v));
#endif
  return v;
}

inline uint64_t load_u64(const uint8_t* p) {
  uint64_t v;
  std::memcpy(&v, p, 8);
  return v;
}
inline void store_u64(uint8_t* p, uint64_t v) { std::memcpy(p, &v, 8); }

// Eight bytes as floats.
template <class Byte> inline Floats8 widen(uint64_t bytes) {
#if defined(__AVX2__)
  const __m128i v = _mm_cvtsi64_si128(int64_t(bytes));
  return _mm256_cvtepi32_ps(Byte(-1) < 0 ? _mm256_cvtepi8_epi32(v) : _mm256_cvtepu8_epi32(v));
#elif defined(LLTOOL_NEON)
  const int16x8_t v = Byte(-1) < 0 ? vmovl_s8((int8x8_t)bytes) : (int16x8_t)vmovl_u8((uint8x8_t)bytes);
  const float32x4_t parts[2] = {vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), vcvtq_f32_s32(vmovl_high_s16(v))};
  return load_words<Floats8>(reinterpret_cast<const uint8_t*>(parts));
#else
  Floats8 v;
  for (int i = 0; i < 8; ++i) v[i] = float(Byte(bytes >> 8 * i));
  return v;
#endif
}
inline void store_floats(float* p, Floats8 v) { std::memcpy(p, &v, sizeof v); }

// Bit i of `bits` as byte i: 0 or 1.
inline uint64_t spread_bits(uint8_t bits) {
  const uint64_t picked = bits * every_byte & 0x8040201008040201;
  return (picked + 0x7f * every_byte) >> 7 & every_byte;
}

// Wider vectors of narrower ones: by intrinsics where GCC 12 would load and move too often. First: 16 more bytes at `next`.
inline Words4 join(Words2 v, const uint8_t* next) {
#if defined(__AVX2__)
  return (Words4)_mm256_inserti128_si256(_mm256_castsi128_si256((__m128i)v), (__m128i)load_words<Words2>(next), 1);
#else
  return __builtin_shufflevector(v, load_words<Words2>(next), 0, 1, 2, 3);
#endif
}
inline Words8 join(Words4 a, Words4 b) {
#if defined(__AVX512F__)
  return (Words8)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)a), (__m256i)b, 1);
#else
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
#endif
}
template <class V> inline V repeat(Words2 v) {
  if constexpr (sizeof(V) == 16) return v;
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32) return (V)_mm256_broadcastsi128_si256((__m128i)v);
#endif
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) return (V)_mm512_broadcast_i32x4((__m128i)v);
#endif
}

// The first 16 bits at p and of the next blocks, or rows, of `stride` bytes, n of at most four. Scalar loads: vector ports are
// what kernels are short of.
template <int n> inline uint64_t words_of_blocks(const uint8_t* p, int64_t stride) {
  uint64_t words = 0;
  for (int j = 0; j < n; ++j) words |= uint64_t(load_u16(p + j * stride)) << 16 * j;
  return words;
}

// A place in the first of some rows that lie `stride` bytes apart.
struct RowPlace {
  const uint8_t* p;
  int64_t stride;
  RowPlace(const uint8_t* place, int64_t bytes = 0) : p(place), stride(bytes) {}
  RowPlace operator+(int64_t bytes) const { return {p + bytes, stride}; }
};

// Formats whose codes are made in registers make n groups of 32 at once, each in a lane of 16 bytes: `low` are codes 0-15
// of the groups, `high` 16-31. The groups follow each other in a row (Lanes), or stand in the same place of n rows (Rows).
template <int n> struct Groups {
  using Bytes = std::conditional_t<n == 1, Bytes16, std::conditional_t<n == 2, Bytes32, Bytes64>>;
  using Words = std::conditional_t<n == 1, Words2, std::conditional_t<n == 2, Words4, Words8>>;
  Words low, high;

  // 16 bytes at at(j) in lane j.
  template <class At> static Words gather(At at) {
    if constexpr (n == 1)
      return load_words<Words>(at(0));
    else if constexpr (n == 2)
      return join(load_words<Words2>(at(0)), at(1));
    else
      return join(join(load_words<Words2>(at(0)), at(1)), join(load_words<Words2>(at(2)), at(3)));
  }
  static Words gather(const uint8_t* p, int64_t stride) {
    return gather([&](int64_t j) { return p + j * stride; });
  }
  // 16 in each code whose bit is set in the low 16 bits of the words at p and each `stride` bytes on.
  static Words fifth_bits(const uint8_t* p, int64_t stride) {
    const uint64_t bits = words_of_blocks<n>(p, stride);
#if defined(__AVX512BW__) // a mask register is what the bits are
    if constexpr (n == 4) return (Words)_mm512_maskz_mov_epi8(bits, _mm512_set1_epi8(16));
#endif
#if defined(LLTOOL_NEON)
    const auto picked = vcombine_u8(vdup_n_u8(uint8_t(bits)), vdup_n_u8(uint8_t(bits >> 8)));
    return (Words)vtstq_u8(picked, (uint8x16_t)(0x8040201008040201 - Words{})) & 16 * every_byte;
#endif
#if defined(__AVX2__)
    if constexpr (n == 2) {
      const __m256i byte_of_code = _mm256_setr_epi64x(0, every_byte, 2 * every_byte, 3 * every_byte);
      const Words bit = 0x8040201008040201 - Words{};
      const Words picked = (Words)_mm256_shuffle_epi8(_mm256_set1_epi64x(int64_t(bits)), byte_of_code) & bit;
      return (Words)((Bytes)picked == (Bytes)bit) & 16 * every_byte;
    }
#endif
    Words v{};
    for (int i = 0; i < 2 * n; ++i) v[i] = spread_bits(uint8_t(bits >> 8 * i)) << 4;
    return v;
  }

  // table[v] for bytes below 16.
  static Words look_up(const uint8_t (&table)[16], Words v) {
#if defined(__AVX512BW__)
    if constexpr (n == 4) return (Words)_mm512_shuffle_epi8((__m512i)repeat<Words>(load_words<Words2>(table)), (__m512i)v);
#endif
#if defined(__AVX2__)
    if constexpr (n == 2) return (Words)_mm256_shuffle_epi8((__m256i)repeat<Words>(load_words<Words2>(table)), (__m256i)v);
    if constexpr (n == 1) return (Words)_mm_shuffle_epi8((__m128i)load_words<Words2>(table), (__m128i)v);
#elif defined(LLTOOL_NEON)
    return (Words)vqtbl1q_u8((uint8x16_t)load_words<Words2>(table), (uint8x16_t)v);
#endif
    Bytes bytes = (Bytes)v;
    for (int i = 0; i < 16 * n; ++i) bytes[i] = table[bytes[i]];
    return (Words)bytes;
  }

  // Writes the 32 n codes in the order of a row's weights.
  void store(uint8_t* codes) const {
#if defined(__AVX512F__)
    if constexpr (n == 4) { // by intrinsics: GCC 12 takes the parts of a shuffle through memory
      const __m512i a = (__m512i)low, b = (__m512i)high;
      _mm512_storeu_si512(codes, _mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), b));
      _mm512_storeu_si512(codes + 64, _mm512_permutex2var_epi64(a, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), b));
      return;
    }
#endif
    for (int j = 0; j < n; ++j) {
      std::memcpy(codes + 32 * j, reinterpret_cast<const uint8_t*>(&low) + 16 * j, 16);
      std::memcpy(codes + 32 * j + 16, reinterpret_cast<const uint8_t*>(&high) + 16 * j, 16);
    }
  }
};

// One group of each of n rows.
template <int n> struct Rows : Groups<n> {
  using typename Groups<n>::Words;
  using Groups<n>::gather;
  Rows(Words low, Words high) : Groups<n>{low, high} {}

  template <int> static Words gather(RowPlace p) { return Groups<n>::gather(p.p, p.stride); }
  // 16 bytes of each row: bit `first` of each comes to `to`, its neighbours likewise.
  static Words moved(RowPlace p, int first, int, int to) {
    return first < to ? gather<0>(p) << (to - first) : gather<0>(p) >> (first - to);
  }
  // Nibbles of 16 bytes: the low ones are codes 0-15.
  template <int> static Rows nibbles(RowPlace p) {
    const Words both = gather<0>(p);
    return {both & 0x0f * every_byte, both >> 4 & 0x0f * every_byte};
  }
  // Nibbles of blocks of 64 codes in 32 bytes: the low ones are a group, the high ones the next.
  static Rows nibbles_of_pairs(RowPlace p, int group) { return nibbles_of(p + group / 2 * 32, group % 2); }
  // Nibbles of 128 codes in 64 bytes: the low ones are two groups, the high ones the next two.
  static Rows nibbles_of_fours(RowPlace p, int group) { return nibbles_of(p + group % 2 * 32, group / 2); }
  // Adds 16 to each code whose bit is set in the 32 bits at p.
  template <int> Rows with_fifth_bits(RowPlace p) const {
#if defined(__AVX512BW__)
    if constexpr (n == 4) { // one vector load a row beats two scalar ones
      const __m512i bits = (__m512i)gather<0>(p), bit = _mm512_set1_epi64(int64_t(0x8040201008040201)), fifth = _mm512_set1_epi8(16);
      const auto add = [&](Words codes, int byte) {
        const __m512i place = _mm512_broadcast_i32x4(_mm_set_epi64x(int64_t((byte + 1) * every_byte), int64_t(byte * every_byte)));
        const __mmask64 set = _mm512_test_epi8_mask(_mm512_shuffle_epi8(bits, place), bit);
        return (Words)_mm512_mask_add_epi8((__m512i)codes, set, (__m512i)codes, fifth);
      };
      return {add(this->low, 0), add(this->high, 2)};
    }
#endif
    return {this->low | Groups<n>::fifth_bits(p.p, p.stride), this->high | Groups<n>::fifth_bits(p.p + 2, p.stride)};
  }

private:
  static Rows nibbles_of(RowPlace p, int which) {
    return {gather<0>(p) >> 4 * which & 0x0f * every_byte, gather<0>(p + 16) >> 4 * which & 0x0f * every_byte};
  }
};

// n groups of a row one after the other; more than one, as one is the same as of one row.
template <int n> struct Consecutive : Groups<n> {
  using typename Groups<n>::Words;
  using Groups<n>::gather;
  Consecutive(Words low, Words high) : Groups<n>{low, high} {}

  // 16 bytes of each of n blocks of `stride` bytes.
  template <int stride> static Words gather(const uint8_t* p) { return Groups<n>::gather(p, stride); }
  // The same 16 bytes in every lane: in lane j, bit `first` + `more` j of each comes to `to`, its neighbours likewise.
  static Words moved(const uint8_t* p, int first, int more, int to) {
    Words left{};
    for (int j = 0; j < n; ++j) left[2 * j] = left[2 * j + 1] = uint64_t(to - first - j * more) & 63;
    const Words v = repeat<Words>(load_words<Words2>(p));
#if defined(__AVX512F__)
    if constexpr (n == 4) return (Words)_mm512_rolv_epi64((__m512i)v, (__m512i)left);
#endif
    return v << left | v >> (-left & 63);
  }
  // As in Rows, of n blocks; or from `group` of the first on.
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
    return {this->low | Groups<n>::fifth_bits(p, stride), this->high | Groups<n>::fifth_bits(p + 2, stride)};
  }
};
template <int n> using Lanes = std::conditional_t<n == 1, Rows<1>, Consecutive<n>>;

// What such a format gives: `scales` of a block (and `scales_of_rows` of as many rows as V has lanes, where a block has more
// than one group), and `codes` of n groups. As Lanes: of the n blocks from b on where a block is
// one group (it then begins with its scale, and minimum, in half precision), else of one block from `group` on. As Rows, from
// a RowPlace: of `group` of a block of each row.
template <class F> struct InRegisters {
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float* __restrict min) {
    F::scales(b, scale, min);
    for (int group = 0; group < F::block / 32; ++group) F::template codes<Rows<1>>(RowPlace{b}, group).store(codes + 32 * group);
  }
};

// Codes of eight weights: zero + value, or zero - value where the weight's bit in `signs` is set. No value exceeds zero.
inline uint64_t signed_codes(uint64_t values, uint8_t signs, int zero) {
  const uint64_t negative = spread_bits(signs) * 0xff, center = uint64_t(zero) * every_byte;
  return ((center + values) & ~negative) | ((center - values) & negative);
}

} // namespace
