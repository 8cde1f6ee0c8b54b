// Checks which places in the arena an operation reads and writes, before it is added.
#pragma once
#include <algorithm>
#include <vector>

#include "executor.h"

namespace lltool {

// Two buffers must be the same or disjoint: if they overlapped in part, threads on different rows would collide. An
// operation may read only what an earlier one has written, so that no result depends on old memory contents.
class Places {
public:
  Places(int64_t arena_width, int64_t vocabulary) : arena_width_(arena_width), vocabulary_(vocabulary) {}

  bool in_head() const { return in_head_; }

  // Throws std::invalid_argument for a buffer outside the arena, or in the logits before the head begins.
  void require_inside(Buffer b) const {
    if (b.offset == logits)
      return require(in_head_ && b.width == vocabulary_, "only the head writes logits, and as wide as the vocabulary");
    require(b.offset >= 0 && b.width > 0 && b.width <= arena_width_ && b.offset <= arena_width_ - b.width,
            "a buffer that does not lie in the arena");
    for (const Buffer& known : known_)
      require(known == b || known.offset + known.width <= b.offset || b.offset + b.width <= known.offset,
              "a buffer that overlaps another in part");
  }

  void require_made(Buffer b) const {
    require_inside(b);
    require(contains(made_, b), "an operation reads what none before it has made");
  }

  // The input of the head must not be overwritten: it is read again for each block of rows.
  void require_free(Buffer b) const {
    require_inside(b);
    require(!in_head_ || !(b == selected_), "the head writes into what it begins with");
  }

  void make(Buffer b) {
    if (b.offset != logits && !contains(known_, b)) known_.push_back(b);
    if (!contains(made_, b)) made_.push_back(b);
  }

  // From here on, operations run over rows of logits, so buffers written before, with rows of tokens, are not valid.
  void begin_head(Buffer selected) {
    in_head_ = true;
    selected_ = selected;
    made_.clear();
  }

  bool has_logits() const { return contains(made_, {logits, vocabulary_}); }

private:
  static constexpr int64_t logits = -1; // the offset that means the logits
  static bool contains(const std::vector<Buffer>& all, Buffer b) { return std::find(all.begin(), all.end(), b) != all.end(); }

  const int64_t arena_width_, vocabulary_;
  std::vector<Buffer> known_, made_;
  Buffer selected_{};
  bool in_head_ = false;
};

// The places that the column groups of a linear use. Threads run the operations on a group without waiting for each
// other. So no group may write what another group reads or writes, nor what the linear reads.
class GroupPlaces {
public:
  GroupPlaces() = default;
  GroupPlaces(Buffer x, const std::vector<int64_t>& widths) : x_(x) {
    for (int64_t width : widths) groups_.push_back({width, {}, {}});
  }

  void read(size_t group, Buffer b) { groups_[group].read.push_back(b); }
  void write(size_t group, Buffer b) { groups_[group].written.push_back(b); }

  // Throws if an operation on a group may not read or write these places; `written` is null if it writes nothing.
  void require_apart(size_t group, const std::vector<Buffer>& read, const Buffer* written) const {
    require(group < groups_.size(), "the linear has no such group of columns");
    bool fine = !written || (!(*written == x_) && written->width == groups_[group].width);
    for (const Buffer& b : read) fine &= b.width == groups_[group].width;
    for (size_t other = 0; other < groups_.size(); ++other) {
      if (other == group) continue;
      const Used& used = groups_[other];
      for (const Buffer& b : read) fine &= !contains(used.written, b);
      if (written) fine &= !contains(used.written, *written) && !contains(used.read, *written);
    }
    require(fine, "a group of columns that has another width, or uses what another one uses");
  }

private:
  struct Used {
    int64_t width;
    std::vector<Buffer> read, written;
  };
  static bool contains(const std::vector<Buffer>& all, Buffer b) { return std::find(all.begin(), all.end(), b) != all.end(); }

  Buffer x_{};
  std::vector<Used> groups_;
};

} // namespace lltool
