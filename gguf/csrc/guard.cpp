// Protection against mapped files that get shorter. Reading a missing page raises SIGBUS, which kills the process without a
// message. With this handler the page reads as zeros, and a flag records it. Normal reads cost nothing extra.
#include <nanobind/nanobind.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <stdexcept>

#if __has_include(<sys/mman.h>)
#include <csignal>
#include <sys/mman.h>
#include <unistd.h>
#define LLTOOL_HAS_SIGBUS
#endif

namespace nb = nanobind;

// A watched range of memory. Ranges are reused but never freed, so that the handler can walk the list at any time.
struct Range {
  std::atomic<uintptr_t> begin{0}, end{0}; // both 0: unused
  std::atomic<bool> taken{true}, faulted{false};
  Range* next = nullptr;
};

static std::atomic<Range*> ranges{nullptr};

#if defined(LLTOOL_HAS_SIGBUS)

static struct sigaction previous; // the handler that was installed before ours

static void pass_on(int number, siginfo_t* info, void* context) {
  static std::atomic<bool> was_passed_on{false};
  const bool sent = info->si_code <= 0; // a process sent the signal; no instruction caused it
  if (!sent && was_passed_on.exchange(true)) { // the other handler has returned, and the same instruction failed again
    signal(number, SIG_DFL);
    return;
  }
  if (previous.sa_flags & SA_SIGINFO) return previous.sa_sigaction(number, info, context);
  if (previous.sa_handler == SIG_IGN && sent) return;
  if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) return previous.sa_handler(number);
  sigaction(number, &previous, nullptr); // for the retried instruction
  if (sent) raise(number);
}

// Maps zeros from the missing page to the end of its range at once: doing so page by page could need more mappings than a
// process may have.
static void on_bus_error(int number, siginfo_t* info, void* context) {
  const int error = errno;
  const uintptr_t address = uintptr_t(info->si_addr), page = uintptr_t(sysconf(_SC_PAGESIZE));
  for (Range* range = info->si_code > 0 ? ranges.load() : nullptr; range; range = range->next) {
    const uintptr_t end = range->end.load();
    if (address < range->begin.load() || address >= end) continue;
    const uintptr_t start = address / page * page;
    if (mmap(reinterpret_cast<void*>(start), end - start, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
      break;
    range->faulted = true;
    errno = error;
    return;
  }
  errno = error;
  pass_on(number, info, context);
}

// Installs the handler, unless it is there. One that another library has installed meanwhile gets what is not ours.
static void install() {
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  struct sigaction found {};
  sigaction(SIGBUS, nullptr, &found);
  if ((found.sa_flags & SA_SIGINFO) && found.sa_sigaction == on_bus_error) return;
  previous = found;
  sigaction(SIGBUS, &action, nullptr);
}

static uintptr_t page_bytes() { return uintptr_t(sysconf(_SC_PAGESIZE)); }
#else
static void install() {}
static uintptr_t page_bytes() { return 1; }
#endif

static uintptr_t watch(uintptr_t address, uintptr_t bytes) {
  install();
  Range* range = ranges.load();
  while (range && range->taken.exchange(true)) range = range->next;
  if (!range) {
    range = new Range;
    range->next = ranges.load();
    while (!ranges.compare_exchange_weak(range->next, range)) {
    }
  }
  const uintptr_t page = page_bytes();
  range->faulted = false;
  range->begin = address / page * page;
  range->end = (address + bytes + page - 1) / page * page;
  return uintptr_t(range);
}

static Range& range_of(uintptr_t id) {
  for (Range* range = ranges.load(); range; range = range->next)
    if (uintptr_t(range) == id) return *range;
  throw std::invalid_argument("no such range");
}

NB_MODULE(_native, m) {
  m.def("guard", &install, "Installs the handler again, if another library has installed its own since the last watch.");
  m.def("watch", &watch, nb::arg("address"), nb::arg("bytes"),
        "Makes missing pages of this mapped memory read as zeros from now on. Returns the id of the watch.");
  m.def("has_faulted", [](uintptr_t id) { return range_of(id).faulted.load(); }, nb::arg("id"),
        "Whether a page of the watched memory was missing.");
  m.def("unwatch", [](uintptr_t id) {
    Range& range = range_of(id);
    range.end = 0;
    range.begin = 0;
    range.taken = false;
  }, nb::arg("id"), "Ends a watch; called when the memory is unmapped.");
}
