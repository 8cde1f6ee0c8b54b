#include "streams_bindings.h"

#include <nanobind/stl/pair.h>

#include "streams_op.h"

namespace lltool {

static void add_mix_streams(Session& s, Place y, Place z, Place coefficients, Place out, int outer, int inner, double shift) {
  const auto lock = s.build();
  require(outer > 0 && inner > 0 && y.second % outer == 0 && out.second == y.second && z.second == y.second / outer * inner &&
              coefficients.second == int64_t(outer) * inner,
          "mix_streams: shapes do not agree");
  require(out != z && out != coefficients && out != y, "mix_streams: the output in the place of an input");
  require_finite({shift});
  s.check({y, z, coefficients}, &out, -1);
  s.add_row(std::make_unique<MixStreamsOp>(buffer(y), buffer(z), buffer(coefficients), buffer(out), outer, inner, float(shift),
                                           s.executor.kernels.function("add_scaled").run));
  s.places.make(buffer(out));
}

static void add_match_magnitude(Session& s, Place x, Place y, Place out, int streams, double least) {
  const auto lock = s.build();
  require(streams > 0 && x.second == y.second * streams && out.second == x.second && least > 0, "match_magnitude: shapes do not agree");
  require(out != y && out != x, "match_magnitude: the output in the place of an input");
  require_finite({least});
  s.check({x, y}, &out, -1);
  s.add_row(std::make_unique<MatchMagnitudeOp>(buffer(x), buffer(y), buffer(out), streams, float(least),
                                               s.executor.kernels.function("scale").run));
  s.places.make(buffer(out));
}

void bind_streams(nb::class_<Session>& executor) {
  executor
      .def("mix_streams", &add_mix_streams, nb::kw_only(), nb::arg("y"), nb::arg("z"), nb::arg("coefficients"), nb::arg("out"),
           nb::arg("outer"), nb::arg("inner"), nb::arg("shift") = 0.0)
      .def("match_magnitude", &add_match_magnitude, nb::kw_only(), nb::arg("x"), nb::arg("y"), nb::arg("out"), nb::arg("streams"),
           nb::arg("least"));
}

} // namespace lltool
