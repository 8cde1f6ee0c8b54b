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

// The processors that each thread of a team may run on; none: any.
using Team = std::vector<std::vector<int>>;

class Pool {
  struct Phase {
    alignas(64) std::atomic<int64_t> next{0};
    alignas(64) std::atomic<int64_t> done{0};
  };
  struct Seat { // of a worker
    alignas(64) std::atomic<uint32_t> calls{0};
    std::atomic<bool> asleep{false};
    std::condition_variable wake;
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

  // Idle threads look for work for poll * 10 us before they sleep; 0 to 100.
  Pool(int threads, int phases, int poll);
  ~Pool();
  Pool(const Pool&) = delete;

  // Runs f on the caller's thread, number 0, and on those of the team's others that come in time; at most as many as the
  // pool has. It may call parallel() at most `phases` times, each thread the same.
  void run(const Team& team, const std::function<void(Worker&)>& f);

private:
  void work(int index);
  void call(int index);
  void await_call(Seat& seat, uint32_t seen);
  void stop();
  bool join();
  Phase& phase(int i);
  template <class Condition> static void wait_until(Condition condition) {
    for (int spin = 0; !condition(); ++spin) wait(spin);
  }
  static void wait(int spin);

  std::unique_ptr<Phase[]> phases_;
  std::unique_ptr<Seat[]> seats_;
  int phase_count_, poll_, used_ = 0;
  const std::function<void(Worker&)>* job_ = nullptr;
  const Team* team_ = nullptr;
  alignas(64) std::atomic<int> inside_{-1}; // workers that run the job; below 0: there is none to join
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::vector<std::thread> workers_;
};

} // namespace lltool
