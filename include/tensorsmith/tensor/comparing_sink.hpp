// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/comparing_sink.hpp: a sink that writes nothing and compares: for verifying an output before it is published.
//
// Include this in writers: run the same work a second time into a comparing_sink over the file that was written.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "tensorsmith/tensor/byte_io.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Compares what is written into it with the bytes that lie at the same offset of a source. Thread-safe.
/// @fails internal with the first offset that differs (of this call), io
class comparing_sink final : public byte_sink {
 public:
  explicit comparing_sink(std::shared_ptr<const byte_source> written) : written_(std::move(written)) {}

  const std::string& name() const noexcept override { return written_->name(); }

  result<void> write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
    if (offset > written_->size() || bytes.size() > written_->size() - offset)
      return failure{.code = errc::internal, .what = "the output that was written is too short", .file = name(),
                     .place = "byte offset " + std::to_string(offset), .expected = std::to_string(bytes.size()) + " bytes",
                     .found = std::to_string(offset > written_->size() ? 0 : written_->size() - offset)};
    if (const auto there = written_->resident(); !there.empty() || bytes.empty())
      return bytes.empty() ? result<void>() : compare(offset, bytes, there.data() + offset);
    constexpr std::size_t block = 256u << 10;  // stays in the L2 cache between the read and the comparison
    const std::size_t most = std::min(block, bytes.size());
    const auto buffer = std::make_unique_for_overwrite<std::byte[]>(most);
    while (!bytes.empty()) {
      const std::size_t count = std::min(most, bytes.size());
      TENSORSMITH_CHECK(written_->read_at(offset, {buffer.get(), count}));
      TENSORSMITH_CHECK(compare(offset, bytes.first(count), buffer.get()));
      bytes = bytes.subspan(count);
      offset += count;
    }
    return {};
  }

 private:
  result<void> compare(std::uint64_t offset, std::span<const std::byte> bytes, const std::byte* there) const {
    if (std::memcmp(bytes.data(), there, bytes.size()) == 0) return {};
    std::size_t at = 0;
    while (bytes[at] == there[at]) ++at;
    return failure{.code = errc::internal, .what = "the output does not hold what was written into it", .file = name(),
                   .place = "byte offset " + std::to_string(offset + at), .expected = "byte " + std::to_string(std::to_integer<int>(bytes[at])),
                   .found = std::to_string(std::to_integer<int>(there[at])),
                   .advice = "run again; if it comes back, check this machine's memory and disk"};
  }

  std::shared_ptr<const byte_source> written_;
};

TENSORSMITH_END_NAMESPACE
