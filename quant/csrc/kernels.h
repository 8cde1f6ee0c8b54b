// The operations of this module, one table an instruction set.
#pragma once
#include <cstdint>

namespace lltool {

struct QuantKernels {
  // Decodes n weights (whole blocks). False when the type is not known.
  bool (*decode)(int type, const uint8_t* blocks, int64_t n, float* out);
};

extern const QuantKernels quant_scalar, quant_avx2, quant_avx512;

} // namespace lltool
