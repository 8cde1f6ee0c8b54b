// How kernels read a matrix in the form that engine/gpu/planes.py gave it. The form's macros are defined before.
//
// WEIGHTS are the parameters of a kernel that reads a matrix, WEIGHTS_GIVEN the same as arguments.

#ifdef FLOAT_BYTES // float weights, as the file has them

#define WEIGHTS GLOBAL const uchar *values
#define WEIGHTS_GIVEN values
FUNCTION float weight_at(WEIGHTS, long i) {
#if FLOAT_BYTES == 4
  return ((GLOBAL const float*)values)[i];
#elif defined IS_BF16
  return bf16_to_float(((GLOBAL const ushort*)values)[i]);
#else
  return HALF_AT(values, i);
#endif
}
// Four weights of a row, of which those beyond its end are 0.
FUNCTION void four_weights(WEIGHTS, int row, int column, int columns, float* out) {
  for (int i = 0; i < 4; ++i) out[i] = column + i < columns ? weight_at(WEIGHTS_GIVEN, (long)row * columns + column + i) : 0;
}

#else

#ifdef SCALES_FLOAT
#define SCALE_TYPE float
#elif defined SCALES_HALF
#define SCALE_TYPE ushort
#else
#define SCALE_TYPE uchar
#endif

// The macros are empty for what the form does not have.
#ifdef PLANE4
#define FOURS GLOBAL const uint *fours,
#define FOURS_GIVEN fours,
#else
#define FOURS
#define FOURS_GIVEN
#endif
#ifdef PLANE2
#define TWOS GLOBAL const uint *twos,
#define TWOS_GIVEN twos,
#else
#define TWOS
#define TWOS_GIVEN
#endif
#ifdef PLANE1
#define ONES GLOBAL const uint *ones,
#define ONES_GIVEN ones,
#else
#define ONES
#define ONES_GIVEN
#endif
#ifdef PLANE8
#define EIGHTS GLOBAL const uint *eights,
#define EIGHTS_GIVEN eights,
#else
#define EIGHTS
#define EIGHTS_GIVEN
#endif
#ifdef SCALES_INTEGER
#define FACTOR , GLOBAL const ushort *scale_factor
#define FACTOR_GIVEN , scale_factor
#else
#define FACTOR
#define FACTOR_GIVEN
#endif
#ifdef HAS_MIN
#ifdef SCALES_INTEGER
#define MIN , GLOBAL const SCALE_TYPE *min_, GLOBAL const ushort *min_factor
#define MIN_GIVEN , min_, min_factor
#else
#define MIN , GLOBAL const SCALE_TYPE *min_
#define MIN_GIVEN , min_
#endif
#else
#define MIN
#define MIN_GIVEN
#endif
#define WEIGHTS FOURS TWOS ONES EIGHTS GLOBAL const SCALE_TYPE *scale FACTOR MIN
#define WEIGHTS_GIVEN FOURS_GIVEN TWOS_GIVEN ONES_GIVEN EIGHTS_GIVEN scale FACTOR_GIVEN MIN_GIVEN

#ifdef TABLE
CONSTANT signed char code_values[16] = {TABLE};
#endif

// The codes of columns 4 word to 4 word + 3 of a chunk of 32, as four signed bytes.
FUNCTION uint code_word(WEIGHTS, long chunk, int word) {
#ifdef PLANE8
  return eights[chunk * 8 + word];
#else
  uint codes = 0;
  int bits = 0;
#ifdef PLANE4
  codes = fours[chunk * 4 + word % 4] >> 4 * (word / 4) & 0x0f0f0f0fu;
  bits = 4;
#endif
#ifdef PLANE2
  codes |= (twos[chunk * 2 + word % 2] >> 2 * (word / 2) & 0x03030303u) << bits;
  bits += 2;
#endif
#ifdef PLANE1
  codes |= (ones[chunk] >> word & 0x01010101u) << bits;
#endif
#ifdef TABLE
  codes = (uint)(uchar)code_values[codes & 15] | (uint)(uchar)code_values[codes >> 8 & 15] << 8 |
          (uint)(uchar)code_values[codes >> 16 & 15] << 16 | (uint)(uchar)code_values[codes >> 24] << 24;
#endif
  return codes;
#endif
}

FUNCTION float scale_of(WEIGHTS, long group) {
#ifdef SCALES_FLOAT
  return scale[group];
#elif defined SCALES_HALF
  return HALF_AT(scale, group);
#else
  return HALF_AT(scale_factor, group * GROUP_COLUMNS / BLOCK) * (float)(signed char)scale[group];
#endif
}
FUNCTION float min_of(WEIGHTS, long group) {
#ifndef HAS_MIN
  return 0;
#elif defined SCALES_FLOAT
  return min_[group];
#elif defined SCALES_HALF
  return HALF_AT(min_, group);
#else
  return HALF_AT(min_factor, group * GROUP_COLUMNS / BLOCK) * (float)(signed char)min_[group];
#endif
}

FUNCTION void four_weights(WEIGHTS, int row, int column, int columns, float* out) {
  const long at = (long)row * columns + column, group = at / GROUP_COLUMNS;
  const uint codes = code_word(WEIGHTS_GIVEN, at / 32, column % 32 / 4);
  const float factor = scale_of(WEIGHTS_GIVEN, group), least = min_of(WEIGHTS_GIVEN, group);
  for (int i = 0; i < 4; ++i) out[i] = factor * (float)((int)(signed char)(codes >> 8 * i) - ZERO) + least;
}

#endif
