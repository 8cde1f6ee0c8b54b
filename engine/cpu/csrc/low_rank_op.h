// Changes of low rank that adapters make to what a matrix gives; engine/operations/low_rank.py defines them.
#pragma once
#include <memory>
#include <vector>

#include "experts_op.h"

namespace lltool {

constexpr int max_adapters = 1 << 16;
constexpr int low_rank_unit = 16; // `down` has a multiple of so many columns, which whole vectors of any set divide

// The factors of one adapter for one output. Of a stack of experts, they are those of the first; the others follow.
struct LowRankUpdate {
  int adapter;
  float factor; // besides the scale that a sequence gives the adapter
  size_t output;
  FactorType type;
  const uint8_t *down, *up; // (columns of x, padded), (rank, columns of the output)
  int64_t rank, padded;
};

// The scale that the sequence of a token gives an adapter; 0 if the batch gives none.
inline float adapter_scale(const Batch& batch, int64_t token, int adapter) {
  return batch.scales ? batch.scales[batch.sequences[token] * batch.adapters + adapter] : 0.0f;
}

// Intermediate results, which all operations of an executor use in turn.
struct LowRankSpace {
  int64_t floats = 0;
  Memory<float> memory;
  float* data() const { return memory.data(); }
  void allocate() {
    if (memory.size() == 0) memory = Memory<float>(floats);
  }
};

// outs[i] += scale * (x @ down) @ up for each update of output i. Rows whose scale is 0 stay as they are, bit for bit.
class LowRankOp : public Op {
public:
  // With `assignments`, rows are those of experts; then `assigned` says whether x has a row for each assignment.
  LowRankOp(Buffer x, std::vector<Buffer> outs, std::vector<LowRankUpdate> updates, const Assignments* assignments, bool assigned,
            bool in_head, std::shared_ptr<LowRankSpace> space, Executor& executor);
  void finish(const Executor&) override { space_->allocate(); }
  void run(const Run& run) const override;

private:
  // Some rows whose matrices are the same: `first` to `first + count`, of an expert.
  struct Strip {
    int64_t first;
    int count, expert;
  };
  int64_t strips(const Run& run) const;
  Strip strip(const Run& run, int64_t i) const;
  int64_t token(const Run& run, int64_t row) const;
  bool is_active(const Run& run, const LowRankUpdate& update) const;
  float* results(const Run& run, size_t update) const; // (rows, padded)
  void multiply_down(const Run& run, const Strip& strip, size_t update) const;
  void multiply_up(const Run& run, const Strip& strip, size_t update, int64_t begin, int64_t end) const;

  Buffer x_;
  std::vector<Buffer> outs_;
  std::vector<LowRankUpdate> updates_;
  const Assignments* assignments_; // null: every row has the same matrices
  bool assigned_, in_head_;
  int64_t most_rows_;
  std::shared_ptr<LowRankSpace> space_;
};

// The same for the embedding, whose `down` has a row for each token id. `factor` of an update includes the embedding's scale.
struct LowRankEmbedOp : RowOp {
  Buffer out;
  std::vector<LowRankUpdate> updates;
  LowRankEmbedOp(Buffer o, std::vector<LowRankUpdate> u) : out(o), updates(std::move(u)) {}
  void row(const Run& run, int64_t t) const override;
};

} // namespace lltool
