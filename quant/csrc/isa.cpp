#include "isa.h"

#include <stdexcept>
#if defined(LLTOOL_ARM64) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace lltool {

static bool runs(Isa isa) {
#if defined(LLTOOL_X86)
  __builtin_cpu_init();
  switch (isa) {
  case Isa::scalar: return true;
  case Isa::avx2:
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  case Isa::avx512:
    return runs(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
  default: return false;
  }
#elif defined(LLTOOL_ARM64)
  switch (isa) {
  case Isa::scalar:
  case Isa::neon: return true; // every 64-bit ARM processor has it
#if defined(__linux__)
  case Isa::neon_dot: return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__APPLE__)
  case Isa::neon_dot: return true; // since the first that ran macOS
#endif
  default: return false;
  }
#else
  return isa == Isa::scalar;
#endif
}

static const struct {
  Isa isa;
  const char* name;
} all[] = {
    {Isa::avx512, "avx512"}, {Isa::avx2, "avx2"}, {Isa::neon_dot, "neon_dot"}, {Isa::neon, "neon"}, {Isa::scalar, "scalar"},
};

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const auto& entry : all)
    if (runs(entry.isa)) names.push_back(entry.name);
  return names;
}

Isa find_isa(const std::string& name) {
  std::string choices;
  for (const auto& entry : all) {
    if (!runs(entry.isa)) continue;
    if (name == entry.name) return entry.isa;
    choices += (choices.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw std::invalid_argument("instruction set '" + name + "' is not one of " + choices);
}

} // namespace lltool
