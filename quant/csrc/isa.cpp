#include "isa.h"

#include <stdexcept>

#include "isas.h" // which CMake writes

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace lltool {

// Whether the processor has a feature, by the name that LLTOOL_ISAS gives it.
#if defined(__x86_64__)
#define HAS(feature) __builtin_cpu_supports(#feature)
#elif defined(__aarch64__) && defined(__linux__)
#define HAS(feature) (getauxval(AT_HWCAP) & HWCAP_##feature)
#else
#define HAS(feature) true // every ARM processor that runs macOS has it
#endif

#define ROW(name, runs) {#name, [] { return bool(runs); }},
static const struct {
  const char* name;
  bool (*runs)();
} all[] = {LLTOOL_ISAS(ROW)};
#undef ROW

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const auto& isa : all)
    if (isa.runs()) names.push_back(isa.name);
  return names;
}

void require_isa(const std::string& name) {
  std::string choices;
  for (const auto& available : available_isas()) {
    if (name == available) return;
    choices += (choices.empty() ? "" : ", ") + available;
  }
  throw std::invalid_argument("instruction set '" + name + "' is not one of " + choices);
}

} // namespace lltool
