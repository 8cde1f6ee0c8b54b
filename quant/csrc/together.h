// Threads that run for one job; their exceptions are passed on to the caller.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace lltool {

// Calls f() on `threads` threads including the caller's, or on fewer if the system cannot start as many. Waits for all of
// them, rethrows the first exception and returns the number of threads.
template <class Function> int64_t run_together(int64_t threads, const Function& f) {
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  const auto attempt = [&] {
    try {
      f();
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  };
  struct Joined {
    std::vector<std::thread> threads;
    ~Joined() {
      for (auto& thread : threads) thread.join();
    }
  };
  int64_t started = 1;
  {
    Joined others;
    try {
      for (; started < threads; ++started) others.threads.emplace_back(attempt);
    } catch (const std::system_error&) { // no more threads are available: the others do all the work
    } catch (const std::bad_alloc&) {
    }
    attempt();
  }
  if (error) std::rethrow_exception(error);
  return started;
}

// Calls work(first, last) for chunks of `rows` rows; each thread takes the next chunk. After an exception no more start.
template <class Work> void share_rows(int64_t rows, int64_t chunk, int64_t threads, const Work& work) {
  std::atomic<int64_t> next{0};
  const int64_t chunks = (rows + chunk - 1) / chunk;
  run_together(threads < chunks ? threads : chunks, [&] {
    try {
      for (int64_t first; (first = next.fetch_add(chunk)) < rows;) work(first, first + chunk < rows ? first + chunk : rows);
    } catch (...) {
      next = rows;
      throw;
    }
  });
}

} // namespace lltool
