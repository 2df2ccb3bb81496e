// SPDX-License-Identifier: MIT
//
// tensorsmith/format/torch/legacy.hpp: checkpoints of torch 0.1.10 to 1.5: five pickles one behind the other, then raw storages.
//
// Included by read.hpp. Storages stay where they are; only the pickles and the eight bytes before each storage are read. Storages
// are little-endian on every host: torch has always written them so, whatever the file says of the machine that wrote it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/format/torch/pickle_stream.hpp"
#include "tensorsmith/format/torch/tensors.hpp"
#include "tensorsmith/format/torch/walk.hpp"

TENSORSMITH_BEGIN_NAMESPACE
namespace detail {

/// Bytes of the first pickle of a legacy stream, the number 0x1950A86A20F9469CFC6C; 0 if the text does not start with it. torch.save takes
/// a protocol from 2 to 5; from 4 on the number lies in a frame.
inline std::size_t legacy_magic_bytes(std::string_view text) noexcept {
  constexpr std::string_view number("\x8A\x0A\x6C\xFC\x9C\x46\xF9\x20\x6A\xA8\x50\x19\x2E", 13), frame("\x95\x0D\0\0\0\0\0\0\0", 9);
  if (text.size() < 2 || text[0] != '\x80' || text[1] < 2 || text[1] > 5) return 0;
  std::size_t at = 2;
  if (text.substr(at, frame.size()) == frame) at += frame.size();
  return text.substr(at, number.size()) == number ? at + number.size() : 0;
}

/// Bytes of one element of a storage class ("torch.QInt8Storage"), quantized ones too; 0 if elements share bytes.
inline std::uint64_t storage_unit(const torch_storage_id& declared) noexcept {
  if (declared.type) return bits_of(*declared.type) / 8;
  const std::string_view name = declared.class_name;
  const auto ends_with = [&](std::string_view end) { return name.size() >= end.size() && name.substr(name.size() - end.size()) == end; };
  if (ends_with("QInt32Storage")) return 4;
  return ends_with("QInt8Storage") || ends_with("QUInt8Storage") ? 1 : 0;
}

inline std::string shown_value(const pickle_document& doc, pickle_document::id n) {
  return doc.kind(n) == pickle_kind::integer ? std::to_string(doc.integer(n)) : std::string(name_of(doc.kind(n)));
}

/// Checks what a file says of the machine that wrote it. torch ignores it; a file that says what no torch ever said is none of its.
/// A big-endian machine is only noted. @fails malformed (no dict), unsupported (another protocol, other sizes, fields missing)
inline result<void> check_torch_system(const pickle_document& doc, std::int64_t version, const std::string& file,
                                       const std::string& place, std::vector<note>& notes) {
  using id = pickle_document::id;
  const auto value = [&](id dict, std::string_view key) {
    id found = pickle_document::nothing;
    const std::vector<id> pairs = doc.items(dict);
    for (std::size_t i = 0; i + 1 < pairs.size(); i += 2)
      if (doc.is_text(pairs[i], key)) found = pairs[i + 1];
    return found;
  };
  const auto refuse = [&](errc code, std::string what, std::string expected, id n) {
    return failure{.code = code, .what = std::move(what), .file = file, .place = place, .expected = std::move(expected),
                   .found = n == pickle_document::nothing ? "nothing" : shown_value(doc, n)};
  };
  const auto unknown = [&](const char* field, std::string expected, id n) {
    return refuse(errc::unsupported, "the file describes a system that torch does not know, by " + quoted(field),
                  std::move(expected), n);
  };
  const auto is_kind = [&](id n, pickle_kind kind) { return n != pickle_document::nothing && doc.kind(n) == kind; };
  const auto is_number = [&](id n, std::int64_t number) {
    return is_kind(n, pickle_kind::integer) && doc.integer(n) == number;
  };
  if (doc.kind(doc.root()) != pickle_kind::dict)
    return refuse(errc::malformed, "the pickle does not describe a system", "a dict", doc.root());
  const id protocol = value(doc.root(), "protocol_version"), little = value(doc.root(), "little_endian"),
           sizes = value(doc.root(), "type_sizes");
  if (!is_number(protocol, version)) return unknown("protocol_version", std::to_string(version), protocol);
  if (!is_kind(little, pickle_kind::boolean)) return unknown("little_endian", "a boolean", little);
  if (!is_kind(sizes, pickle_kind::dict)) return unknown("type_sizes", "a dict", sizes);
  struct row {
    const char *name, *expected;
    std::int64_t one, other;  // torch has always written 4 for long, which is its size in Python's standard layout
  };
  for (const row& r : {row{"short", "2", 2, 2}, row{"int", "4", 4, 4}, row{"long", "4 or 8", 4, 8}}) {
    const id n = value(sizes, r.name);
    if (!is_number(n, r.one) && !is_number(n, r.other)) return unknown(r.name, r.expected, n);
  }
  if (!doc.boolean(little))
    notes.push_back({note::level::info, file,
                     "The file was written on a big-endian machine; its storages are little-endian, as torch writes them everywhere."});
  return {};
}

/// One reading of a legacy stream. @pre the file starts with the magic number
class torch_legacy_reader {
 public:
  torch_legacy_reader(const std::shared_ptr<const byte_source>& file, const limits& bounds)
      : torch_legacy_reader(file, bounds, 0, file->size()) {}
  /// A stream that lies in bytes [begin, end) of a file.
  torch_legacy_reader(std::shared_ptr<const byte_source> file, const limits& bounds, std::uint64_t begin, std::uint64_t end)
      : file_(std::move(file)), limits_(bounds), begin_(begin), end_(end), pickles_(file_, begin, end, bounds, 64u << 10) {}

  result<torch_checkpoint> read(std::string_view select) {
    const std::string place = "object pickle";
    TENSORSMITH_TRY(const pickle_document doc, read_front());
    const std::uint64_t window = pickles_.window_offset();
    TENSORSMITH_CHECK(find_storages());
    torch_tensors tensors(
        doc, file_->name(), place, [this](std::string_view key) { return record(key); }, limits_);
    tensors.pickle_lies_in(file_, window);
    TENSORSMITH_TRY(torch_checkpoint out, torch_walk(doc, tensors, file_->name(), place, limits_).run(select));
    tensors.note_shared_bytes();
    note_unused(tensors);
    notes_.insert(notes_.end(), tensors.notes().begin(), tensors.notes().end());
    out.notes = std::move(notes_);
    return out;
  }

  /// Reads a stream whose object is a storage.
  result<std::pair<torch_storage_id, torch_record>> read_storage() {
    TENSORSMITH_TRY(const pickle_document doc, read_front());
    if (doc.kind(doc.root()) != pickle_kind::storage)
      return fail(errc::malformed, "object pickle", "the packed storage is something else", "a storage", shown_value(doc, doc.root()));
    TENSORSMITH_CHECK(find_storages());
    torch_storage_id declared = storage_of(doc, doc.root());
    TENSORSMITH_TRY(torch_record found, record(declared.key));
    return std::pair(std::move(declared), std::move(found));
  }

 private:
  using id = pickle_document::id;
  struct stored {
    torch_storage_id declared;
    std::uint64_t offset = 0, bytes = 0;
    bool found = false;
  };

  /// Everything before the list of keys; returns the object.
  result<pickle_document> read_front() {
    std::array<char, 24> head{};
    const auto start = std::span(head).first(static_cast<std::size_t>(std::min<std::uint64_t>(head.size(), end_ - begin_)));
    TENSORSMITH_CHECK(file_->read_at(begin_, std::as_writable_bytes(start)));
    const std::size_t magic = legacy_magic_bytes({start.data(), start.size()});
    if (magic == 0)
      return fail(errc::unsupported, "byte offset " + std::to_string(begin_), "there is no legacy stream", "torch's magic number",
                  std::to_string(end_ - begin_) + " other bytes");
    pickles_.go_to(begin_ + magic);
    TENSORSMITH_CHECK(check_protocol());
    TENSORSMITH_CHECK(check_system());
    TENSORSMITH_TRY(pickle_document doc, pickles_.next("object pickle", persistent_ids::storage_views));
    TENSORSMITH_CHECK(declare_storages(doc));
    return doc;
  }

  failure fail(errc code, std::string place, std::string what, std::string expected, std::string found,
               std::string advice = {}) const {
    return failure{.code = code,
                   .what = std::move(what),
                   .file = file_->name(),
                   .place = std::move(place),
                   .expected = std::move(expected),
                   .found = std::move(found),
                   .advice = std::move(advice)};
  }

  result<void> check_protocol() {
    const std::string place = "byte offset " + std::to_string(pickles_.at());
    TENSORSMITH_TRY(const pickle_document doc, pickles_.next("protocol pickle", persistent_ids::none));
    const id n = doc.root();
    if (doc.kind(n) == pickle_kind::integer && doc.integer(n) == 1001) return {};
    return fail(errc::unsupported, place, "the protocol of the legacy stream is not known", "1001", shown_value(doc, n));
  }

  result<void> check_system() {
    const std::string place = "byte offset " + std::to_string(pickles_.at());
    TENSORSMITH_TRY(const pickle_document doc, pickles_.next("system pickle", persistent_ids::none));
    return check_torch_system(doc, 1001, file_->name(), place, notes_);
  }

  /// Collects every storage that the pickle names anywhere: each of them takes up room in the file.
  result<void> declare_storages(const pickle_document& doc) {
    for (id n = 0; n < doc.size(); ++n) {
      if (doc.kind(n) != pickle_kind::storage) continue;
      torch_storage_id declared = storage_of(doc, n);
      const auto [at, fresh] = storages_.try_emplace(declared.key);
      if (fresh) {
        at->second.declared = std::move(declared);
        continue;
      }
      const torch_storage_id& before = at->second.declared;
      if (before.class_name != declared.class_name || before.numel != declared.numel)
        return fail(errc::malformed, "object pickle, byte offset " + std::to_string(doc.at(n)),
                    "storage " + quoted(declared.key) + " is declared twice in different ways",
                    std::to_string(before.numel) + " elements of " + quoted(before.class_name),
                    std::to_string(declared.numel) + " of " + quoted(declared.class_name));
    }
    return {};
  }

  /// Reads the list of keys and walks over the storages, which follow in its order.
  result<void> find_storages() {
    TENSORSMITH_TRY(const pickle_document doc, pickles_.next("key pickle", persistent_ids::none));
    if (doc.kind(doc.root()) != pickle_kind::list)
      return fail(errc::malformed, "key pickle", "the storage keys are no list", "a list", shown_value(doc, doc.root()));
    std::uint64_t at = pickles_.at();
    const std::uint64_t size = end_;
    std::size_t found = 0;
    for (const id n : doc.items(doc.root())) {
      if (doc.kind(n) != pickle_kind::text)
        return fail(errc::malformed, "key pickle", "a storage key is no string", "a string", shown_value(doc, n));
      const std::string key(doc.text(n)), place = "storage " + quoted(key);
      const auto known = storages_.find(key);
      if (known == storages_.end())
        return fail(errc::malformed, place, "the list of keys names a storage that the pickle does not", "a key of the pickle",
                    quoted(key));
      stored& s = known->second;
      if (s.found) return fail(errc::malformed, place, "the list of keys names the storage twice", "once", "twice");
      s.found = true;
      ++found;
      const std::uint64_t unit = storage_unit(s.declared);
      if (unit == 0)
        return fail(errc::unsupported, place, "the storage's element type is not supported", "a type of whole bytes",
                    quoted(s.declared.class_name));
      if (size - at < 8)
        return fail(errc::malformed, place, "the file ends before the storage", "8 bytes at byte offset " + std::to_string(at),
                    std::to_string(size - at), "is the download incomplete?");
      std::byte head[8];
      TENSORSMITH_CHECK(file_->read_at(at, head));
      std::uint64_t numel = 0;
      for (std::size_t i = 8; i-- > 0;) numel = (numel << 8) | std::to_integer<std::uint64_t>(head[i]);
      if (numel != s.declared.numel)
        return fail(errc::malformed, place + ", byte offset " + std::to_string(at),
                    "the storage has another number of elements than the pickle says", std::to_string(s.declared.numel),
                    std::to_string(static_cast<std::int64_t>(numel)));
      at += 8;
      if (numel > (size - at) / unit)
        return fail(errc::malformed, place, "the file ends inside the storage",
                    to_text(static_cast<wide_count>(numel) * unit) + " bytes at byte offset " + std::to_string(at),
                    std::to_string(size - at), "is the download incomplete?");
      s.offset = at;
      s.bytes = numel * unit;
      at += s.bytes;
    }
    if (found != storages_.size())
      for (const auto& [key, s] : storages_)
        if (!s.found)
          return fail(errc::malformed, "storage " + quoted(key), "the list of keys lacks a storage of the pickle",
                      std::to_string(storages_.size()) + " keys", std::to_string(found));
    if (at != size)
      return fail(errc::malformed, "byte offset " + std::to_string(at), "bytes follow the last storage", "the end of the file",
                  std::to_string(size - at) + " bytes");
    return {};
  }

  result<torch_record> record(std::string_view key) const {
    const auto at = storages_.find(std::string(key));  // every storage of the pickle is there
    if (at == storages_.end())
      return fail(errc::internal, "storage " + quoted(key), "the storage was not found", "a storage of the pickle", "none");
    return torch_record{file_, at->second.offset, at->second.bytes, nullptr, "storage " + quoted(key)};
  }

  void note_unused(const torch_tensors& tensors) {
    const std::vector<std::string> used = tensors.used_keys();
    std::size_t count = 0;
    std::uint64_t bytes = 0;
    for (const auto& [key, s] : storages_) {
      if (std::binary_search(used.begin(), used.end(), key)) continue;
      ++count;
      bytes += s.bytes;
    }
    if (count > 0)
      notes_.push_back({note::level::info, file_->name(),
                        std::to_string(count) + (count == 1 ? " storage (" : " storages (") + std::to_string(bytes) +
                            " bytes) for no tensor that is read"});
  }

  std::shared_ptr<const byte_source> file_;
  limits limits_;
  std::uint64_t begin_, end_;
  pickle_stream pickles_;
  std::map<std::string, stored> storages_;
  std::vector<note> notes_;
};

}  // namespace detail
TENSORSMITH_END_NAMESPACE
