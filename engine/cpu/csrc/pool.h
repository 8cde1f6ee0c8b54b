// A persistent pool of threads that run one function together, shared by all models of a process. No thread waits for
// another to be scheduled, only for work that another has begun, so that a busy machine delays a run instead of blocking
// it. Several callers take turns, in the order in which they came.
//
// A forked process has none of the threads: there the pool starts new ones on first use, and never joins the old ones.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace lltool {

// The processors that each thread of a team may run on; an empty list: any.
using Team = std::vector<std::vector<int>>;

long current_process(); // the process id; 0 on systems without fork

class Pool {
public:
  struct Worker;

private:
  struct Phase {
    alignas(64) std::atomic<int64_t> next{0};
    alignas(64) std::atomic<int64_t> done{0};
  };
  struct Seat { // how a worker is woken
    alignas(64) std::atomic<uint32_t> calls{0};
    std::atomic<bool> asleep{false}, stop{false};
    std::condition_variable wake;
    std::thread thread;
  };

  // The threads of one process, and what they share.
  struct Crew {
    const long process = current_process();
    std::mutex mutex; // of the sleeping workers
    std::vector<std::unique_ptr<Seat>> seats; // of the workers 1, 2, ...
    std::unique_ptr<Phase[]> phases;
    int phase_count = 0, used = 0; // `used` phases are not zero
    const std::function<void(Worker&)>* job = nullptr;
    const Team* team = nullptr;
    std::atomic<int> poll{0};
    std::exception_ptr error; // of the running job; `failed` says whether there is one
    std::atomic<bool> failed{false};
    alignas(64) std::atomic<int> inside{-1}; // number of workers in the running job; below 0: there is no job to join

    std::mutex queue;
    std::condition_variable next_turn;
    uint64_t tickets = 0, turn = 0;

    void grow(int threads, int phases);
    void stop_from(size_t seat); // ends and joins these workers
    void work(Seat& seat, int index);
    void call(Seat& seat);
    void await_call(Seat& seat, uint32_t seen);
    bool join();
    Phase& phase(int i);
    template <class Function> void attempt(const Function& f) {
      if (failed.load(std::memory_order_relaxed)) return;
      try {
        f();
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
  };
  class Turn;

public:
  // A thread's view of the running job.
  struct Worker {
    Crew* crew;
    int index;
    int phase = 0;

    // Runs f(0) .. f(n - 1); each free thread takes the next index. Returns when all are done. A late thread may call
    // it after that, so the data of f must be read only inside f. After an exception in f, the rest of the job is
    // skipped and counted as done, so that no thread waits for it.
    template <class Function> void parallel(int64_t n, Function&& f) {
      Phase& p = crew->phase(phase++);
      int64_t mine = 0;
      for (int64_t i; (i = p.next.fetch_add(1, std::memory_order_relaxed)) < n; ++mine)
        crew->attempt([&] { f(i); });
      if (mine) p.done.fetch_add(mine, std::memory_order_acq_rel);
      wait_until([&] { return p.done.load(std::memory_order_acquire) == n; });
    }
  };

  // The pool that everything in this process shares; its threads end with its last user.
  static std::shared_ptr<Pool> of_process();

  Pool() = default;
  ~Pool();
  Pool(const Pool&) = delete;

  // Starts what is missing so that jobs of up to `threads` threads and `phases` calls of parallel() can run. Throws
  // std::runtime_error, and changes nothing, if the system starts no more threads.
  void reserve(int threads, int phases);

  // Runs f on the calling thread, index 0, and on those other threads of the team that wake in time, at most as many as
  // were reserved. Every thread must make the same calls of parallel(). When all threads have ended, rethrows the first
  // exception of any of them; the pool can then be used again. Afterwards idle threads spin for poll * 10 us before they
  // sleep; poll is 0 to 100. Waits for the jobs of other callers that came before; a job must not run another.
  void run(const Team& team, int poll, const std::function<void(Worker&)>& f);

private:
  Crew& crew();
  template <class Condition> static void wait_until(Condition condition) {
    for (int spin = 0; !condition(); ++spin) wait(spin);
  }
  static void wait(int spin);

  std::atomic<Crew*> crew_{nullptr};
  std::atomic<int> threads_{1}, phases_{0}; // that were reserved; a forked process starts as many
};

} // namespace lltool
