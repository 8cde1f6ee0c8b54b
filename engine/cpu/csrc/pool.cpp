#include "pool.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#if defined(__linux__)
#include <sched.h>
#endif

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lltool {

long current_process() {
#if __has_include(<unistd.h>)
  return long(getpid());
#else
  return 0;
#endif
}

static void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Binds the calling thread to some processors, and restores its previous ones at the end.
class Affinity {
#if defined(__linux__)
public:
  ~Affinity() { keep_on({}); }
  // Errors are ignored: the job must run even if this process has lost some processors meanwhile.
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

// Inside a job all threads should be running; if one with work was descheduled, yield to it.
constexpr int spins_before_yield = 1000;

// The right to use the threads. Callers get it in the order in which they came: with a plain mutex, a caller that comes
// back at once would get it again before a sleeping one wakes.
class Pool::Turn {
public:
  explicit Turn(Crew& crew) : crew_(crew) {
    std::unique_lock<std::mutex> lock(crew.queue);
    const uint64_t ticket = crew.tickets++;
    crew.next_turn.wait(lock, [&] { return crew.turn == ticket; });
  }
  ~Turn() {
    {
      std::lock_guard<std::mutex> lock(crew_.queue);
      ++crew_.turn;
    }
    crew_.next_turn.notify_all();
  }
  Turn(const Turn&) = delete;

private:
  Crew& crew_;
};

std::shared_ptr<Pool> Pool::of_process() {
  static std::mutex mutex;
  static std::weak_ptr<Pool> known;
  std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Pool> pool = known.lock();
  if (!pool) known = pool = std::make_shared<Pool>();
  return pool;
}

Pool::~Pool() {
  Crew* crew = crew_;
  // A parent's threads cannot be joined here, and may seem to hold a mutex or to wait for a call forever.
  if (!crew || crew->process != current_process()) return;
  crew->stop_from(0);
  delete crew;
}

Pool::Crew& Pool::crew() {
  Crew* found = crew_;
  if (found && found->process == current_process()) return *found;
  auto made = std::make_unique<Crew>();
  if (crew_.compare_exchange_strong(found, made.get())) made.release();
  return *crew_;
}

void Pool::reserve(int threads, int phases) {
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
  Crew& c = crew();
  const Turn turn(c);
  c.grow(threads, phases);
  threads_ = std::max(threads_.load(), threads);
  phases_ = std::max(phases_.load(), phases);
}

void Pool::Crew::grow(int threads, int count) {
  if (count > phase_count) {
    phases = std::unique_ptr<Phase[]>(new Phase[size_t(count)]);
    phase_count = count, used = 0;
  }
  const size_t before = seats.size();
  while (seats.size() + 1 < size_t(threads)) {
    seats.push_back(std::make_unique<Seat>());
    Seat& seat = *seats.back();
    try {
      seat.thread = std::thread([this, &seat, index = int(seats.size())] { work(seat, index); });
    } catch (const std::system_error&) {
      const size_t started = seats.size();
      stop_from(before);
      throw std::runtime_error("the system starts no more than " + std::to_string(started) + " of " + std::to_string(threads) +
                               " threads");
    }
  }
}

void Pool::Crew::stop_from(size_t first) {
  for (size_t i = first; i < seats.size(); ++i) {
    seats[i]->stop = true;
    call(*seats[i]);
  }
  for (size_t i = first; i < seats.size(); ++i)
    if (seats[i]->thread.joinable()) seats[i]->thread.join(); // the last one may not have been started
  seats.resize(first);
}

Pool::Phase& Pool::Crew::phase(int i) {
  if (i >= phase_count) throw std::logic_error("more phases than were reserved");
  return phases[size_t(i)];
}

void Pool::wait(int spin) {
  if (spin < spins_before_yield)
    pause();
  else
    std::this_thread::yield();
}

void Pool::Crew::call(Seat& seat) {
  seat.calls.fetch_add(1);
  if (!seat.asleep.load()) return;
  { std::lock_guard<std::mutex> lock(mutex); }
  seat.wake.notify_one();
}

void Pool::run(const Team& team, int poll, const std::function<void(Worker&)>& f) {
  Crew& c = crew();
  const Turn turn(c);
  c.grow(threads_, phases_); // in a forked process
  Affinity affinity;
  affinity.keep_on(team.at(0));
  for (int i = 0; i < c.used; ++i) { // only those that the last job used: all of them are 50 KB, for every token
    c.phases[size_t(i)].next.store(0, std::memory_order_relaxed);
    c.phases[size_t(i)].done.store(0, std::memory_order_relaxed);
  }
  c.job = &f;
  c.team = &team;
  c.poll = poll;
  c.inside.store(0);
  for (size_t i = 0; i + 1 < team.size() && i < c.seats.size(); ++i) c.call(*c.seats[i]);
  Worker self{&c, 0};
  c.attempt([&] { f(self); });
  // After this, no thread touches `f` or the phases.
  wait_until([&] {
    int none = 0;
    return c.inside.compare_exchange_strong(none, -1);
  });
  const bool failed = c.failed.load();
  c.used = failed ? c.phase_count : self.phase; // other threads may have used more phases than a failed one
  if (!failed) return;
  c.failed = false;
  std::rethrow_exception(std::exchange(c.error, nullptr));
}

bool Pool::Crew::join() {
  int workers = inside.load();
  while (workers >= 0)
    if (inside.compare_exchange_weak(workers, workers + 1)) return true;
  return false;
}

// Two jobs of a decode loop are tens of microseconds apart: the thread spins about that long, then sleeps.
void Pool::Crew::await_call(Seat& seat, uint32_t seen) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point end = Clock::now() + std::chrono::microseconds(10 * poll);
  do {
    for (int spin = 0; spin < 32; ++spin) {
      if (seat.calls.load() != seen) return;
      pause();
    }
  } while (Clock::now() < end);
  std::unique_lock<std::mutex> lock(mutex);
  seat.asleep = true;
  seat.wake.wait(lock, [&] { return seat.calls.load() != seen; });
  seat.asleep = false;
}

void Pool::Crew::work(Seat& seat, int index) {
  Affinity affinity;
  for (uint32_t seen = 0;;) {
    await_call(seat, seen);
    seen = seat.calls.load();
    if (seat.stop) return;
    if (!join()) continue; // too late for this job
    if (size_t(index) < team->size()) { // a thread that is late for one job may join the next, whose team may lack it
      affinity.keep_on((*team)[size_t(index)]);
      Worker self{this, index};
      attempt([&] { (*job)(self); });
    }
    inside.fetch_sub(1);
  }
}

} // namespace lltool
