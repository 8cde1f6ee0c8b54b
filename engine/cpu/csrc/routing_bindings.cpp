#include "routing_bindings.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

namespace lltool {

static void add_route(Session& s, Place logits, Place chosen, Place weights, const std::string& scoring, bool normalized, double factor, int groups,
                      int groups_used, int counted, std::optional<Floats> bias, std::optional<Floats> scales) {
  const auto lock = s.build();
  const int64_t experts = logits.second, used = chosen.second;
  require(weights.second == used && used >= 1 && used <= experts && experts <= max_experts && (!bias || int64_t(bias->size()) == experts) &&
              (!scales || int64_t(scales->size()) == experts),
          "route: shapes do not agree");
  require(groups >= 1 && experts % groups == 0 && groups_used >= 1 && groups_used <= groups && counted >= 1, "route: wanted whole groups of experts");
  require(scoring == "softmax" || scoring == "sigmoid" || (scoring == "sparsemixer" && groups == 1 && !bias && !scales), "route: no such scoring");
  require(chosen != weights && chosen != logits && weights != logits, "route: an output in the place of an input or of another output");
  require_finite({factor});
  s.require_body("route: the head has no experts");
  s.check({logits}, nullptr, -1), s.check({}, &chosen, -1), s.check({}, &weights, -1);
  auto op = std::make_unique<RouteOp>(s.assign(chosen, experts), s.executor);
  op->logits = buffer(logits), op->chosen = buffer(chosen), op->weights = buffer(weights);
  op->scoring = scoring == "softmax" ? Scoring::softmax : scoring == "sigmoid" ? Scoring::sigmoid : Scoring::sparsemixer;
  op->normalized = normalized, op->factor = float(factor);
  op->groups = groups, op->groups_used = groups_used, op->counted = counted, op->bias = floats_or_none(bias), op->scales = floats_or_none(scales);
  s.add_op(std::move(op));
  s.places.make(buffer(chosen)), s.places.make(buffer(weights));
}

// The rows of tokens times the weights of their experts, as rows of assignments.
static void add_weigh(Session& s, Place x, Place chosen, Place weights, Place out) {
  const auto lock = s.build();
  s.require_body("weigh: the head has no experts");
  const Assignments& a = s.assignments(chosen);
  require(weights.second == a.used && out.second == x.second * a.used, "weigh: shapes do not agree");
  require(out != weights && out != x, "weigh: the output in the place of an input");
  s.check({x, weights}, &out, -1);
  s.add_row(std::make_unique<WeighOp>(a, buffer(x), buffer(weights), Buffer{out.first, x.second}, s.executor.kernels.function("scale").run));
  s.places.make(buffer(out));
}

// Without weights, each expert counts as it is.
static void add_combine(Session& s, Place x, Place chosen, std::optional<Place> weights, Place out, std::optional<Place> residual) {
  const auto lock = s.build();
  s.require_body("combine: the head has no experts");
  const Assignments& a = s.assignments(chosen);
  require((!weights || weights->second == a.used) && x.second == out.second * a.used && (!residual || residual->second == out.second),
          "combine: shapes do not agree");
  require((!weights || out != *weights) && out != x, "combine: the output in the place of an input");
  s.check({x}, &out, -1);
  if (weights) s.check({*weights}, nullptr, -1);
  if (residual) s.check({*residual}, nullptr, -1);
  const auto rest = residual ? std::optional<Buffer>(buffer(*residual)) : std::nullopt;
  const auto factors = weights ? std::optional<Buffer>(buffer(*weights)) : std::nullopt;
  s.add_row(std::make_unique<CombineOp>(a, buffer(x), factors, buffer(out), rest, s.executor.kernels.function("add_scaled").run));
  s.places.make(buffer(out));
}

static void add_shared_gate(Session& s, Place x, Place h, Place out, Floats weight) {
  const auto lock = s.build();
  require(out.second == x.second && int64_t(weight.size()) == h.second, "shared_gate: shapes do not agree");
  require(out != h, "shared_gate: the output in the place of an input");
  s.check({x, h}, &out, -1);
  s.add_row(std::make_unique<SharedGateOp>(buffer(x), buffer(h), buffer(out), floats(weight), s.executor.kernels.function("scale").run));
  s.places.make(buffer(out));
}

void bind_routing(nb::class_<Session>& executor) {
  executor
      .def("route", &add_route, nb::kw_only(), nb::arg("logits"), nb::arg("chosen"), nb::arg("weights"), nb::arg("scoring"),
           nb::arg("normalized"), nb::arg("factor"), nb::arg("groups") = 1, nb::arg("groups_used") = 1, nb::arg("counted") = 2,
           nb::arg("bias").noconvert() = nb::none(), nb::arg("scales").noconvert() = nb::none())
      .def("weigh", &add_weigh, nb::kw_only(), nb::arg("x"), nb::arg("chosen"), nb::arg("weights"), nb::arg("out"))
      .def("combine", &add_combine, nb::kw_only(), nb::arg("x"), nb::arg("chosen"), nb::arg("weights").none(), nb::arg("out"),
           nb::arg("residual") = nb::none())
      .def("shared_gate", &add_shared_gate, nb::kw_only(), nb::arg("x"), nb::arg("h"), nb::arg("out"), nb::arg("weight").noconvert());
}

} // namespace lltool
