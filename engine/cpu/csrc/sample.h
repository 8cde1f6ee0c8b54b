// Sampling: chooses a token for each of many rows of logits.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "pool.h"
#include "sample_chain.h"

namespace lltool {

struct SampleRow {
  SampleChain* chain; // null: nothing is chosen
  History text;
  double draw, chance; // from 0 to 1
};

struct SampleRows {
  const float* logits; // (rows.size(), vocabulary)
  int64_t vocabulary;
  std::vector<SampleRow> rows;
  std::vector<const uint32_t*> masks; // empty, or for each row null or (ceil(vocabulary / 32),): the tokens allowed
};

// The token of each row, which the threads of the team share; ~id if the largest logit, that of `id`, is not finite,
// and 0 for a row without a chain.
std::vector<int64_t> sample(const std::string& isa, const SampleRows& rows, const Team& team, int poll);

} // namespace lltool
