// A chain of sampling steps with its settings, and what it remembers of one text; engine/sampling.py describes them.
#pragma once
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "candidates.h"

namespace lltool {

struct ChainSettings {
  std::string order; // a letter for each step, see sample_chain.cpp
  double temperature, dynatemp_range, dynatemp_exponent;
  int64_t top_k; // 0: off
  double top_p, min_p, typical_p, top_n_sigma, xtc_probability, xtc_threshold;
  int64_t repeat_last_n; // tokens; below 0: the whole text
  double repeat_penalty, frequency_penalty, presence_penalty;
  double dry_multiplier, dry_base;
  int64_t dry_allowed_length, dry_penalty_last_n;
  int mirostat;
  double mirostat_tau, mirostat_eta, adaptive_target, adaptive_decay;
  std::vector<std::pair<int32_t, float>> biases; // added to the logits of these tokens, before all steps
  // A text that ends with a first token and the rest, or with a first token alone, ends no repetition for DRY.
  std::vector<std::pair<int32_t, std::vector<int32_t>>> breakers;
};

// The tokens of a text so far.
struct History {
  const int32_t* ids = nullptr;
  int64_t size = 0;
  History last(int64_t count) const { return count < 0 || count >= size ? *this : History{ids + size - count, count}; }
};

// A change of a token's logit: positive ones are divided by `repeat` and others multiplied by it; `minus` is subtracted.
struct Change {
  int32_t id;
  float repeat, minus;
  float of(float logit) const {
    const float changed = (logit <= 0 ? logit * repeat : logit / repeat) - minus;
    return changed != changed && logit == logit ? -std::numeric_limits<float>::infinity() : changed; // infinity - infinity
  }
};

std::vector<Change> repetition_changes(const ChainSettings& settings, History text, int64_t vocabulary);

class DryBreakers {
public:
  explicit DryBreakers(const ChainSettings& settings);
  std::vector<Change> changes(const ChainSettings& settings, History text) const;

private:
  int64_t longest_repeat(const std::vector<int32_t>& backwards) const;
  bool is_alone(int32_t id) const;
  std::unordered_multimap<int32_t, std::vector<int32_t>> tails_; // by the first token
};

class SampleChain {
public:
  // Throws std::invalid_argument for an unknown step, and for a number that is not finite.
  explicit SampleChain(ChainSettings settings);

  // The random numbers that a token takes: none for the most probable token, and a second one for XTC.
  int draws() const { return is_greedy_ ? 0 : has_xtc_ ? 2 : 1; }
  bool wants_text() const { return has_penalties_ || has_dry_; }

  // Changes the logits x (n,) by the biases, and by the penalties that come before all other steps.
  void adjust(float* x, int64_t n, History text) const;
  bool adjusts() const { return !settings_.biases.empty() || has_penalties_ || has_dry_; }

  // A token for logits (n,) after `adjust`, or ~id if the largest logit, that of `id`, is not finite. The draws are
  // from 0 to 1.
  int64_t choose(const EngineKernels& kernels, const float* x, int64_t n, History text, double draw, double chance);

private:
  std::vector<Change> changes(char step, History text, int64_t vocabulary) const;
  void apply(char step, Candidates& candidates, double chance) const;
  void apply_typical(Candidates& candidates) const;
  void apply_xtc(Candidates& candidates, double chance) const;
  void apply_temperature(Candidates& candidates) const;
  int64_t take_mirostat(Candidates& candidates, double draw);
  int64_t take_adaptive(Candidates& candidates, double draw);
  bool has(char step) const { return settings_.order.find(step) != std::string::npos; }

  ChainSettings settings_;
  std::shared_ptr<const DryBreakers> breakers_; // null without DRY
  bool has_penalties_, has_dry_, has_xtc_, is_greedy_, changes_later_;
  size_t leading_; // steps at the beginning that are penalties
  // Mirostat remembers the largest surprise that it allows, in bits. Adaptive-p remembers the sum of the probabilities
  // of earlier tokens, each multiplied by its share, and the sum of the shares, which decay from token to token.
  double surprise_, sum_, shares_;
};

} // namespace lltool
