#include "recurrent_bindings.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "convolution_op.h"
#include "rwkv_op.h"
#include "scan_op.h"
#include "delta_op.h"

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

static void add_selective_scan(Session& s, Place x, Place dt, Place b, Place c, Place out, Rows a, Floats d) {
  const auto lock = s.build();
  const int64_t width = x.second, states = b.second;
  require(dt.second == width && out.second == width && int64_t(d.size()) == width && c.second == states &&
              int64_t(a.shape(0)) == states && int64_t(a.shape(1)) == width,
          "selective_scan: shapes do not agree");
  require(out != b && out != c && out != x && out != dt, "selective_scan: the output in the place of an input");
  s.require_body("selective_scan: the head has no sequences");
  s.check({x, dt, b, c}, &out, -1);
  require_aligned(a);
  const std::vector<float> values(a.data(), a.data() + a.size());
  s.add_op(std::make_unique<SelectiveScanOp>(buffer(x), buffer(dt), buffer(b), buffer(c), buffer(out), values, floats(d), s.executor));
  s.places.make(buffer(out));
}

static void add_scan(Session& s, Place xbc, Place dt, Place out, int64_t groups, Floats a, Floats d, Floats dt_bias) {
  const auto lock = s.build();
  const int64_t heads = dt.second, shared = xbc.second - out.second;
  require(groups >= 1 && heads >= 1 && heads % groups == 0 && out.second % heads == 0, "scan: wanted whole groups of heads");
  require(shared > 0 && shared % 2 == 0 && shared / 2 % groups == 0 && int64_t(a.size()) == heads && int64_t(d.size()) == heads &&
              int64_t(dt_bias.size()) == heads,
          "scan: shapes do not agree");
  require(out != xbc && out != dt, "scan: the output in the place of an input");
  s.require_body("scan: the head has no sequences");
  s.check({xbc, dt}, &out, -1);
  s.add_op(std::make_unique<ScanOp>(buffer(xbc), buffer(dt), buffer(out), groups, floats(a), floats(d), floats(dt_bias), s.executor));
  s.places.make(buffer(out));
}

static void add_gated_delta(Session& s, Place qkv, Place beta, Place alpha, Place out, int key_heads, int key_dim, bool tiled,
                            Floats rate, Floats bias) {
  const auto lock = s.build();
  require(key_heads >= 1 && key_dim >= 1 && key_dim <= max_delta_dim, "gated_delta: no such heads");
  const int64_t keys = checked_mul(key_heads, key_dim), heads = beta.second;
  require(heads >= 1 && heads % key_heads == 0 && out.second >= heads && out.second % heads == 0 &&
              qkv.second == checked_mul(2, keys) + out.second && (alpha.second == heads || alpha.second == checked_mul(heads, key_dim)) &&
              int64_t(rate.size()) == heads && int64_t(bias.size()) == alpha.second,
          "gated_delta: shapes do not agree");
  for (Place read : {qkv, beta, alpha}) require(out != read, "gated_delta: the output in the place of an input");
  s.require_body("gated_delta: the head has no sequences");
  s.check({qkv, beta, alpha}, &out, -1);
  s.add_op(std::make_unique<GatedDeltaOp>(buffer(qkv), buffer(beta), buffer(alpha), buffer(out), key_heads, key_dim, tiled,
                                          floats(rate), floats(bias), s.executor));
  s.places.make(buffer(out));
}

static void add_token_shift(Session& s, Place x, const std::vector<Place>& outs, Rows weight) {
  const auto lock = s.build();
  require(!outs.empty() && outs.size() <= size_t(max_shifts) && weight.shape(0) == outs.size() && int64_t(weight.shape(1)) == x.second,
          "token_shift: shapes do not agree");
  s.require_body("token_shift: the head has no sequences");
  std::vector<Buffer> to;
  for (Place out : outs) {
    require(out.second == x.second && out != x, "token_shift: shapes do not agree, or an output in the place of the input");
    require(std::count(outs.begin(), outs.end(), out) == 1, "token_shift: two outputs in one place");
    s.check({x}, &out, -1);
    to.push_back(buffer(out));
  }
  require_aligned(weight);
  std::vector<float> values(weight.data(), weight.data() + weight.size());
  s.add_op(std::make_unique<TokenShiftOp>(buffer(x), std::move(to), std::move(values), s.executor));
  for (Place out : outs) s.places.make(buffer(out));
}

static void add_time_mix(Session& s, Place r, Place w, Place k, Place v, Place a, std::optional<Place> first, std::optional<Place> mix,
                         Place out, Place bonus, Floats k_k, Floats k_a, Floats r_k, int64_t heads) {
  const auto lock = s.build();
  require(heads >= 1 && out.second >= heads && out.second % heads == 0 && out.second / heads <= max_delta_dim, "time_mix: no such heads");
  require(first.has_value() == mix.has_value(), "time_mix: wanted the first layer's values with what mixes them");
  std::vector<Place> read{r, w, k, v, a};
  if (first) read.insert(read.end(), {*first, *mix});
  require(out != bonus && bonus.second == out.second, "time_mix: shapes do not agree, or two outputs in one place");
  for (Place in : read) {
    require(in.second == out.second, "time_mix: shapes do not agree");
    require(in != out && in != bonus, "time_mix: an output in the place of an input");
    s.check({in}, nullptr, -1);
  }
  for (const Floats* weight : {&k_k, &k_a, &r_k}) require(int64_t(weight->size()) == out.second, "time_mix: shapes do not agree");
  s.require_body("time_mix: the head has no sequences");
  s.check({}, &out, -1);
  s.check({}, &bonus, -1);
  TimeMixOp::Inputs in{buffer(r), buffer(w), buffer(k), buffer(v), buffer(a), {}, {}};
  if (first) in.first = buffer(*first), in.mix = buffer(*mix);
  s.add_op(std::make_unique<TimeMixOp>(in, buffer(out), buffer(bonus), TimeMixOp::Weights{floats(k_k), floats(k_a), floats(r_k)}, heads,
                                       s.executor));
  s.places.make(buffer(out));
  s.places.make(buffer(bonus));
}

void bind_recurrent(nb::class_<Session>& executor) {
  executor.def("convolution", &add_convolution, nb::kw_only(), nb::arg("x"), nb::arg("out"), nb::arg("weight").noconvert(),
               nb::arg("bias").noconvert() = nb::none(), nb::arg("silu") = false);
  executor.def("selective_scan", &add_selective_scan, nb::kw_only(), nb::arg("x"), nb::arg("dt"), nb::arg("b"), nb::arg("c"),
               nb::arg("out"), nb::arg("a").noconvert(), nb::arg("d").noconvert());
  executor.def("scan", &add_scan, nb::kw_only(), nb::arg("xbc"), nb::arg("dt"), nb::arg("out"), nb::arg("groups"),
               nb::arg("a").noconvert(), nb::arg("d").noconvert(), nb::arg("dt_bias").noconvert());
  executor.def("gated_delta", &add_gated_delta, nb::kw_only(), nb::arg("qkv"), nb::arg("beta"), nb::arg("alpha"), nb::arg("out"),
               nb::arg("key_heads"), nb::arg("key_dim"), nb::arg("tiled"), nb::arg("rate").noconvert(), nb::arg("bias").noconvert());
  executor.def("token_shift", &add_token_shift, nb::kw_only(), nb::arg("x"), nb::arg("outs"), nb::arg("weight").noconvert());
  executor.def("time_mix", &add_time_mix, nb::kw_only(), nb::arg("r"), nb::arg("w"), nb::arg("k"), nb::arg("v"), nb::arg("a"),
               nb::arg("first"), nb::arg("mix"), nb::arg("out"), nb::arg("bonus"), nb::arg("k_k").noconvert(), nb::arg("k_a").noconvert(),
               nb::arg("r_k").noconvert(), nb::arg("heads"));
}

} // namespace lltool
