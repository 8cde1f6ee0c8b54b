// Which instruction set the kernels use, chosen once at run time.
#pragma once
#include <string>
#include <vector>

namespace lltool {

enum class Isa { scalar, avx2, avx512, neon, neon_dot }; // neon_dot: with four-byte dot products

std::vector<std::string> available_isas(); // best first; what this processor can run

// The instruction set of that name. Throws std::invalid_argument with what there is to choose from.
Isa find_isa(const std::string& name);

} // namespace lltool
