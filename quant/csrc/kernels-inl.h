// Compiled once an instruction set: LLTOOL_TABLE names the table that the including file defines.
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

} // namespace

namespace lltool {
const QuantKernels LLTOOL_TABLE = {decode};
}
