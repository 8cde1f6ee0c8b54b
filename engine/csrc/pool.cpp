#include "pool.h"

#include <stdexcept>
#include <string>
#include <system_error>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lltool {

static void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A pause is 10 to 40 ns. Between two steps of a decode loop lie tens of microseconds: spin over that, then sleep.
constexpr int spins_before_sleep = 8000;
// Inside a step all threads should be running; when one with work was descheduled, give way to it.
constexpr int spins_before_yield = 1000;

Pool::Pool(int threads, int phases) : phases_(new Phase[size_t(phases)]), phase_count_(phases) {
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
  } catch (const std::system_error&) {
    const size_t started = workers_.size() + 1;
    stop();
    throw std::runtime_error("the system starts no more than " + std::to_string(started) + " of " + std::to_string(threads) +
                             " threads");
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    epoch_.fetch_add(1);
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

Pool::Phase& Pool::phase(int i) {
  if (i >= phase_count_) throw std::logic_error("more phases than the pool was made for");
  return phases_[size_t(i)];
}

void Pool::wait(int spin) {
  if (spin < spins_before_yield)
    pause();
  else
    std::this_thread::yield();
}

void Pool::run(const std::function<void(Worker&)>& f) {
  for (int i = 0; i < used_; ++i) { // by the last job; all of them would be 50 KB, for every token
    phases_[size_t(i)].next.store(0, std::memory_order_relaxed);
    phases_[size_t(i)].done.store(0, std::memory_order_relaxed);
  }
  job_ = &f;
  inside_.store(0);
  epoch_.fetch_add(1);
  if (asleep_.load() > 0) {
    { std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
  }
  Worker self{this, 0};
  f(self);
  used_ = self.phase;
  // Nobody touches `f` or the phases after this.
  wait_until([&] {
    int none = 0;
    return inside_.compare_exchange_strong(none, -1);
  });
}

bool Pool::join() {
  int workers = inside_.load();
  while (workers >= 0)
    if (inside_.compare_exchange_weak(workers, workers + 1)) return true;
  return false;
}

void Pool::work(int index) {
  uint32_t seen = 0;
  for (;;) {
    for (int spin = 0; epoch_.load() == seen && spin < spins_before_sleep; ++spin) pause();
    if (epoch_.load() == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      asleep_.fetch_add(1);
      wake_.wait(lock, [&] { return epoch_.load() != seen; });
      asleep_.fetch_sub(1);
    }
    seen = epoch_.load();
    if (stop_) return;
    if (!join()) continue; // too late
    Worker self{this, index};
    (*job_)(self);
    inside_.fetch_sub(1);
  }
}

} // namespace lltool
