// Measures the machine's limits: plain reading, and products of operands in registers.
#pragma once
#include <cstdint>
#include <string>

namespace lltool {

// Bytes per second at which `threads` read `data` together, in the fastest of the passes that fit in `seconds`.
double probe_read(const std::string& isa, int threads, const uint8_t* data, int64_t bytes, double seconds);

// Multiply-adds per second of `kind`: int8, int16 or float32.
double probe_multiply(const std::string& isa, int threads, const std::string& kind, double seconds);

} // namespace lltool
