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

lltool::CodedForm coded_form(int type) {
  lltool::CodedForm found;
  QuantizedFormats::find(type, [&](auto format) {
    using F = decltype(format);
    found = {F::group, F::zero, F::max_code, F::has_min};
  });
  return found;
}

bool unpack(int type, const uint8_t* blocks, int64_t n, uint8_t* codes, float* scale, float* min) {
  return QuantizedFormats::find(type, [&](auto format) {
    using F = decltype(format);
    constexpr int groups = F::block / F::group;
    for (; n > 0; n -= F::block, blocks += F::bytes, codes += F::block, scale += groups, min += groups)
      F::unpack(blocks, codes, scale, min);
  });
}

Fault encode(int type, const float* x, int64_t rows, int64_t columns, const float* importance, uint8_t* out) {
  Fault fault{0, Fault::unknown_type};
  QuantizedFormats::find(type, [&](auto format) { fault = encode_blocks<decltype(format)>(x, rows, columns, importance, out); }) ||
      FloatFormats::find(type, [&](auto format) { fault = encode_floats<decltype(format)>(x, rows, columns, out); });
  return fault;
}

} // namespace

namespace lltool {
const QuantKernels LLTOOL_TABLE = {isa, layout, decode, coded_form, unpack, encode};
}
