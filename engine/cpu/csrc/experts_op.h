// Mixtures of experts; engine/operations/experts.py defines them.
#pragma once
#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "ops.h"

namespace lltool {

// The experts of each token of the running batch. An expert's tokens have consecutive slots, in the order of the batch:
// rows of assignments lie in the order of the slots.
class Assignments {
public:
  Assignments(int experts, int used, const Executor& executor);

  const int experts, used;

  // Sorts the choices of `tokens` tokens, (tokens, used).
  void sort(const int32_t* chosen, int64_t tokens);

  int64_t most() const { return most_; } // tokens of an expert
  int64_t count(int expert) const { return start_.data()[expert + 1] - start_.data()[expert]; }
  int64_t first(int expert) const { return start_.data()[expert]; } // slot
  int64_t token(int64_t slot) const { return token_.data()[slot]; }
  int64_t slot(int64_t token, int choice) const { return slot_.data()[token * used + choice]; }

  // The experts that have tokens, and the panels of their tokens; a panel has tokens of one expert.
  struct Panel {
    int expert;
    int64_t first; // slot
    int tokens;
  };
  int64_t active_count() const { return active_count_; }
  int active(int64_t i) const { return active_.data()[i]; }
  int64_t panel_count() const { return panel_count_; }
  const Panel& panel(int64_t i) const { return panels_.data()[i]; }
  int64_t first_panel(int expert) const { return panel_start_.data()[expert]; }
  int64_t most_panels() const { return int64_t(panels_.size()); }
  static int64_t most_panels(int64_t slots, int64_t experts, int64_t panel) { return slots / panel + std::min(experts, slots); }

private:
  const int tokens_per_panel_;
  int64_t active_count_ = 0, panel_count_ = 0, most_ = 0;
  Memory<int32_t> start_, token_, slot_, next_, active_, panel_start_;
  Memory<Panel> panels_;
};

// How logits become weights. Sparsemixer takes one expert after the other: its weight is its share in a softmax over those
// whose logits are nearly as large.
enum class Scoring { softmax, sigmoid, sparsemixer };

struct RouteOp : Op {
  Buffer logits, chosen, weights;
  Assignments& assignments;
  Scoring scoring;
  bool normalized;
  float factor;
  int groups, groups_used, counted; // a group counts as much as its `counted` best experts
  std::vector<float> bias, scales; // of each expert; empty: none
  Memory<float> scores;    // (threads, 4, experts)

  RouteOp(Assignments& a, const Executor& executor)
      : assignments(a), scores(checked_mul(executor.settings.threads, 4, a.experts)) {}
  void run(const Run& run) const override;

private:
  void choose(const Run& run, int64_t t) const;
  void choose_sparsely(const float* x, float* taken, int32_t* to, float* weight) const;
  void keep_groups(float* order, float* taken, float* best) const;
};

// Products with stacks of matrices. A thread multiplies some rows of an expert's matrices with all tokens of the expert,
// then adds biases and runs `activation` on the resulting columns.
class ExpertsOp : public Op {
public:
  struct Part {
    Buffer out;    // rows of assignments
    Matrix weight; // of the first expert
    int64_t step;  // bytes from the matrix of an expert to that of the next
    std::vector<float> bias;
  };
  // function(the first part, the second part); null: none
  struct Activation {
    ColumnFunction* function = nullptr;
    Buffer out{};
  };

  // `assigned`: x has a row for each assignment, not for each token.
  ExpertsOp(Buffer x, bool assigned, const Assignments& assignments, std::vector<Part> parts, Activation activation, Executor& executor);
  void run(const Run& run) const override;

private:
  // How the tokens of an expert are multiplied: int8 in panels or in rows; floats in rows, panels of 14 bits, or panels.
  enum class Floats { rows, shorts, packed };
  struct Way {
    bool panels;
    Floats floats;
  };
  struct Input {
    const float* floats;
    Quantized quantized;
    Shortened shortened;
  };

  bool is_int8(const Executor& e, const Part& part) const { return e.settings.int8 && e.kernels.can_multiply(part.weight.type); }
  Way way_of(const Executor& e, int64_t tokens) const;
  const float* row(const Run& run, int64_t slot) const;
  Input input_of(const Run& run, int expert) const;
  int64_t place(const Run& run, int expert) const;
  void prepare(const Run& run, const Assignments::Panel& panel) const;
  void multiply(const Run& run, int expert, int64_t begin, int64_t end, const Input& in) const;

  Buffer x_;
  bool assigned_;
  const Assignments& assignments_;
  std::vector<Part> parts_;
  Activation activation_;
  ColumnFunction* add_;
  bool int8_ = false, floats_ = false; // which activations the parts need
};

// out, a row for each assignment, = weight * the token's row of x.
struct WeighOp : RowOp {
  const Assignments& assignments;
  Buffer x, weights, out;
  ColumnFunction* scale;

  WeighOp(const Assignments& a, Buffer x_, Buffer w, Buffer o, ColumnFunction* s) : assignments(a), x(x_), weights(w), out(o), scale(s) {}
  void row(const Run& run, int64_t t) const override;
};

// out = the sum over a token's experts of weight * row (+ residual); without weights, of the rows.
struct CombineOp : RowOp {
  const Assignments& assignments;
  Buffer x;
  std::optional<Buffer> weights;
  Buffer out;
  std::optional<Buffer> residual;
  ColumnFunction* add_scaled;

  CombineOp(const Assignments& a, Buffer x_, std::optional<Buffer> w, Buffer o, std::optional<Buffer> r, ColumnFunction* f)
      : assignments(a), x(x_), weights(w), out(o), residual(r), add_scaled(f) {}
  void row(const Run& run, int64_t t) const override;
};

// out = x * sigmoid(h . weight), with one number for each row.
struct SharedGateOp : RowOp {
  Buffer x, h, out;
  std::vector<float> weight;
  ColumnFunction* scale;

  SharedGateOp(Buffer x_, Buffer h_, Buffer o, std::vector<float> w, ColumnFunction* s)
      : x(x_), h(h_), out(o), weight(std::move(w)), scale(s) {}
  void row(const Run& run, int64_t t) const override;
};

} // namespace lltool
