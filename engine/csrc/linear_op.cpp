#include "linear_op.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace lltool {

// From this many tokens on it pays to unpack a tile of the weight; below, each row is read once for all tokens.
constexpr int64_t panels_from = 16;

// The beginning of a stream: as much as keeps memory busy until the kernel's own reading ahead takes over.
static void prefetch_rows(const Matrix& w, int64_t row) {
  constexpr int64_t line = 64, bytes = 1024;
  if (row >= w.rows) return;
  const uint8_t* p = w.data + row * w.row_bytes;
  for (int64_t i = 0; i < bytes; i += line) __builtin_prefetch(p + i);
  __builtin_prefetch(p + 4096);
}

LinearOp::LinearOp(Buffer x, std::vector<Group> groups, std::unique_ptr<NormOp> norm, const Executor& executor)
    : x_(x), groups_(std::move(groups)), norm_(std::move(norm)) {
  for (const Group& group : groups_)
    for (const Part& part : group.parts) {
      const bool quantized = executor.settings.int8 && executor.kernels.can_multiply(part.weight.type);
      if (!quantized && !executor.kernels.can_decode(part.weight.type))
        throw std::invalid_argument("no kernel for tensors of type " + std::to_string(part.weight.type));
      (quantized ? int8_ : floats_) = true;
    }
}

void LinearOp::add(std::unique_ptr<ColumnOp> op, size_t group) {
  if (group >= groups_.size() || op->width != groups_[group].parts[0].weight.rows)
    throw std::invalid_argument("linear: no such group of columns");
  groups_[group].unit = std::lcm(groups_[group].unit, op->unit);
  groups_[group].after.push_back(std::move(op));
}

// One row is made sooner by every thread than waited for.
LinearOp::Input LinearOp::prepare_own(const Run& run) const {
  const Executor& e = run.executor;
  Input own{e.at(x_), e.own_quantized(run.worker.index)};
  if (norm_) {
    norm_->normalize(run, 0, e.own_row(run.worker.index));
    own.floats = e.own_row(run.worker.index);
  }
  if (int8_) e.kernels.quantize_row(own.floats, x_.width, own.quantized);
  return own;
}

LinearOp::Input LinearOp::prepare_rows(const Run& run) const {
  const Executor& e = run.executor;
  const int64_t K = x_.width;
  if (norm_ || int8_)
    run.worker.parallel(run.rows, [&](int64_t t) {
      const float* row = e.at(x_) + t * K;
      if (norm_) {
        norm_->normalize(run, t, e.packed + t * K);
        row = e.packed + t * K;
      }
      if (int8_) e.kernels.quantize_row(row, K, e.quantized.token(t, padded(K)));
    });
  return {norm_ ? e.packed : e.at(x_), e.quantized};
}

LinearOp::Input LinearOp::prepare_panels(const Run& run) const {
  const Executor& e = run.executor;
  const int64_t K = x_.width, panel = e.kernels.tokens_per_panel;
  run.worker.parallel((run.rows + panel - 1) / panel, [&](int64_t p) {
    const int64_t first = p * panel, tokens = std::min(panel, run.rows - first);
    const float* rows = e.at(x_) + first * K;
    if (norm_) {
      float* made = reinterpret_cast<float*>(e.scratch(run.worker.index));
      for (int64_t t = 0; t < tokens; ++t) norm_->normalize(run, first + t, made + t * K);
      rows = made;
    }
    if (int8_) e.kernels.quantize_panel(rows, K, int(tokens), K, e.quantized.token(first, K));
    if (floats_) e.kernels.pack_panel(rows, K, int(tokens), K, e.packed + first * K);
  });
  return {e.packed, e.quantized};
}

LinearOp::Chunks LinearOp::cut(const Executor& e, bool panels) const {
  const int64_t threads = e.settings.threads, step = panels ? e.kernels.lanes : 16, most = panels ? tile_rows : 256;
  int64_t rows = 0;
  for (const Group& group : groups_) rows += group.parts[0].weight.rows;
  // Small enough to even out the threads, large enough to be worth fetching; a matmul unpacks whole tiles.
  const int64_t share = std::min(rows / (threads * 8), most);
  const auto make = [&](bool whole_units) {
    Chunks chunks{{}, {}, 0, whole_units};
    for (const Group& group : groups_) {
      const int64_t unit = whole_units ? std::lcm(step, group.unit) : step, size = std::max(unit, share / unit * unit);
      chunks.size.push_back(size);
      chunks.count.push_back((group.parts[0].weight.rows + size - 1) / size);
      chunks.total += chunks.count.back();
    }
    return chunks;
  };
  // Heads are large: where threads would stand idle for the last of them, what comes behind is better done apart.
  Chunks chunks = make(true);
  const int64_t rounds = (chunks.total + threads - 1) / threads;
  const bool heads = std::any_of(groups_.begin(), groups_.end(), [&](const Group& g) { return step % g.unit != 0; });
  return heads && 4 * chunks.total < 3 * rounds * threads ? make(false) : chunks;
}

void LinearOp::finish(const Executor& executor) {
  for (bool panels : {false, true}) chunks_[panels] = cut(executor, panels);
}

void LinearOp::multiply(const Run& run, const Part& part, int64_t begin, int64_t end, bool panels, const Input& in) const {
  const Executor& e = run.executor;
  const EngineKernels& k = e.kernels;
  const bool quantized = e.settings.int8 && k.can_multiply(part.weight.type);
  const int64_t T = run.rows, width = part.out.width;
  float* to = e.at(part.out);
  void* scratch = e.scratch(run.worker.index);
  if (!panels) {
    if (quantized)
      k.matvec(part.weight, begin, end, in.quantized, int(T), to, width, scratch);
    else
      k.matvec_f32(part.weight, begin, end, in.floats, x_.width, int(T), to, width, scratch);
    return;
  }
  for (int64_t stop; begin < end; begin = stop) {
    stop = std::min<int64_t>(end, begin + tile_rows);
    if (quantized)
      k.matmul(part.weight, begin, stop, in.quantized, T, to, width, scratch);
    else
      k.matmul_f32(part.weight, begin, stop, in.floats, T, to, width, scratch);
  }
}

LinearOp::Task LinearOp::task(const Chunks& chunks, int64_t chunk) const {
  size_t g = 0;
  for (; chunk >= chunks.count[g]; ++g) chunk -= chunks.count[g];
  const int64_t begin = chunk * chunks.size[g];
  return {&groups_[g], begin, std::min(groups_[g].parts[0].weight.rows, begin + chunks.size[g])};
}

// Since the lines that a task writes to were last used, the caches have seen megabytes of weights: each would be waited for.
void LinearOp::prefetch(const Run& run, const Task& task) const {
  const int64_t columns = task.end - task.begin;
  for (const Part& part : task.group->parts) prefetch_rows(part.weight, task.begin);
  for (int64_t t = 0; t < run.rows; ++t) {
    for (const Part& part : task.group->parts)
      prefetch_write(run.executor.at(part.out) + t * part.out.width + task.begin, columns);
    for (const auto& op : task.group->after) op->prefetch(run, t, task.begin, task.end);
  }
}

void LinearOp::run(const Run& run) const {
  const bool panels = run.rows >= panels_from || run.executor.settings.deterministic;
  const bool alone = run.rows == 1 && !panels;
  Input in{};
  bool prepared = !alone;
  if (!alone) in = panels ? prepare_panels(run) : prepare_rows(run);
  const Chunks& chunks = chunks_[panels];
  run.worker.parallel(chunks.total, [&](int64_t c) {
    const Task now = task(chunks, c);
    if (!panels) {
      prefetch(run, now);
      const int64_t next = c + run.executor.settings.threads; // likely
      if (next < chunks.total) prefetch_rows(task(chunks, next).group->parts[0].weight, task(chunks, next).begin);
    }
    if (!prepared) in = prepare_own(run);
    prepared = true;
    for (const Part& part : now.group->parts) multiply(run, part, now.begin, now.end, panels, in);
    if (!chunks.whole_units) return;
    for (int64_t t = 0; t < run.rows; ++t)
      for (const auto& op : now.group->after) op->columns(run, t, now.begin, now.end);
  });
  if (chunks.whole_units) return;
  run.worker.parallel(run.rows, [&](int64_t t) {
    for (const Group& group : groups_)
      for (const auto& op : group.after) op->row(run, t);
  });
}

} // namespace lltool
