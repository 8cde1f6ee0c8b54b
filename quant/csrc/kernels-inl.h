// Compiled once an instruction set: LLTOOL_TABLE names the table that the including file defines.
#include "encoders.h"
#include "formats.h"
#include "kernels.h"

namespace {

bool decode(int type, const uint8_t* blocks, int64_t n, float* out) {
  switch (type) {
#define CASE(F) case F::type: decode_blocks<F>(blocks, n, out); return true;
    LLTOOL_QUANTIZED_FORMATS(CASE)
    LLTOOL_ACTIVATION_FORMATS(CASE)
#undef CASE
#define CASE(F) case F::type: F::decode(blocks, n, out); return true;
    LLTOOL_FLOAT_FORMATS(CASE)
#undef CASE
  }
  return false;
}

Fault encode(int type, const float* x, int64_t rows, int64_t columns, const float* importance, uint8_t* out) {
  switch (type) {
#define CASE(F) case F::type: return encode_blocks<F>(x, rows, columns, importance, out);
    LLTOOL_ENCODED_FORMATS(CASE)
#undef CASE
#define CASE(F) case F::type: return encode_floats<F>(x, rows, columns, out);
    LLTOOL_FLOAT_FORMATS(CASE)
#undef CASE
  }
  return {0, Fault::unknown_type};
}

} // namespace

namespace lltool {
const QuantKernels LLTOOL_TABLE = {decode, encode};
}
