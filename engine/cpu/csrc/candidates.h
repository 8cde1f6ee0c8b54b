// The tokens of a row that may come next, looked at from the most probable on and sorted only as far as that.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "kernels.h"

namespace lltool {

struct Candidate {
  float logit;
  int32_t id;
  bool operator<(const Candidate& other) const { return logit != other.logit ? logit > other.logit : id < other.id; }
};

// Most steps keep the beginning of the sorted list. They only lower `limit` or raise `floor`, so that a large row is
// neither copied nor sorted as a whole. A token of logit x has the weight e^((x - top) / temperature).
class Candidates {
public:
  Candidates(const EngineKernels& kernels, const float* x, int64_t n); // n > 0

  bool is_valid() const; // whether the largest logit is finite, and none is NaN
  int64_t best() const;  // the token of the largest logit, or of the first that is NaN

  // The i-th most probable; equal ones are in order of their ids. Null behind the last.
  const Candidate* at(size_t i);
  double weight(const Candidate& c) const;
  double total(); // of all weights
  double temperature() const { return temperature_; }
  float top() const { return top_; }

  void heat(double temperature);      // divides the logits by it; below 1e-6, only the most probable is kept
  void keep(size_t count);            // at most so many, count > 0
  void keep_from(float logit);        // those that reach it; the first stays in any case
  void drop(size_t count);            // the most probable ones; the last stays in any case
  std::vector<Candidate>& settle();   // all that are left, in no order; if they are changed, `resort` must follow
  void resort();                      // after changes of logits or of the list, which must not be empty
  void apply_temperature();           // makes the temperature part of the logits of a settled list
  double deviation();                 // the standard deviation of the logits
  size_t vocabulary() const { return size_t(n_); }

private:
  bool grow(); // sorts more of them; false if there are no more
  std::vector<Candidate> at_least(float floor) const;

  static constexpr float lowest = std::numeric_limits<float>::lowest(); // below it is only the logit of what is not allowed
  const EngineKernels& kernels_;
  const float* x_;
  int64_t n_;
  bool has_nan_ = false;
  std::vector<float> maxima_;
  std::vector<Candidate> list_;
  size_t sorted_ = 0;     // so many of the list are sorted
  bool is_whole_ = false; // the list has all candidates, not only the sorted ones
  size_t limit_;
  float floor_ = lowest, top_;
  double temperature_ = 1;
};

} // namespace lltool
