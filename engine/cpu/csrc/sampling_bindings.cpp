#include "sampling_bindings.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <limits>

#include "sample.h"
#include "session.h"

namespace lltool {

template <class T> using Each = nb::typed<nb::sequence, std::optional<T>>; // an item or None for each row

static std::vector<int64_t> sample_rows(const std::string& isa, Rows logits, Each<SampleChain> chains, const std::vector<double>& draws,
                                        Each<Array1<int32_t>> texts, Each<Array1<uint32_t>> masks, const std::optional<Team>& team, int poll) {
  SampleRows rows{logits.data(), int64_t(logits.shape(1)), std::vector<SampleRow>(logits.shape(0)), {}};
  require(rows.vocabulary > 0 && rows.vocabulary <= std::numeric_limits<int32_t>::max(), "sample: wanted rows of logits");
  const size_t count = logits.shape(0);
  const bool has_texts = nb::len(texts) > 0, has_masks = nb::len(masks) > 0;
  require(nb::len(chains) == count && draws.size() == 2 * count && (!has_texts || nb::len(texts) == count) &&
              (!has_masks || nb::len(masks) == count),
          "sample: shapes do not agree");
  require_aligned(logits);
  if (team) require_team(*team);
  require_poll(poll);
  std::vector<Array1<int32_t>> held_texts; // for as long as their data is used
  std::vector<Array1<uint32_t>> held_masks;
  for (size_t i = 0; i < count; ++i) {
    require(draws[2 * i] >= 0 && draws[2 * i] <= 1 && draws[2 * i + 1] >= 0 && draws[2 * i + 1] <= 1, "sample: draws are 0 to 1");
    const nb::object chain = chains[i];
    rows.rows[i] = {chain.is_none() ? nullptr : nb::cast<SampleChain*>(chain), {}, draws[2 * i], draws[2 * i + 1]};
    if (const nb::object text = has_texts ? nb::object(texts[i]) : nb::none(); !text.is_none()) {
      held_texts.push_back(nb::cast<Array1<int32_t>>(text, false));
      require_aligned(held_texts.back());
      rows.rows[i].text = {held_texts.back().data(), int64_t(held_texts.back().size())};
    }
    if (const nb::object mask = has_masks ? nb::object(masks[i]) : nb::none(); !mask.is_none()) {
      held_masks.push_back(nb::cast<Array1<uint32_t>>(mask, false));
      require_aligned(held_masks.back());
      require(int64_t(held_masks.back().size()) == (rows.vocabulary + 31) / 32, "sample: wanted a bit of a mask for each token");
      rows.masks.resize(count);
      rows.masks[i] = held_masks.back().data();
    }
  }
  nb::gil_scoped_release release;
  return sample(isa, rows, team.value_or(Team{{}}), poll);
}

void bind_sampling(nb::module_& m) {
  nb::class_<SampleChain>(m, "SampleChain")
      .def(
          "__init__",
          [](SampleChain* self, std::string order, double temperature, double dynatemp_range, double dynatemp_exponent, int64_t top_k,
             double top_p, double min_p, double typical_p, double top_n_sigma, double xtc_probability, double xtc_threshold,
             int64_t repeat_last_n, double repeat_penalty, double frequency_penalty, double presence_penalty, double dry_multiplier,
             double dry_base, int64_t dry_allowed_length, int64_t dry_penalty_last_n, int mirostat, double mirostat_tau,
             double mirostat_eta, double adaptive_target, double adaptive_decay, std::vector<std::pair<int32_t, float>> biases,
             std::vector<std::pair<int32_t, std::vector<int32_t>>> breakers) {
            new (self) SampleChain(ChainSettings{
                std::move(order), temperature, dynatemp_range, dynatemp_exponent, top_k, top_p, min_p, typical_p, top_n_sigma,
                xtc_probability, xtc_threshold, repeat_last_n, repeat_penalty, frequency_penalty, presence_penalty, dry_multiplier,
                dry_base, dry_allowed_length, dry_penalty_last_n, mirostat, mirostat_tau, mirostat_eta, adaptive_target,
                adaptive_decay, std::move(biases), std::move(breakers)});
          },
          nb::kw_only(), nb::arg("order"), nb::arg("temperature"), nb::arg("dynatemp_range"), nb::arg("dynatemp_exponent"),
          nb::arg("top_k"), nb::arg("top_p"), nb::arg("min_p"), nb::arg("typical_p"), nb::arg("top_n_sigma"),
          nb::arg("xtc_probability"), nb::arg("xtc_threshold"), nb::arg("repeat_last_n"), nb::arg("repeat_penalty"),
          nb::arg("frequency_penalty"), nb::arg("presence_penalty"), nb::arg("dry_multiplier"), nb::arg("dry_base"),
          nb::arg("dry_allowed_length"), nb::arg("dry_penalty_last_n"), nb::arg("mirostat"), nb::arg("mirostat_tau"),
          nb::arg("mirostat_eta"), nb::arg("adaptive_target"), nb::arg("adaptive_decay"), nb::arg("biases"), nb::arg("breakers"))
      .def("copy", [](const SampleChain& chain) { return SampleChain(chain); }, "A chain that remembers the same.")
      .def_prop_ro("draws", &SampleChain::draws, "The random numbers that a token takes: 0 to 2.")
      .def_prop_ro("wants_text", &SampleChain::wants_text, "Whether the choice depends on the text.");
  m.def("sample", &sample_rows, nb::kw_only(), nb::arg("isa"), nb::arg("logits").noconvert(), nb::arg("chains"), nb::arg("draws"),
        nb::arg("texts"), nb::arg("masks"), nb::arg("team").none(), nb::arg("poll"),
        "Chooses a token for each row (engine/sampling.py); ~id stands for a largest logit that is not finite.");
}

} // namespace lltool
