#include "candidates.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace lltool {

Candidates::Candidates(const EngineKernels& kernels, const float* x, int64_t n)
    : kernels_(kernels), x_(x), n_(n), maxima_(size_t((n + sample_block - 1) / sample_block)), limit_(size_t(n)) {
  has_nan_ = !kernels.block_maxima(x, n, maxima_.data());
  top_ = *std::max_element(maxima_.begin(), maxima_.end());
}

bool Candidates::is_valid() const { return !has_nan_ && std::isfinite(top_); }

int64_t Candidates::best() const {
  if (has_nan_) return std::find_if(x_, x_ + n_, [](float v) { return v != v; }) - x_;
  const auto block = std::max_element(maxima_.begin(), maxima_.end());
  return std::find(x_ + (block - maxima_.begin()) * sample_block, x_ + n_, top_) - x_;
}

std::vector<Candidate> Candidates::at_least(float floor) const {
  std::vector<Candidate> found;
  for (int64_t start = 0; start < n_; start += sample_block) {
    if (!(maxima_[size_t(start / sample_block)] >= floor)) continue;
    for (int64_t i = start; i < std::min(n_, start + sample_block); ++i)
      if (x_[i] >= floor) found.push_back({x_[i], int32_t(i)});
  }
  return found;
}

bool Candidates::grow() {
  const size_t wanted = std::min(limit_, std::max<size_t>(64, 4 * sorted_));
  if (is_whole_) {
    const size_t end = std::min(list_.size(), std::max<size_t>(64, 4 * sorted_));
    if (end <= sorted_) return false;
    const auto from = list_.begin() + std::ptrdiff_t(sorted_), to = list_.begin() + std::ptrdiff_t(end);
    if (end < list_.size()) std::nth_element(from, to, list_.end());
    std::sort(from, to);
    sorted_ = end;
    return true;
  }
  float floor = floor_;
  if (wanted < maxima_.size()) { // at least so many logits reach the maximum of the block that comes at this place
    std::vector<float> order = maxima_;
    const auto place = order.begin() + std::ptrdiff_t(wanted - 1);
    std::nth_element(order.begin(), place, order.end(), std::greater<float>());
    floor = std::max(floor, *place);
  }
  list_ = at_least(floor);
  sorted_ = 0;
  if (floor == floor_) {
    is_whole_ = true;
    return !list_.empty();
  }
  std::nth_element(list_.begin(), list_.begin() + std::ptrdiff_t(wanted - 1), list_.end());
  list_.resize(wanted);
  std::sort(list_.begin(), list_.end());
  sorted_ = wanted;
  return true;
}

const Candidate* Candidates::at(size_t i) {
  if (i >= limit_) return nullptr;
  while (i >= sorted_)
    if (!grow()) return nullptr;
  return list_[i].logit >= floor_ ? &list_[i] : nullptr;
}

double Candidates::weight(const Candidate& c) const { return std::exp((double(c.logit) - top_) / temperature_); }

double Candidates::total() {
  if (!is_whole_ && limit_ == size_t(n_) && floor_ == lowest) return kernels_.sum_exp(x_, n_, top_, float(1 / temperature_));
  double sum = 0;
  for (const Candidate& c : settle()) sum += weight(c);
  return sum;
}

void Candidates::heat(double temperature) {
  if (!(temperature * temperature_ >= 1e-6))
    keep(1);
  else
    temperature_ *= temperature;
}

void Candidates::keep(size_t count) { limit_ = std::min(limit_, count); }

void Candidates::keep_from(float logit) {
  if (logit > floor_) floor_ = std::min(logit, top_);
}

std::vector<Candidate>& Candidates::settle() {
  if (limit_ < (is_whole_ ? list_.size() : size_t(n_))) {
    size_t count = 0;
    while (at(count)) ++count;
    list_.resize(count);
    sorted_ = count;
  } else {
    if (!is_whole_) list_ = at_least(floor_), sorted_ = 0;
    size_t count = 0;
    while (count < sorted_ && list_[count].logit >= floor_) ++count;
    sorted_ = count;
    list_.erase(std::remove_if(list_.begin() + std::ptrdiff_t(count), list_.end(), [&](const Candidate& c) { return c.logit < floor_; }),
                list_.end());
  }
  is_whole_ = true;
  limit_ = list_.size();
  return list_;
}

void Candidates::resort() {
  sorted_ = 0;
  limit_ = list_.size();
  top_ = std::min_element(list_.begin(), list_.end())->logit;
  floor_ = std::min(lowest, top_); // if none is allowed any more, all are
}

void Candidates::drop(size_t count) {
  settle();
  count = std::min(count, list_.size() - 1);
  at(count);
  list_.erase(list_.begin(), list_.begin() + std::ptrdiff_t(count));
  sorted_ -= count;
  limit_ = list_.size();
  top_ = list_[0].logit;
}

void Candidates::apply_temperature() {
  for (Candidate& c : list_) c.logit = float(c.logit / temperature_);
  top_ = float(top_ / temperature_);
  floor_ = lowest;
  temperature_ = 1;
}

double Candidates::deviation() {
  constexpr int parts = 8; // of the sums, so that additions need not wait for each other
  double count[parts] = {}, sum[parts] = {}, squares[parts] = {};
  const auto add = [&](int part, float x) {
    const bool is_allowed = x >= lowest;
    const double gap = is_allowed ? double(x) - top_ : 0;
    count[part] += is_allowed, sum[part] += gap, squares[part] += gap * gap;
  };
  if (is_whole_ || limit_ < size_t(n_) || floor_ > lowest) {
    for (const Candidate& c : settle()) add(0, c.logit);
  } else {
    int64_t i = 0;
    for (; i + parts <= n_; i += parts)
      for (int part = 0; part < parts; ++part) add(part, x_[i + part]);
    for (; i < n_; ++i) add(0, x_[i]);
  }
  for (int part = 1; part < parts; ++part) count[0] += count[part], sum[0] += sum[part], squares[0] += squares[part];
  const double mean = sum[0] / count[0];
  return std::sqrt(std::max(0.0, squares[0] / count[0] - mean * mean));
}

} // namespace lltool
