#include "sample_chain.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace lltool {

namespace {

constexpr const char* known_steps = "edskypmxta"; // llama.cpp's letters

// The candidate at `target` of the running sum of weights; rounding can leave the whole sum below the target.
const Candidate* take(Candidates& candidates, double target) {
  double sum = 0;
  const Candidate* last = candidates.at(0);
  for (size_t i = 0; const Candidate* c = candidates.at(i); ++i) {
    const double weight = candidates.weight(*c);
    if (!(weight > 0)) break;
    last = c;
    sum += weight;
    if (sum > target) break;
  }
  return last;
}

} // namespace

SampleChain::SampleChain(ChainSettings settings) : settings_(std::move(settings)) {
  ChainSettings& s = settings_;
  for (double x : {s.temperature, s.dynatemp_range, s.dynatemp_exponent, s.top_p, s.min_p, s.typical_p, s.top_n_sigma, s.xtc_probability,
                   s.xtc_threshold, s.repeat_penalty, s.frequency_penalty, s.presence_penalty, s.dry_multiplier, s.dry_base,
                   s.mirostat_tau, s.mirostat_eta, s.adaptive_target, s.adaptive_decay})
    if (!std::isfinite(float(x))) throw std::invalid_argument("sample: a setting that is infinite, NaN or no float32");
  if (s.mirostat) { // it replaces all other steps but the temperature
    s.order = "t";
    s.dynatemp_range = 0;
  }
  if (s.order.find_first_not_of(known_steps) != std::string::npos) throw std::invalid_argument("sample: an unknown step");
  has_penalties_ = has('e') && s.repeat_last_n != 0 &&
                   (s.repeat_penalty != 1 || s.frequency_penalty != 0 || s.presence_penalty != 0);
  has_dry_ = has('d') && s.dry_multiplier != 0 && s.dry_base >= 1 && s.dry_penalty_last_n != 0;
  has_xtc_ = has('x') && s.xtc_probability > 0 && s.xtc_threshold <= 0.5;
  is_greedy_ = has('t') && !(s.temperature >= 1e-6) && !(s.dynatemp_range > 0) && !has_xtc_ && !(has('y') && s.typical_p < 1);
  leading_ = std::min(s.order.find_first_not_of("ed"), s.order.size());
  const auto comes_later = [&](char step) { return s.order.find(step, leading_) != std::string::npos; };
  changes_later_ = (has_penalties_ && comes_later('e')) || (has_dry_ && comes_later('d'));
  if (has_dry_) breakers_ = std::make_shared<DryBreakers>(s);
  surprise_ = 2 * s.mirostat_tau;
  shares_ = 1 / (1 - s.adaptive_decay);
  sum_ = s.adaptive_target * shares_;
}

std::vector<Change> SampleChain::changes(char step, History text, int64_t vocabulary) const {
  if (step == 'e' && has_penalties_) return repetition_changes(settings_, text, vocabulary);
  if (step == 'd' && has_dry_) return breakers_->changes(settings_, text);
  return {};
}

void SampleChain::adjust(float* x, int64_t n, History text) const {
  for (const auto& [id, bias] : settings_.biases)
    if (id >= 0 && id < n) x[id] += bias;
  for (size_t i = 0; i < leading_; ++i)
    for (const Change& change : changes(settings_.order[i], text, n))
      if (change.id >= 0 && change.id < n) x[change.id] = change.of(x[change.id]);
}

int64_t SampleChain::choose(const EngineKernels& kernels, const float* x, int64_t n, History text, double draw, double chance) {
  const std::string& order = settings_.order;
  Candidates candidates(kernels, x, n);
  if (!candidates.is_valid()) return ~candidates.best();
  if (is_greedy_ && !changes_later_) return candidates.best();
  for (size_t next = leading_; next < order.size(); ++next) {
    const std::vector<Change> found = changes(order[next], text, n);
    if (found.empty()) {
      apply(order[next], candidates, chance);
      continue;
    }
    std::unordered_map<int32_t, Change> by_id;
    for (const Change& change : found) by_id.emplace(change.id, change);
    std::vector<Candidate>& left = candidates.settle();
    candidates.apply_temperature();
    for (Candidate& c : left)
      if (const auto it = by_id.find(c.id); it != by_id.end()) c.logit = it->second.of(c.logit);
    candidates.resort();
  }
  if (settings_.mirostat) return take_mirostat(candidates, draw);
  if (has('a') && settings_.adaptive_target >= 0) return take_adaptive(candidates, draw);
  return take(candidates, draw * candidates.total())->id;
}

void SampleChain::apply(char step, Candidates& candidates, double chance) const {
  const ChainSettings& s = settings_;
  switch (step) {
  case 's':
    if (s.top_n_sigma > 0) candidates.keep_from(float(candidates.top() - s.top_n_sigma * candidates.deviation()));
    break;
  case 'k':
    if (s.top_k > 0) candidates.keep(size_t(s.top_k));
    break;
  case 'y':
    if (s.typical_p < 1) apply_typical(candidates);
    break;
  case 'p':
    if (s.top_p < 1) {
      const double wanted = s.top_p * candidates.total();
      double sum = 0;
      size_t count = 0;
      while (const Candidate* c = candidates.at(count)) {
        sum += candidates.weight(*c);
        ++count;
        if (sum >= wanted) break;
      }
      candidates.keep(count);
    }
    break;
  case 'm':
    if (s.min_p > 0) candidates.keep_from(float(candidates.top() + std::log(s.min_p) * candidates.temperature()));
    break;
  case 'x':
    if (has_xtc_) apply_xtc(candidates, chance);
    break;
  case 't':
    apply_temperature(candidates);
    break;
  }
}

// Keeps tokens whose surprise is nearest to the expected one, until they have more than a probability.
void SampleChain::apply_typical(Candidates& candidates) const {
  std::vector<Candidate>& left = candidates.settle();
  const double logarithm = std::log(candidates.total());
  const auto surprise = [&](const Candidate& c) { return logarithm - (double(c.logit) - candidates.top()) / candidates.temperature(); };
  double entropy = 0;
  for (const Candidate& c : left) entropy += std::exp(-surprise(c)) * surprise(c);
  std::vector<std::pair<double, Candidate>> order;
  order.reserve(left.size());
  for (const Candidate& c : left) order.push_back({std::abs(surprise(c) - entropy), c});
  std::sort(order.begin(), order.end());
  double sum = 0;
  size_t count = 0;
  do sum += std::exp(-surprise(order[count++].second));
  while (count < order.size() && !(sum > settings_.typical_p));
  left.clear();
  for (size_t i = 0; i < count; ++i) left.push_back(order[i].second);
  candidates.resort();
}

// Drops all but the last of the tokens that reach the threshold.
void SampleChain::apply_xtc(Candidates& candidates, double chance) const {
  if (chance > settings_.xtc_probability) return;
  const double wanted = settings_.xtc_threshold * candidates.total();
  size_t count = 0;
  while (const Candidate* c = candidates.at(count)) {
    if (!(candidates.weight(*c) >= wanted)) break;
    ++count;
  }
  if (count > 1) candidates.drop(count - 1);
}

// With a range, the temperature depends on the entropy as a share of the largest possible one.
void SampleChain::apply_temperature(Candidates& candidates) const {
  const ChainSettings& s = settings_;
  if (!(s.dynatemp_range > 0)) return candidates.heat(s.temperature);
  const std::vector<Candidate>& left = candidates.settle();
  if (left.size() < 2) return;
  const double total = candidates.total();
  double entropy = 0;
  for (const Candidate& c : left) {
    const double p = candidates.weight(c) / total;
    if (p > 0) entropy -= p * std::log(p);
  }
  const double low = std::max(0.0, s.temperature - s.dynatemp_range), high = s.temperature + s.dynatemp_range;
  const double share = std::clamp(entropy / std::log(double(left.size())), 0.0, 1.0);
  candidates.heat(low + (high - low) * std::pow(share, s.dynatemp_exponent));
}

// Basu et al. 2021. Version 1 estimates from the slope of the distribution how many tokens give the wanted surprise;
// version 2 leaves out those of more surprise.
int64_t SampleChain::take_mirostat(Candidates& candidates, double draw) {
  const double total = candidates.total();
  if (settings_.mirostat == 1) {
    double products = 0, squares = 0;
    for (size_t i = 0; i + 1 < 100 && candidates.at(i + 1); ++i) {
      const double t = std::log(double(i + 2) / double(i + 1));
      const double first = candidates.at(i)->logit, second = candidates.at(i + 1)->logit;
      products += t * (first - second) / candidates.temperature();
      squares += t * t;
    }
    const double slope = products / squares, excess = slope - 1;
    const double count = std::pow(excess * std::exp2(surprise_) / (1 - std::pow(double(candidates.vocabulary()), -excess)), 1 / slope);
    if (!(count >= double(candidates.vocabulary()))) candidates.keep(count >= 1 ? size_t(count) : 1);
  } else {
    size_t count = 0;
    for (const Candidate* c; (c = candidates.at(count)) && -std::log2(candidates.weight(*c) / total) <= surprise_;) ++count;
    candidates.keep(std::max<size_t>(count, 1));
  }
  const double kept = candidates.total();
  const Candidate* chosen = take(candidates, draw * kept);
  surprise_ -= settings_.mirostat_eta * (-std::log2(candidates.weight(*chosen) / kept) - settings_.mirostat_tau);
  return chosen->id;
}

// Prefers tokens whose probability is near a target, which moves against the mean of the earlier tokens' probabilities.
int64_t SampleChain::take_adaptive(Candidates& candidates, double draw) {
  constexpr double width = 0.3, peak = 5, sharpness = 10; // llama.cpp's
  const double target = std::clamp(2 * settings_.adaptive_target - sum_ / shares_, 0.0, 1.0);
  const size_t count = candidates.settle().size();
  const double total = candidates.total();
  std::vector<double> weights(count);
  double sum = 0;
  for (size_t i = 0; i < count; ++i) {
    const double gap = std::abs(candidates.weight(*candidates.at(i)) / total - target) / width;
    sum += weights[i] = std::exp(peak - sharpness * gap * gap / (1 + gap));
  }
  size_t chosen = 0;
  double before = 0;
  for (size_t i = 0; i < count; ++i) {
    if (weights[i] > 0) chosen = i;
    before += weights[i];
    if (before > draw * sum) break;
  }
  const Candidate& c = *candidates.at(chosen);
  sum_ = candidates.weight(c) / total + settings_.adaptive_decay * sum_;
  shares_ = 1 + settings_.adaptive_decay * shares_;
  return c.id;
}

} // namespace lltool
