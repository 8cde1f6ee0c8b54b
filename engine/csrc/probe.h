// What the machine can do at most: plain reading, and products of operands that lie in registers.
#pragma once
#include <cstdint>
#include <string>

namespace lltool {

// Bytes a second that `threads` read of `data` together, in the best of as many passes as fit `seconds`.
double probe_read(const std::string& isa, int threads, const uint8_t* data, int64_t bytes, double seconds);

// Multiply-adds a second of `kind`: int8, int16 or float32.
double probe_multiply(const std::string& isa, int threads, const std::string& kind, double seconds);

} // namespace lltool
