#include "pool.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <system_error>

#if defined(__linux__)
#include <sched.h>
#endif

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

// A thread's processors: kept on some, then on all that it had before.
class Affinity {
#if defined(__linux__)
public:
  ~Affinity() { keep_on({}); }
  // Processors that were taken from this process meanwhile are no reason not to compute.
  void keep_on(const std::vector<int>& cpus) {
    if (cpus == now_) return;
    if (now_.empty()) sched_getaffinity(0, sizeof before_, &before_);
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int cpu : cpus) CPU_SET(size_t(cpu), &set);
    sched_setaffinity(0, sizeof set, cpus.empty() ? &before_ : &set);
    now_ = cpus;
  }

private:
  cpu_set_t before_;
  std::vector<int> now_;
#else
public:
  void keep_on(const std::vector<int>&) {}
#endif
};

// Inside a step all threads should be running; when one with work was descheduled, give way to it.
constexpr int spins_before_yield = 1000;

Pool::Pool(int threads, int phases, int poll)
    : phases_(new Phase[size_t(phases)]), seats_(new Seat[size_t(std::max(threads, 1))]), phase_count_(phases), poll_(poll) {
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
  stop_ = true;
  for (size_t i = 1; i <= workers_.size(); ++i) call(int(i));
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

void Pool::call(int index) {
  Seat& seat = seats_[size_t(index)];
  seat.calls.fetch_add(1);
  if (!seat.asleep.load()) return;
  { std::lock_guard<std::mutex> lock(mutex_); }
  seat.wake.notify_one();
}

void Pool::run(const Team& team, const std::function<void(Worker&)>& f) {
  Affinity affinity;
  affinity.keep_on(team.at(0));
  for (int i = 0; i < used_; ++i) { // by the last job; all of them would be 50 KB, for every token
    phases_[size_t(i)].next.store(0, std::memory_order_relaxed);
    phases_[size_t(i)].done.store(0, std::memory_order_relaxed);
  }
  job_ = &f;
  team_ = &team;
  inside_.store(0);
  for (size_t i = 1; i < std::min(team.size(), workers_.size() + 1); ++i) call(int(i));
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

// Between two steps of a decode loop lie tens of microseconds: looks that long, then sleeps.
void Pool::await_call(Seat& seat, uint32_t seen) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point end = Clock::now() + std::chrono::microseconds(10 * poll_);
  do {
    for (int spin = 0; spin < 32; ++spin) {
      if (seat.calls.load() != seen) return;
      pause();
    }
  } while (Clock::now() < end);
  std::unique_lock<std::mutex> lock(mutex_);
  seat.asleep = true;
  seat.wake.wait(lock, [&] { return seat.calls.load() != seen; });
  seat.asleep = false;
}

void Pool::work(int index) {
  Affinity affinity;
  Seat& seat = seats_[size_t(index)];
  for (uint32_t seen = 0;;) {
    await_call(seat, seen);
    seen = seat.calls.load();
    if (stop_) return;
    if (!join()) continue; // too late
    if (size_t(index) < team_->size()) { // a thread can be late for its own job and in time for the next
      affinity.keep_on((*team_)[size_t(index)]);
      Worker self{this, index};
      (*job_)(self);
    }
    inside_.fetch_sub(1);
  }
}

} // namespace lltool
