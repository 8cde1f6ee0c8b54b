// What a pool does for several callers, after an exception and after a fork; test_pool.py builds and runs this. It ends with 0 when all is well.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "pool.h"
#include "together.h"

using lltool::Pool;
using lltool::Team;

static void check(bool fine, const char* what) {
  if (fine) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::exit(1);
}

constexpr int phases = 3, tasks = 64;

// Adds up the numbers of the tasks in three phases.
static int64_t sum(Pool& pool, const Team& team) {
  std::atomic<int64_t> total{0};
  pool.run(team, 0, [&](Pool::Worker& worker) {
    for (int phase = 0; phase < phases; ++phase) worker.parallel(tasks, [&](int64_t i) { total += i; });
  });
  return total;
}

constexpr int64_t right = phases * tasks * (tasks - 1) / 2;

static std::string fault_of(Pool& pool, const Team& team, const std::function<void(Pool::Worker&)>& job) {
  try {
    pool.run(team, 0, job);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

static void check_exceptions(int threads) {
  const Team team{size_t(threads)};
  Pool pool;
  pool.reserve(threads, phases);
  for (int round = 0; round < 200; ++round) {
    std::atomic<int> later{0};
    const std::string found = fault_of(pool, team, [&](Pool::Worker& worker) {
      worker.parallel(tasks, [&](int64_t i) {
        if (i == round % tasks) throw std::runtime_error("task");
      });
      worker.parallel(tasks, [&](int64_t) { ++later; });
    });
    check(found == "task", "an exception of a task reaches the caller");
    check(later == 0, "after an exception no task of a later phase runs");
    check(sum(pool, team) == right, "the pool works after an exception of a task");
  }
  for (int thread = 0; thread < threads; ++thread) {
    std::atomic<bool> came{false};
    const std::string found = fault_of(pool, team, [&](Pool::Worker& worker) {
      worker.parallel(tasks, [&](int64_t) {});
      if (worker.index == thread) {
        came = true;
        throw std::runtime_error("thread " + std::to_string(thread));
      }
      worker.parallel(tasks, [&](int64_t) {});
    });
    check(found == (came ? "thread " + std::to_string(thread) : ""), "an exception between phases reaches the caller");
    check(sum(pool, team) == right, "the pool works after an exception between phases");
  }
  const std::string every = fault_of(pool, team, [&](Pool::Worker& worker) {
    worker.parallel(tasks, [&](int64_t) { throw std::runtime_error("each"); });
  });
  check(every == "each", "of several exceptions one reaches the caller");
  bool refused = false;
  try {
    pool.run(team, 0, [&](Pool::Worker& worker) {
      for (int phase = 0; phase <= phases; ++phase) worker.parallel(tasks, [](int64_t) {});
    });
  } catch (const std::logic_error&) {
    refused = true;
  }
  check(refused && sum(pool, team) == right, "too many phases are refused, and the pool works");
}

static void check_run_together() {
  for (int64_t thrower = 0; thrower < 8; ++thrower) {
    std::string found;
    try {
      lltool::share_rows(8, 1, 4, [&](int64_t first, int64_t) {
        if (first == thrower) throw std::runtime_error("row " + std::to_string(first));
      });
    } catch (const std::runtime_error& error) {
      found = error.what();
    }
    check(found == "row " + std::to_string(thrower), "an exception of a row reaches the caller");
  }
  std::atomic<int64_t> seen{0};
  lltool::share_rows(1000, 7, 4, [&](int64_t first, int64_t last) { seen += last - first; });
  check(seen == 1000, "each row once");
  std::atomic<int> ran{0};
  check(lltool::run_together(3, [&] { ++ran; }) == 3 && ran == 3, "as many threads as were asked for");
}

// A child that is stuck is killed by its alarm.
static void check_child(const char* what, const std::function<void()>& work) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    work();
    _exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  check(status == 0, what);
}

// Callers that come back at once get no more than their share of the turns.
static void check_callers() {
  Pool pool;
  for (int threads : {1, 3, 2}) pool.reserve(threads, phases); // it has three threads
  const int rounds = 100;
  std::vector<std::thread> callers;
  std::vector<int> order; // of the jobs, written inside them
  std::atomic<int> ready{0};
  for (int caller = 0; caller < 3; ++caller)
    callers.emplace_back([&, caller] {
      const Team team{size_t(caller + 1)}; // each has its own team, the last one all threads
      ++ready;
      while (ready < 3) std::this_thread::yield();
      for (int round = 0; round < rounds; ++round) {
        std::atomic<int64_t> total{0};
        pool.run(team, 0, [&](Pool::Worker& worker) {
          if (worker.index == 0) order.push_back(caller), usleep(200); // so that the others come meanwhile
          for (int phase = 0; phase < phases; ++phase) worker.parallel(tasks, [&](int64_t i) { total += i; });
        });
        check(total == right, "each caller gets its own sum");
      }
    });
  for (auto& caller : callers) caller.join();
  check(order.size() == 3 * rounds, "every job ran once");
  int seen[3] = {}, least = rounds; // until the first caller has finished, nobody may have fallen behind
  for (int caller : order)
    if (++seen[caller] == rounds) {
      least = std::min({seen[0], seen[1], seen[2]});
      break;
    }
  check(least > rounds * 9 / 10, "callers take turns"); // 99 with turns; a plain mutex gives 15 to 95
}

// A process forks while another of its threads is using the pool.
static void check_fork_during_a_job() {
  Pool pool;
  pool.reserve(2, phases);
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop) check(sum(pool, Team(2)) == right, "the pool works beside forks");
  });
  for (int i = 0; i < 20; ++i)
    check_child("a child uses a pool that was in use", [&] { check(sum(pool, Team(2)) == right, "a child's pool works"); });
  stop = true;
  other.join();
}

static void check_forks(int threads, int poll) {
  const Team team{size_t(threads)};
  auto pool = std::make_unique<Pool>();
  pool->reserve(threads, phases);
  pool->run(team, poll, [](Pool::Worker&) {});
  check(sum(*pool, team) == right, "the pool works");
  usleep(3000); // its threads sleep
  check_child("a child that never used the pool ends", [&] { pool.reset(); });
  check_child("a child uses the pool and ends", [&] {
    for (int i = 0; i < 20; ++i) check(sum(*pool, team) == right, "a child's pool works");
    pool.reset();
  });
  check_child("a child of a child uses the pool", [&] {
    check(sum(*pool, team) == right, "a child's pool works");
    check_child("a grandchild uses the pool and ends", [&] {
      check(sum(*pool, team) == right, "a grandchild's pool works");
      pool.reset();
    });
    check(sum(*pool, team) == right, "a child's pool works after a fork");
  });
  check(sum(*pool, team) == right, "the pool works after forks");
}

int main(int count, char** arguments) {
  for (int threads : {1, 2, 4}) check_exceptions(threads);
  check_run_together();
  check_callers();
  if (count > 1 && !std::strcmp(arguments[1], "no-fork")) return 0; // ThreadSanitizer follows no fork
  for (int threads : {1, 2, 4})
    for (int poll : {0, 50}) check_forks(threads, poll);
  check_fork_during_a_job();
  return 0;
}
