#include "linear_op.h"

#include <algorithm>
#include <numeric>

namespace lltool {

LinearOp::LinearOp(Buffer x, std::vector<Group> groups, std::unique_ptr<NormOp> norm, const Executor& executor)
    : x_(x), groups_(std::move(groups)), norm_(std::move(norm)) {
  for (const Group& group : groups_)
    for (const Part& part : group.parts) {
      const bool quantized = executor.settings.int8 && executor.kernels.can_multiply(part.weight.type);
      (quantized ? int8_ : floats_) = true;
    }
}

void LinearOp::add(std::unique_ptr<ColumnOp> op, size_t group) {
  groups_[group].unit = std::lcm(groups_[group].unit, op->unit);
  groups_[group].after.push_back(std::move(op));
}

// Each thread prepares a single row for itself, because waiting for another thread would take longer.
LinearOp::Input LinearOp::prepare_own(const Run& run) const {
  const Executor& e = run.executor;
  Input own{e.at(x_), e.own_quantized(run.worker.index)};
  if (norm_) {
    norm_->normalize(run, 0, e.own_row(run.worker.index));
    own.floats = e.own_row(run.worker.index);
  }
  if (int8_) e.quantize_row(own.floats, x_.width, own.quantized);
  return own;
}

LinearOp::Input LinearOp::prepare(const Run& run, Way way) const {
  const Executor& e = run.executor;
  const EngineKernels& k = e.kernels;
  const int64_t K = x_.width, T = run.rows, panel = way.shape == Shape::rows ? 1 : k.tokens_per_panel;
  const bool panels = way.shape != Shape::rows, rows_wanted = !panels || (floats_ && way.floats == Floats::rows);
  if (norm_ || int8_ || panels)
    run.worker.parallel((T + panel - 1) / panel, [&](int64_t p) {
      const int64_t first = p * panel, tokens = std::min(panel, T - first);
      const float* rows = e.at(x_) + first * K;
      if (norm_) {
        float* made = rows_wanted ? e.packed + first * K : reinterpret_cast<float*>(e.scratch(run.worker.index));
        for (int64_t t = 0; t < tokens; ++t) norm_->normalize(run, first + t, made + t * K);
        rows = made;
      }
      if (int8_ && !panels) e.quantize_row(rows, K, e.quantized.token(p, padded(K)));
      if (int8_ && panels) k.quantize_panel(rows, K, int(tokens), K, e.quantized.token(p * panel, K));
      if (way.floats == Floats::shorts) k.shorten_panel(rows, K, int(tokens), K, e.shortened.token(p * panel, K));
      if (way.floats == Floats::packed) k.pack_panel(rows, K, int(tokens), K, e.packed + p * panel * K);
    });
  return {norm_ || way.floats == Floats::packed ? e.packed : e.at(x_), e.quantized};
}

// Few tokens multiply float weights exactly, since reading the weights takes most of the time then.
LinearOp::Floats LinearOp::floats_way(const Run& run) const {
  const Executor& e = run.executor;
  const bool shorts = e.settings.int8 && e.kernels.can_multiply_shorts(x_.width);
  if (!floats_ || (run.rows < (shorts ? shorts_from : packed_from) && !e.settings.deterministic)) return Floats::rows;
  return shorts ? Floats::shorts : Floats::packed;
}

LinearOp::Shape LinearOp::shape_of(const Run& run) const {
  const Executor& e = run.executor;
  if (run.rows < panels_from && !(floats_ && e.settings.deterministic)) return Shape::rows;
  return run.rows <= e.kernels.tokens_per_panel ? Shape::panel : Shape::panels;
}

LinearOp::Tasks LinearOp::cut(const Executor& e, Shape shape) const {
  const bool panels = shape != Shape::rows;
  const int64_t threads = e.settings.threads, step = panels ? e.kernels.lanes : 16;
  int64_t rows = 0;
  bool can_fuse = true;
  for (const Group& group : groups_) {
    rows += group.parts[0].weight.rows * int64_t(panels ? 1 : group.parts.size());
    can_fuse &= panels || group.parts.size() == 1;
  }
  // Few tokens are limited by memory, which is fastest in long runs: each thread begins with most of its share, and
  // small tasks at the end balance the load. With many tokens, unpacked tiles and results must stay in the cache.
  const int64_t most = rows * 7 / (threads * 8), least = rows / (threads * 8);
  const auto size = [&](int64_t left) {
    if (shape == Shape::panels) return std::min<int64_t>(least, tile_rows);
    if (threads == 1) return left;
    return left * 8 >= rows + most * 4 ? most : least;
  };
  const auto make = [&](bool whole_units) {
    Tasks tasks{{}, whole_units};
    int64_t left = rows;
    for (size_t g = 0; g < groups_.size(); ++g) {
      const size_t parts = groups_[g].parts.size(), together = panels ? parts : 1;
      const int64_t unit = whole_units ? std::lcm(step, groups_[g].unit) : step, end = groups_[g].parts[0].weight.rows;
      for (size_t part = 0; part < parts; part += together)
        for (int64_t begin = 0, n; begin < end; begin += n, left -= n) {
          n = std::min(end - begin, std::max(unit, size(left) / unit * unit));
          tasks.list.push_back({g, part, part + together, begin, begin + n});
        }
    }
    return tasks;
  };
  if (!can_fuse) return make(false);
  // Units such as heads are large: if one thread got too large a share, the operations of `after` run separately.
  Tasks tasks = make(true);
  std::vector<int64_t> load(size_t(threads), 0);
  for (const Task& task : tasks.list) *std::min_element(load.begin(), load.end()) += task.end - task.begin;
  return *std::max_element(load.begin(), load.end()) * threads * 3 > rows * 4 ? make(false) : tasks;
}

void LinearOp::finish(const Executor& executor) {
  for (Shape shape : {Shape::rows, Shape::panel, Shape::panels}) tasks_[size_t(shape)] = cut(executor, shape);
}

void LinearOp::multiply(const Run& run, const Part& part, int64_t begin, int64_t end, Way way, const Input& in) const {
  const Executor& e = run.executor;
  const EngineKernels& k = e.kernels;
  const bool quantized = e.settings.int8 && k.can_multiply(part.weight.type);
  const int64_t T = run.rows, width = part.out.width;
  float* to = e.at(part.out);
  void* scratch = e.scratch(run.worker.index);
  if (quantized && way.shape == Shape::rows) return e.matvec(part.weight, begin, end, in.quantized, int(T), to, width, scratch);
  if (!quantized && way.floats == Floats::rows)
    return k.matvec_f32(part.weight, begin, end, in.floats, x_.width, int(T), to, width, scratch);
  if (quantized && way.shape == Shape::panel) return k.matmul(part.weight, begin, end, in.quantized, T, to, width, scratch);
  for (int64_t stop; begin < end; begin = stop) {
    stop = std::min<int64_t>(end, begin + tile_rows);
    if (quantized)
      k.matmul(part.weight, begin, stop, in.quantized, T, to, width, scratch);
    else if (way.floats == Floats::shorts)
      k.matmul_shorts(part.weight, begin, stop, e.shortened, T, to, width, scratch);
    else
      k.matmul_f32(part.weight, begin, stop, in.floats, T, to, width, scratch);
  }
}

void LinearOp::run(const Run& run) const {
  const Way way{shape_of(run), floats_way(run)};
  const bool alone = run.rows == 1 && way.shape == Shape::rows;
  Input in{};
  bool prepared = !alone;
  if (!alone) in = prepare(run, way);
  const Tasks& tasks = tasks_[size_t(way.shape)];
  run.worker.parallel(int64_t(tasks.list.size()), [&](int64_t i) {
    const Task& task = tasks.list[size_t(i)];
    const Group& group = groups_[task.group];
    if (!prepared) in = prepare_own(run);
    prepared = true;
    for (size_t p = task.part; p < task.end_part; ++p) multiply(run, group.parts[p], task.begin, task.end, way, in);
    if (!tasks.fused) return;
    for (int64_t t = 0; t < run.rows; ++t)
      for (const auto& op : group.after) op->columns(run, t, task.begin, task.end);
  });
  if (tasks.fused) return;
  run.worker.parallel(run.rows, [&](int64_t t) {
    for (const Group& group : groups_)
      for (const auto& op : group.after) op->row(run, t);
  });
}

} // namespace lltool
