#include "sample.h"

#include <limits>
#include <memory>

#include "kernels.h"

namespace lltool {

std::vector<int64_t> sample(const std::string& isa, const SampleRows& rows, const Team& team, int poll) {
  const EngineKernels& kernels = kernels_for(isa);
  const int64_t n = rows.vocabulary, count = int64_t(rows.rows.size());
  std::vector<int64_t> out(size_t(count), 0);
  const auto work = [&](int64_t r) {
    static thread_local std::vector<float> changed;
    const SampleRow& row = rows.rows[size_t(r)];
    if (!row.chain) return;
    const float* x = rows.logits + r * n;
    const uint32_t* mask = rows.masks.empty() ? nullptr : rows.masks[size_t(r)];
    if (mask || row.chain->adjusts()) {
      changed.assign(x, x + n);
      x = changed.data();
    }
    if (mask)
      for (int64_t i = 0; i < n; ++i)
        if (!(mask[i / 32] >> (i % 32) & 1)) changed[size_t(i)] = -std::numeric_limits<float>::infinity();
    if (row.chain->adjusts()) row.chain->adjust(changed.data(), n, row.text);
    out[size_t(r)] = row.chain->choose(kernels, x, n, row.text, row.draw, row.chance);
  };
  if (count == 1 || team.size() == 1) { // not worth a turn of the threads
    for (int64_t r = 0; r < count; ++r) work(r);
    return out;
  }
  const std::shared_ptr<Pool> pool = Pool::of_process();
  pool->reserve(int(team.size()), 1);
  pool->run(team, poll, [&](Pool::Worker& worker) { worker.parallel(count, work); });
  return out;
}

} // namespace lltool
