// A persistent pool of threads that run one function together. Nobody waits for a thread that the system keeps from running,
// only for work that a thread has begun: on a busy machine that is the difference between a hiccup and a standstill.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace lltool {

class Pool {
  struct Phase {
    alignas(64) std::atomic<int64_t> next{0};
    alignas(64) std::atomic<int64_t> done{0};
  };

public:
  // What a thread knows of itself while it runs.
  struct Worker {
    Pool* pool;
    int index;
    int phase = 0;

    // Shares f(0) .. f(n - 1) among the threads, whoever is free takes the next; returns when all are done. A thread may
    // come when they are: what f reads must be read in f, as it may be gone before and after.
    template <class Function> void parallel(int64_t n, Function&& f) {
      Phase& p = pool->phase(phase++);
      int64_t mine = 0;
      for (int64_t i; (i = p.next.fetch_add(1, std::memory_order_relaxed)) < n; ++mine) f(i);
      if (mine) p.done.fetch_add(mine, std::memory_order_acq_rel);
      wait_until([&] { return p.done.load(std::memory_order_acquire) == n; });
    }
  };

  Pool(int threads, int phases);
  ~Pool();
  Pool(const Pool&) = delete;

  // Runs f on the caller's thread, number 0, and on all others that come in time. It may call parallel() at most `phases`
  // times, each thread the same.
  void run(const std::function<void(Worker&)>& f);

private:
  void work(int index);
  void stop();
  bool join();
  Phase& phase(int i);
  template <class Condition> static void wait_until(Condition condition) {
    for (int spin = 0; !condition(); ++spin) wait(spin);
  }
  static void wait(int spin);

  std::unique_ptr<Phase[]> phases_;
  int phase_count_, used_ = 0;
  const std::function<void(Worker&)>* job_ = nullptr;
  alignas(64) std::atomic<uint32_t> epoch_{0}; // jobs begun
  alignas(64) std::atomic<int> inside_{-1};    // workers that run the job; below 0: there is none to join
  std::atomic<bool> stop_{false};
  std::atomic<int> asleep_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

} // namespace lltool
