// SPDX-License-Identifier: MIT
//
// tests/fuzz/property.hpp: what must hold for every input: refusals are sentences, tensors survive being written and read again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fuzz/memory_bound.hpp"
#include "tensorsmith/core/error.hpp"
#include "tensorsmith/core/job.hpp"
#include "tensorsmith/tensor/byte_io.hpp"
#include "tensorsmith/tensor/catalog.hpp"
#include "tensorsmith/tensor/executor.hpp"

namespace fuzz {

using tensorsmith::catalog;
using tensorsmith::catalog_entry;
using tensorsmith::tensor_ref;

/// Ends the process: a property does not hold.
[[noreturn]] inline void violated(const char* property, const std::string& detail) {
  std::fprintf(stderr, "PROPERTY: %s: %s\n", property, detail.c_str());
  std::abort();
}

/// What a person reads is one printable line of UTF-8.
inline void check_line(const std::string& text) {
  std::size_t bad = 0;
  if (!tensorsmith::is_utf8(text, bad)) violated("a message is UTF-8", text);
  for (const char c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) violated("a message is one printable line", text);
}

/// A refusal must be a short printable line and must not blame ourselves.
inline void check_refusal(const tensorsmith::failure& error) {
  const std::string text = error.message();
  if (error.what.empty()) violated("a refusal says what is wrong", text);
  if (error.code == tensorsmith::errc::internal) violated("bad input is no internal error", text);
  check_line(text);
  if (text.size() > 4096) violated("a message is short", std::to_string(text.size()) + " bytes: " + text.substr(0, 500));
}

inline void check_notes(const std::vector<tensorsmith::note>& notes) {
  for (const tensorsmith::note& n : notes) check_line(n.text);
}

/// A source whose bytes are not in memory as far as readers can tell.
class distant_source final : public tensorsmith::byte_source {
 public:
  distant_source(std::string name, std::vector<std::byte> bytes) : inner_(std::move(name), std::move(bytes)) {}
  std::uint64_t size() const noexcept override { return inner_.size(); }
  const std::string& name() const noexcept override { return inner_.name(); }
  tensorsmith::result<void> read_at(std::uint64_t offset, std::span<std::byte> out) const override { return inner_.read_at(offset, out); }

 private:
  tensorsmith::memory_source inner_;
};

/// An input as a file. Every other size is presented as a file that is not in memory.
inline std::shared_ptr<const tensorsmith::byte_source> as_file(std::span<const std::uint8_t> input, std::string name) {
  std::vector<std::byte> bytes(input.size());
  if (!input.empty()) std::memcpy(bytes.data(), input.data(), input.size());
  if (input.size() % 2 == 0) return std::make_shared<tensorsmith::memory_source>(std::move(name), std::move(bytes));
  return std::make_shared<distant_source>(std::move(name), std::move(bytes));
}
inline std::string_view as_text(std::span<const std::uint8_t> input) {
  return {reinterpret_cast<const char*>(input.data()), input.size()};
}

/// The ordinary limits, but for the values of a pickle that may be looked at: small files can ask for a second's work. For one
/// size in four, limits so low that inputs of a few hundred bytes meet them.
inline tensorsmith::limits limits_for(std::size_t input_bytes) {
  tensorsmith::limits out;
  out.pickle_opcodes = 4000;
  if (input_bytes % 4 != 3) return out;
  out.safetensors_header_bytes = 1024;
  out.tensors = 8;
  out.name_bytes = 32;
  out.rank = 4;
  out.elements = 1u << 20;
  out.json_depth = 8;
  out.pickle_bytes = 2048;
  out.pickle_opcodes = 200;
  out.pickle_depth = 6;
  out.zip_entries = 6;
  out.zip_directory_bytes = 600;
  out.expansion = 4;
  return out;
}

inline tensorsmith::job one_thread() {
  tensorsmith::job run;
  run.threads = 1;
  return run;
}

/// The tensors of a catalog that are small, and their bytes. False if one cannot be read: then the file is damaged behind its
/// headers, and writing it fails in the same way.
struct small_tensors {
  catalog tensors;
  std::vector<std::vector<std::byte>> bytes;
};
inline bool take_small(const catalog& from, small_tensors& out) {
  constexpr std::size_t most_each = 8192, most_together = 65536, most_count = 16;
  std::size_t together = 0;
  for (const catalog_entry& e : from.entries()) {
    const tensorsmith::tensor_info& info = e.tensor.info();
    if (info.elements() > (std::uint64_t{1} << 48)) violated("a tensor has fewer than 2^48 elements", e.name);
    if (info.bytes() > most_each || together + info.bytes() > most_together || out.tensors.size() >= most_count) continue;
    auto bytes = tensorsmith::materialize(e.tensor, one_thread());
    if (!bytes) return check_refusal(bytes.error()), false;
    together += info.bytes();
    out.bytes.push_back(std::move(*bytes));
    if (!out.tensors.add(e.name, e.tensor, e.origin)) violated("names are unique", e.name);
  }
  return true;
}

/// Compares what was read again with what was written. `names_kept` is false where a format renames.
inline void check_same(const small_tensors& written, const catalog& read, const char* format) {
  if (read.size() != written.tensors.size())
    violated(format, std::to_string(written.tensors.size()) + " tensors written, " + std::to_string(read.size()) + " read");
  for (std::size_t i = 0; i < written.tensors.size(); ++i) {
    const catalog_entry& before = written.tensors.entries()[i];
    const catalog_entry* const after = read.find(before.name);
    if (after == nullptr) violated(format, "no tensor " + tensorsmith::quoted(before.name));
    if (after->tensor.type() != before.tensor.type() || after->tensor.shape() != before.tensor.shape())
      violated(format, tensorsmith::quoted(before.name) + " changed its type or shape");
    const auto bytes = tensorsmith::materialize(after->tensor, one_thread());
    if (!bytes) violated(format, bytes.error().message());
    if (*bytes != written.bytes[i]) violated(format, tensorsmith::quoted(before.name) + " changed its bytes");
  }
}

}  // namespace fuzz
