// Argument checks for the bindings: invalid arguments from Python cause an exception and nothing worse.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace lltool {

constexpr int max_threads = 4096; // more than any machine has; a mistyped number must not start a million threads

// The number of consecutive weights that are stored as one block, and its bytes; zeros for a type without native code.
struct Layout {
  int64_t block = 0, bytes = 0;
};

inline void require(bool fine, const char* wanted) {
  if (!fine) throw std::invalid_argument(wanted);
}
inline void require_threads(int threads) {
  require(threads >= 1 && threads <= max_threads, "threads must be at least 1 and at most 4096");
}

// The product of sizes. Throws std::invalid_argument if it overflows an int64_t.
template <class... Sizes> int64_t checked_mul(int64_t first, Sizes... others) {
  bool fine = first >= 0;
  const auto multiply = [&](int64_t by) { fine &= by >= 0 && !__builtin_mul_overflow(first, by, &first); };
  (multiply(int64_t(others)), ...);
  require(fine, "the sizes multiply to more than any memory holds");
  return first;
}

// Whether rows of `bytes` bytes hold exactly `columns` weights.
inline bool is_row(Layout layout, int64_t columns, int64_t bytes) {
  return layout.block > 0 && columns >= 0 && columns % layout.block == 0 && bytes % layout.bytes == 0 &&
         bytes / layout.bytes == columns / layout.block;
}

// Throws std::invalid_argument unless rows of `bytes` bytes hold exactly `columns` weights of the type.
inline void require_row(const char* where, int type, Layout layout, int64_t columns, int64_t bytes) {
  if (is_row(layout, columns, bytes)) return;
  const std::string what = std::string(where) + ": ";
  if (layout.block <= 0) throw std::invalid_argument(what + "no native format of type " + std::to_string(type));
  throw std::invalid_argument(what + "rows of " + std::to_string(columns) + " weights in " + std::to_string(bytes) +
                              " bytes; type " + std::to_string(type) + " has " + std::to_string(layout.bytes) +
                              " bytes for each " + std::to_string(layout.block));
}

// Throws std::invalid_argument unless the array's items are aligned as their type requires.
template <class Array> void require_aligned(const Array& array) {
  using Item = std::remove_pointer_t<decltype(array.data())>;
  require(reinterpret_cast<uintptr_t>(array.data()) % alignof(Item) == 0, "an array is not aligned to its items");
}

} // namespace lltool
