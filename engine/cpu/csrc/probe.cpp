#include "probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>

#include "kernels.h"
#include "together.h"

namespace lltool {

constexpr int64_t chunk = 1 << 20; // bytes of a task of reading
constexpr int64_t steps = 20000;   // of a loop of products: 0.1 ms, or 1 ms with the slowest instruction set
constexpr int tasks_a_thread = 64;

// The highest rate of all passes over the tasks; a task returns the amount of work that it did.
template <class Task> static double find_rate(int threads, double seconds, int64_t tasks, Task task) {
  require_threads(threads);
  require(seconds >= 0 && seconds <= 60, "seconds must be 0 to 60"); // false for NaN too
  using Clock = std::chrono::steady_clock;
  using Seconds = std::chrono::duration<double>;
  const auto end = Clock::now() + Seconds(seconds);
  double best = 0;
  do {
    std::atomic<int64_t> next{0}, done{0};
    const auto work = [&] {
      int64_t mine = 0;
      for (int64_t i; (i = next.fetch_add(1)) < tasks;) mine += task(i);
      done += mine;
    };
    const auto start = Clock::now();
    if (const int64_t started = run_together(threads, work); started < threads)
      throw std::runtime_error("the system starts no more than " + std::to_string(started) + " of " + std::to_string(threads) +
                               " threads");
    best = std::max(best, double(done) / Seconds(Clock::now() - start).count());
  } while (Clock::now() < end);
  return best;
}

double probe_read(const std::string& isa, int threads, const uint8_t* data, int64_t bytes, double seconds) {
  const auto read = kernels_for(isa).probes.read;
  return find_rate(threads, seconds, (bytes + chunk - 1) / chunk,
                   [&](int64_t i) { return read(data + i * chunk, std::min(chunk, bytes - i * chunk)); });
}

double probe_multiply(const std::string& isa, int threads, const std::string& kind, double seconds) {
  const Probes& probes = kernels_for(isa).probes;
  const auto multiply = kind == "int8"      ? probes.multiply_int8
                        : kind == "int16"   ? probes.multiply_int16
                        : kind == "float32" ? probes.multiply_float
                                            : nullptr;
  if (!multiply) throw std::invalid_argument("no products of '" + kind + "'");
  return find_rate(threads, seconds, int64_t(threads) * tasks_a_thread, [&](int64_t) { return multiply(steps); });
}

} // namespace lltool
