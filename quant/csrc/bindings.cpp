#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "isa.h"
#include "kernels.h"

namespace nb = nanobind;
using lltool::Isa;

static const lltool::QuantKernels* kernels = &lltool::quant_scalar;

static void select_isa(const std::string& name) {
  switch (lltool::find_isa(name)) {
#if defined(LLTOOL_X86)
  case Isa::avx512: kernels = &lltool::quant_avx512; return;
  case Isa::avx2: kernels = &lltool::quant_avx2; return;
#endif
  default: kernels = &lltool::quant_scalar;
  }
}

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

static void decode(int type, Bytes blocks, Floats out, int64_t block_bytes, int64_t block) {
  if (int64_t(blocks.size()) % block_bytes || int64_t(out.size()) != int64_t(blocks.size()) / block_bytes * block)
    throw std::invalid_argument("decode: sizes do not agree");
  nb::gil_scoped_release release;
  if (!kernels->decode(type, blocks.data(), int64_t(out.size()), out.data()))
    throw std::invalid_argument("decode: no native format of type " + std::to_string(type));
}

NB_MODULE(_native, m) {
  m.def("available_isas", &lltool::available_isas, "Instruction sets this processor can run, best first.");
  m.def("select_isa", &select_isa, nb::arg("name"));
  m.def("decode", &decode, nb::arg("type"), nb::arg("blocks"), nb::arg("out"), nb::arg("block_bytes"), nb::arg("block"));
}
