#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "formats/codebooks.h"
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
#elif defined(LLTOOL_ARM64)
  case Isa::neon_dot: // nothing here multiplies bytes
  case Isa::neon: kernels = &lltool::quant_neon; return;
#endif
  default: kernels = &lltool::quant_scalar;
  }
}

template <class T, int rank> using Array = nb::ndarray<T, nb::ndim<rank>, nb::c_contig, nb::device::cpu>;

// Calls work(first, last) for chunks of rows on `threads` threads, the caller's being one.
template <class Work> static void share_rows(int64_t rows, int64_t columns, int threads, Work work) {
  const int64_t chunk = std::max<int64_t>(1, (1 << 17) / std::max<int64_t>(1, columns));
  std::atomic<int64_t> next{0};
  const auto run = [&] {
    for (int64_t first; (first = next.fetch_add(chunk)) < rows;) work(first, std::min(first + chunk, rows));
  };
  std::vector<std::thread> others;
  try {
    for (int64_t t = 1; t < std::min<int64_t>(threads, (rows + chunk - 1) / chunk); ++t) others.emplace_back(run);
  } catch (const std::system_error&) { // no more threads to be had: those there are do it all
  }
  run();
  for (auto& other : others) other.join();
}

static void decode(int type, Array<const uint8_t, 2> blocks, Array<float, 2> out, int64_t block, int64_t block_bytes,
                   int threads) {
  const int64_t rows = int64_t(out.shape(0)), columns = int64_t(out.shape(1)), width = int64_t(blocks.shape(1));
  if (int64_t(blocks.shape(0)) != rows || columns % block || width != columns / block * block_bytes)
    throw std::invalid_argument("decode: shapes do not agree");
  if (!kernels->decode(type, blocks.data(), 0, out.data()))
    throw std::invalid_argument("decode: no native format of type " + std::to_string(type));
  nb::gil_scoped_release release;
  share_rows(rows, columns, threads, [&](int64_t first, int64_t last) {
    kernels->decode(type, blocks.data() + first * width, (last - first) * columns, out.data() + first * columns);
  });
}

static auto fault_of_no_rows(int type) { return kernels->encode(type, nullptr, 0, 0, nullptr, nullptr).reason; }
static bool can_encode(int type) { return fault_of_no_rows(type) != lltool::Fault::unknown_type; }
static bool needs_importance(int type) { return fault_of_no_rows(type) == lltool::Fault::needs_importance; }

// None, or the first row that cannot be encoded and why.
static std::optional<std::pair<int64_t, std::string>> encode(int type, Array<const float, 2> values,
                                                             std::optional<Array<const float, 1>> importance,
                                                             Array<uint8_t, 2> out, int64_t block, int64_t block_bytes,
                                                             int threads) {
  const int64_t rows = int64_t(values.shape(0)), columns = int64_t(values.shape(1)), width = int64_t(out.shape(1));
  if (int64_t(out.shape(0)) != rows || columns % block || width != columns / block * block_bytes ||
      (importance && int64_t(importance->size()) != columns))
    throw std::invalid_argument("encode: shapes do not agree");
  if (!can_encode(type) || (!importance && needs_importance(type)))
    throw std::invalid_argument("encode: no native encoder of type " + std::to_string(type) + ", or none without importance");
  lltool::Fault worst;
  std::mutex mutex;
  {
    nb::gil_scoped_release release;
    const float* important = importance ? importance->data() : nullptr;
    share_rows(rows, columns, threads, [&](int64_t first, int64_t last) {
      const auto fault = kernels->encode(type, values.data() + first * columns, last - first, columns, important,
                                         out.data() + first * width);
      if (fault.reason == lltool::Fault::none) return;
      const std::lock_guard lock(mutex);
      if (worst.reason == lltool::Fault::none || first + fault.row < worst.row)
        worst = {first + fault.row, fault.reason};
    });
  }
  if (worst.reason == lltool::Fault::none) return {};
  return std::pair{worst.row, worst.reason == lltool::Fault::not_finite ? "not finite" : "too large"};
}

template <class Word, int N> static nb::object codebook_of(const Book<Word, N>& book) {
  const auto* values = reinterpret_cast<const uint8_t*>(book.entry);
  return nb::cast(nb::ndarray<nb::numpy, const uint8_t, nb::ndim<2>>(values, {size_t(N), sizeof(Word)}, nb::handle()));
}

static nb::object codebook(const std::string& name) {
  if (name == "iq1") return codebook_of(book_iq1);
  if (name == "iq2_xxs") return codebook_of(book_iq2_xxs);
  if (name == "iq2_xs") return codebook_of(book_iq2_xs);
  if (name == "iq2_s") return codebook_of(book_iq2_s);
  if (name == "iq3_xxs") return codebook_of(book_iq3_xxs);
  if (name == "iq3_s") return codebook_of(book_iq3_s);
  throw std::invalid_argument("no codebook is named " + name);
}

NB_MODULE(_native, m) {
  m.def("available_isas", &lltool::available_isas, "Instruction sets this processor can run, best first.");
  m.def("select_isa", &select_isa, nb::arg("name"));
  m.def("codebook", &codebook, nb::arg("name"), "The entries of an IQ codebook, uint8 (entries, weights); IQ1 as eighths above -1.",
        nb::sig("def codebook(name: str) -> NDArray[numpy.uint8]"));
  m.def("decode", &decode, nb::arg("type"), nb::arg("blocks"), nb::arg("out"), nb::arg("block"), nb::arg("block_bytes"),
        nb::arg("threads"));
  m.def("can_encode", &can_encode, nb::arg("type"));
  m.def("needs_importance", &needs_importance, nb::arg("type"), "Whether `encode` has no way without importance.");
  m.def("encode", &encode, nb::arg("type"), nb::arg("values"), nb::arg("importance").none(), nb::arg("out"),
        nb::arg("block"), nb::arg("block_bytes"), nb::arg("threads"),
        "None, or the first row that cannot be encoded and why: 'not finite' or 'too large'.");
}
