// A persistent pool of threads that run one function together, meeting at barriers.
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
public:
  // What a thread knows of itself while it runs.
  struct Worker {
    Pool* pool;
    int index;
    int phase = 0;

    // Shares f(0) .. f(n - 1) among the threads, whoever is free takes the next; returns when all are done.
    template <class Function> void parallel(int64_t n, Function&& f) {
      std::atomic<int64_t>& next = pool->phase(phase++);
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) f(i);
      pool->barrier();
    }
  };

  Pool(int threads, int phases);
  ~Pool();
  Pool(const Pool&) = delete;

  // Runs f on every thread (the caller's is number 0). It may call parallel() at most `phases` times.
  void run(const std::function<void(Worker&)>& f);

private:
  void work(int index);
  void stop();
  void barrier();
  std::atomic<int64_t>& phase(int i);

  struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
  };
  std::vector<Counter> phases_;
  const std::function<void(Worker&)>* job_ = nullptr;
  alignas(64) std::atomic<uint32_t> epoch_{0};
  alignas(64) std::atomic<uint32_t> waiting_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  std::atomic<bool> stop_{false};
  std::atomic<int> asleep_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

} // namespace lltool
