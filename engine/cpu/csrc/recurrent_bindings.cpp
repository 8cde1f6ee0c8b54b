#include "recurrent_bindings.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include "convolution_op.h"

namespace lltool {

static void add_convolution(Session& s, Place x, Place out, Rows weight, std::optional<Floats> bias, bool silu) {
  const auto lock = s.build();
  const int64_t taps = int64_t(weight.shape(0));
  require(taps >= 2 && taps <= max_taps && out.second == x.second && int64_t(weight.shape(1)) == x.second &&
              (!bias || int64_t(bias->size()) == x.second),
          "convolution: shapes do not agree");
  require(out != x, "convolution: the output in the place of the input");
  s.require_body("convolution: the head has no sequences");
  s.check({x}, &out, -1);
  require_aligned(weight);
  std::vector<float> values(weight.data(), weight.data() + weight.size());
  s.add_op(std::make_unique<ConvolutionOp>(buffer(x), buffer(out), int(taps), std::move(values), floats_or_none(bias), silu, s.executor));
  s.places.make(buffer(out));
}

void bind_recurrent(nb::class_<Session>& executor) {
  executor.def("convolution", &add_convolution, nb::kw_only(), nb::arg("x"), nb::arg("out"), nb::arg("weight").noconvert(),
               nb::arg("bias").noconvert() = nb::none(), nb::arg("silu") = false);
}

} // namespace lltool
