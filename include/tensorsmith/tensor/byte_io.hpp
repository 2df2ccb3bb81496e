// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/byte_io.hpp: where bytes come from and go to, without saying what a file is. io/file.hpp implements both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/core/error.hpp"

TENSORSMITH_BEGIN_NAMESPACE

class file_source;

/// Bytes that can be read at any offset from any thread.
class byte_source {
 public:
  virtual ~byte_source() = default;
  /// Total bytes.
  virtual std::uint64_t size() const noexcept = 0;
  /// The file as the user gave it, for messages.
  virtual const std::string& name() const noexcept = 0;
  /// Fills `out` from `offset`. @fails io (system call), malformed (fewer bytes than asked for).
  virtual result<void> read_at(std::uint64_t offset, std::span<std::byte> out) const = 0;
  /// Says that a range will be read soon, in no order. Advisory.
  virtual void will_need(std::uint64_t /*offset*/, std::uint64_t /*length*/) const noexcept {}
  /// The open file descriptor of a plain file, or -1.
  virtual int descriptor() const noexcept { return -1; }
  /// True if the bytes are a plain file's, from its first to its last.
  virtual bool in_file() const noexcept { return descriptor() >= 0; }
  /// This, if it is io/file.hpp's: who copies inside the kernel asks.
  virtual const file_source* as_file() const noexcept { return nullptr; }
  /// Asked before publishing what was read from here. @fails integrity if the bytes may have changed since the source was opened.
  virtual result<void> check_unchanged() const { return {}; }
  /// The bytes where they lie if they are in memory already, else an empty span.
  virtual std::span<const std::byte> resident() const noexcept { return {}; }
};

/// Bytes that can be written at any offset from any thread; the size was fixed beforehand.
class byte_sink {
 public:
  virtual ~byte_sink() = default;
  /// The file as the user will see it, for messages.
  virtual const std::string& name() const noexcept = 0;
  /// Writes all of `bytes` at `offset`. @fails io, no_space.
  virtual result<void> write_at(std::uint64_t offset, std::span<const std::byte> bytes) = 0;
  /// The place of the bytes if they are plain memory, which may then be written directly, else an empty span.
  virtual std::span<std::byte> resident() noexcept { return {}; }
};

/// A source over owned bytes.
class memory_source final : public byte_source {
 public:
  memory_source(std::string name, std::vector<std::byte> bytes) : name_(std::move(name)), bytes_(std::move(bytes)) {}
  std::uint64_t size() const noexcept override { return bytes_.size(); }
  const std::string& name() const noexcept override { return name_; }
  std::span<const std::byte> resident() const noexcept override { return bytes_; }
  result<void> read_at(std::uint64_t offset, std::span<std::byte> out) const override {
    if (offset > bytes_.size() || out.size() > bytes_.size() - offset)
      return failure{.code = errc::malformed, .what = "read past the end", .file = name_,
                     .place = "byte offset " + std::to_string(offset),
                     .expected = std::to_string(out.size()) + " bytes",
                     .found = std::to_string(offset > bytes_.size() ? 0 : bytes_.size() - offset)};
    if (!out.empty()) std::memcpy(out.data(), bytes_.data() + offset, out.size());
    return {};
  }

 private:
  std::string name_;
  std::vector<std::byte> bytes_;
};

/// A sink over bytes that the caller owns.
class memory_sink final : public byte_sink {
 public:
  explicit memory_sink(std::span<std::byte> bytes, std::string name = "memory") : bytes_(bytes), name_(std::move(name)) {}
  const std::string& name() const noexcept override { return name_; }
  std::span<std::byte> resident() noexcept override { return bytes_; }
  result<void> write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
    if (offset > bytes_.size() || bytes.size() > bytes_.size() - offset)
      return failure{.code = errc::internal, .what = "write past the planned end", .file = name_,
                     .place = "byte offset " + std::to_string(offset)};
    if (!bytes.empty()) std::memcpy(bytes_.data() + offset, bytes.data(), bytes.size());
    return {};
  }

 private:
  std::span<std::byte> bytes_;
  std::string name_;
};

TENSORSMITH_END_NAMESPACE
