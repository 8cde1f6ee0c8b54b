// Compiled once per instruction set: LLTOOL_TABLE is the name of the table that the including file defines.
#include "encoders.h"
#include "formats.h"
#include "kernels.h"

namespace {

bool decode(int type, const uint8_t* blocks, int64_t n, float* out) {
  const auto quantized = [&](auto format) { decode_blocks<decltype(format)>(blocks, n, out); };
  return QuantizedFormats::find(type, quantized) || ActivationFormats::find(type, quantized) ||
         FloatFormats::find(type, [&](auto format) { format.decode(blocks, n, out); });
}

Fault encode(int type, const float* x, int64_t rows, int64_t columns, const float* importance, uint8_t* out) {
  Fault fault{0, Fault::unknown_type};
  QuantizedFormats::find(type, [&](auto format) { fault = encode_blocks<decltype(format)>(x, rows, columns, importance, out); }) ||
      FloatFormats::find(type, [&](auto format) { fault = encode_floats<decltype(format)>(x, rows, columns, out); });
  return fault;
}

} // namespace

namespace lltool {
const QuantKernels LLTOOL_TABLE = {isa, layout, decode, encode};
}
