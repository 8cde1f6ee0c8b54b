// The steps that make repetitions less probable: penalties for tokens, and DRY for sequences of tokens.
#include <algorithm>
#include <cmath>

#include "sample_chain.h"

namespace lltool {

std::vector<Change> repetition_changes(const ChainSettings& s, History text, int64_t vocabulary) {
  static thread_local std::vector<int32_t> counts; // all 0 between two calls
  if (int64_t(counts.size()) < vocabulary) counts.resize(size_t(vocabulary));
  const History window = text.last(s.repeat_last_n);
  std::vector<Change> found;
  for (int64_t i = 0; i < window.size; ++i) {
    const int32_t id = window.ids[i];
    if (id >= 0 && id < vocabulary && counts[size_t(id)]++ == 0) found.push_back({id, float(s.repeat_penalty), 0});
  }
  for (Change& change : found) {
    int32_t& count = counts[size_t(change.id)];
    change.minus = float(count) * float(s.frequency_penalty) + float(s.presence_penalty);
    count = 0;
  }
  return found;
}

DryBreakers::DryBreakers(const ChainSettings& settings) {
  for (const auto& [head, tail] : settings.breakers) tails_.emplace(head, tail);
}

bool DryBreakers::is_alone(int32_t id) const {
  const auto [from, to] = tails_.equal_range(id);
  return std::any_of(from, to, [](const auto& item) { return item.second.empty(); });
}

// The number of tokens at the end of the text that are behind the last breaker. The text is given backwards.
int64_t DryBreakers::longest_repeat(const std::vector<int32_t>& backwards) const {
  const int64_t size = int64_t(backwards.size());
  for (int64_t i = 0; i < size; ++i) {
    const auto [from, to] = tails_.equal_range(backwards[size_t(i)]);
    int64_t longest = -1;
    for (auto it = from; it != to; ++it) {
      const std::vector<int32_t>& tail = it->second;
      const int64_t length = int64_t(tail.size());
      if (length > i || length <= longest) continue;
      bool is_there = true;
      for (int64_t k = 0; k < length && is_there; ++k) is_there = tail[size_t(k)] == backwards[size_t(i - 1 - k)];
      if (is_there) longest = length;
    }
    if (longest >= 0) return i - longest;
  }
  return size;
}

std::vector<Change> DryBreakers::changes(const ChainSettings& s, History text) const {
  const History window = text.last(s.dry_penalty_last_n);
  const int64_t size = window.size;
  if (size <= s.dry_allowed_length) return {};
  std::vector<int32_t> backwards(window.ids, window.ids + size);
  std::reverse(backwards.begin(), backwards.end());
  const int64_t limit = longest_repeat(backwards);
  if (limit < s.dry_allowed_length) return {};

  // same[k]: how many tokens from place k on, backwards, are the same as those at the end of the text (Z-function).
  std::vector<int64_t> same(size_t(size), 0);
  std::vector<std::pair<int32_t, int64_t>> repeats; // a token that would lengthen a repetition of so many tokens
  for (int64_t k = 1, from = 0, to = 0; k < size; ++k) {
    int64_t length = k < to ? std::min(to - k, same[size_t(k - from)]) : 0;
    while (k + length < size && backwards[size_t(length)] == backwards[size_t(k + length)]) ++length;
    if (k + length > to) from = k, to = k + length;
    same[size_t(k)] = length;
    const int64_t repeat = std::min(length, limit);
    if (repeat >= s.dry_allowed_length) repeats.push_back({backwards[size_t(k - 1)], repeat});
  }
  std::sort(repeats.begin(), repeats.end());

  // The power stays a float, as in llama.cpp.
  const double most = s.dry_base > 1.000001 ? std::floor(88.7228391 / std::log(s.dry_base)) : 0;
  std::vector<Change> found;
  for (size_t i = 0; i < repeats.size(); ++i) {
    const auto [id, repeat] = repeats[i];
    if (i + 1 < repeats.size() && repeats[i + 1].first == id) continue; // the longest comes last
    if (is_alone(id)) continue;
    double power = double(repeat - s.dry_allowed_length);
    if (most > 0) power = std::min(power, most);
    found.push_back({id, 1, float(s.dry_multiplier * std::pow(s.dry_base, power))});
  }
  return found;
}

} // namespace lltool
