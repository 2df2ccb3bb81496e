// SPDX-License-Identifier: MIT
//
// tensorsmith/format/torch/pickle_stream.hpp: pickles that stand one behind the other in a file and do not say how long they are.
//
// Included by legacy.hpp, tar.hpp and bare.hpp. Only as much of the file is read as the pickles turn out to need: a window that
// starts small and doubles.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/core/job.hpp"
#include "tensorsmith/format/torch/pickle.hpp"
#include "tensorsmith/tensor/byte_io.hpp"

TENSORSMITH_BEGIN_NAMESPACE
namespace detail {

class pickle_stream {
 public:
  /// Pickles of `file` in bytes [begin, end). Offsets in messages count from `begin`. `window`: bytes that are read at first.
  pickle_stream(std::shared_ptr<const byte_source> file, std::uint64_t begin, std::uint64_t end, const limits& bounds,
                std::size_t window)
      : file_(std::move(file)), begin_(begin), at_(begin), end_(end), limits_(bounds), first_window_(window) {}

  /// Where the next pickle (or whatever follows) starts, from the start of the file.
  std::uint64_t at() const noexcept { return at_; }
  /// Goes on at `offset`, behind bytes that are no pickles. @pre offset <= end
  void go_to(std::uint64_t offset) noexcept { at_ = offset; }
  /// Where the bytes of the latest pickle's document start in the file.
  std::uint64_t window_offset() const noexcept { return window_at_; }

  /// Reads the next pickle. @fails as parse_pickle; limit (a pickle that does not end within limits::pickle_bytes)
  result<pickle_document> next(const std::string& entry, persistent_ids ids) {
    if (!window_ || at_ < window_at_ || at_ > window_at_ + window_->size()) TENSORSMITH_CHECK(read_window(at_, first_window_));
    for (;;) {
      const auto start = static_cast<std::size_t>(at_ - window_at_);
      pickle_machine machine(window_, start, file_->name(), entry, limits_, ids, static_cast<std::size_t>(window_at_ - begin_));
      auto read = machine.run(false);
      if (read) {
        at_ += read.value().end() - start;
        return read;
      }
      if (!machine.starved() || window_at_ + window_->size() == end_) return read;
      if (window_->size() >= limits_.pickle_bytes)
        return failure{.code = errc::limit,
                       .what = "the pickle does not end where it should",
                       .file = file_->name(),
                       .place = entry,
                       .expected = "an end within " + std::to_string(limits_.pickle_bytes) + " bytes",
                       .found = "more",
                       .advice = "raise it with --max-pickle"};
      TENSORSMITH_CHECK(read_window(at_, 2 * window_->size()));
    }
  }

 private:
  result<void> read_window(std::uint64_t from, std::uint64_t bytes) {
    bytes = std::min({bytes, std::max<std::uint64_t>(limits_.pickle_bytes, 1), end_ - from});
    std::vector<std::byte> window(static_cast<std::size_t>(bytes));
    TENSORSMITH_CHECK(file_->read_at(from, window));
    window_ = std::make_shared<const std::vector<std::byte>>(std::move(window));
    window_at_ = from;
    return {};
  }

  std::shared_ptr<const byte_source> file_;
  std::uint64_t begin_, at_, end_;
  limits limits_;
  std::size_t first_window_;
  std::shared_ptr<const std::vector<std::byte>> window_;
  std::uint64_t window_at_ = 0;
};

}  // namespace detail
TENSORSMITH_END_NAMESPACE
