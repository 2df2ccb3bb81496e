// SPDX-License-Identifier: MIT
//
// tensorsmith/format/torch/tar.hpp: checkpoints of torch up to 0.1.9: a tar archive of sys_info, pickle, tensors and storages.
//
// Included by read.hpp. Members are found by their headers and read where they lie; nothing is ever extracted. An archive with
// links, folders, paths or other members is refused.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/format/torch/legacy.hpp"
#include "tensorsmith/format/torch/pickle_stream.hpp"
#include "tensorsmith/format/torch/tensors.hpp"
#include "tensorsmith/format/torch/walk.hpp"

TENSORSMITH_BEGIN_NAMESPACE
namespace detail {

/// Where a member of a tar archive lies.
struct tar_member {
  std::uint64_t offset = 0, bytes = 0;
};

/// Reads the headers of a tar archive that holds nothing but torch's four members.
class tar_reader {
 public:
  explicit tar_reader(const byte_source& file) : file_(file) {}

  result<std::map<std::string, tar_member>> read() {
    std::map<std::string, tar_member> members;
    std::uint64_t at = 0;
    for (;;) {
      std::array<std::byte, 512> head{};
      TENSORSMITH_TRY(const bool more, read_header(at, head));
      if (!more) break;
      TENSORSMITH_TRY(const std::uint64_t size, size_of(at, head));
      const char kind = static_cast<char>(head[156]);
      const std::string name = text(head, 0, 100);
      if (kind == 'x') {
        TENSORSMITH_CHECK(read_extended(at, size));
      } else {
        TENSORSMITH_CHECK(check_member(at, head, kind, name));
        const std::uint64_t bytes = std::exchange(pax_size_, std::nullopt).value_or(size);
        TENSORSMITH_CHECK(fits(at, bytes));
        if (!members.emplace(name, tar_member{at + 512, bytes}).second)
          return fail(errc::malformed, at, "the tar archive has two members of one name", "one", quoted(name));
        at += 512 + padded(bytes);
        pending_ = false;
        continue;
      }
      at += 512 + padded(size);
    }
    if (pending_) return fail(errc::malformed, at, "an extended header describes no member", "a member", "the end");
    return members;
  }

 private:
  static std::uint64_t padded(std::uint64_t bytes) noexcept { return (bytes + 511) / 512 * 512; }
  failure fail(errc code, std::uint64_t at, std::string what, std::string expected, std::string found) const {
    return failure{.code = code,
                   .what = std::move(what),
                   .file = file_.name(),
                   .place = "byte offset " + std::to_string(at),
                   .expected = std::move(expected),
                   .found = std::move(found)};
  }
  static std::string text(std::span<const std::byte> head, std::size_t from, std::size_t most) {
    std::string out(reinterpret_cast<const char*>(head.data() + from), most);
    out.resize(std::min(out.find('\0'), out.size()));
    return out;
  }

  /// False at the end of the archive: a block of zeros with nothing but zeros behind it.
  result<bool> read_header(std::uint64_t at, std::array<std::byte, 512>& head) const {
    if (at >= file_.size() || file_.size() - at < 512)
      return fail(errc::malformed, at, "the tar archive has no end", "512 bytes of a header, or of zeros",
                  std::to_string(at >= file_.size() ? 0 : file_.size() - at) + " bytes");
    TENSORSMITH_CHECK(file_.read_at(at, head));
    const auto is_zero = [](std::byte b) { return b == std::byte{0}; };
    if (std::all_of(head.begin(), head.end(), is_zero)) {
      constexpr std::uint64_t most = 1u << 20;  // writers fill a record of 10 KiB
      std::vector<std::byte> rest(static_cast<std::size_t>(std::min(most + 1, file_.size() - at)));
      TENSORSMITH_CHECK(file_.read_at(at, rest));
      if (rest.size() > most || !std::all_of(rest.begin(), rest.end(), is_zero))
        return fail(errc::malformed, at, "something follows the end of the tar archive", "zeros", "other bytes");
      return false;
    }
    TENSORSMITH_CHECK(check_sum(at, head));
    return true;
  }
  result<void> check_sum(std::uint64_t at, std::span<const std::byte> head) const {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < head.size(); ++i)
      sum += i >= 148 && i < 156 ? std::uint64_t{' '} : std::to_integer<std::uint64_t>(head[i]);
    const auto stored = octal(head.subspan(148, 8));
    if (stored && *stored == sum) return {};
    return fail(errc::malformed, at, "the tar header is damaged", "checksum " + std::to_string(sum),
                stored ? std::to_string(*stored) : "no number");
  }
  static std::optional<std::uint64_t> octal(std::span<const std::byte> field) {
    std::string_view digits(reinterpret_cast<const char*>(field.data()), field.size());
    while (!digits.empty() && digits.front() == ' ') digits.remove_prefix(1);
    while (!digits.empty() && (digits.back() == ' ' || digits.back() == '\0')) digits.remove_suffix(1);
    std::uint64_t value = 0;
    const auto end = std::from_chars(digits.data(), digits.data() + digits.size(), value, 8);
    if (end.ec != std::errc{} || end.ptr != digits.data() + digits.size()) return std::nullopt;
    return value;
  }
  result<std::uint64_t> size_of(std::uint64_t at, std::span<const std::byte> head) const {
    if ((head[124] & std::byte{0x80}) != std::byte{0}) {  // GNU: a binary number for sizes above 8 GiB
      std::uint64_t value = 0;
      for (std::size_t i = 125; i < 128; ++i)
        if (head[i] != std::byte{0}) return fail(errc::malformed, at, "the size of the member is impossible", "64 bits", "more");
      for (std::size_t i = 128; i < 136; ++i) value = (value << 8) | std::to_integer<std::uint64_t>(head[i]);
      return value;
    }
    const auto value = octal(head.subspan(124, 12));
    if (!value) return fail(errc::malformed, at, "the size of the member is no number", "octal digits", "other characters");
    return *value;
  }
  result<void> fits(std::uint64_t at, std::uint64_t bytes) const {
    const std::uint64_t left = file_.size() - at - 512;
    if (bytes <= left) return {};
    return fail(errc::malformed, at, "the tar member reaches past the end of the file", "at most " + std::to_string(left) + " bytes",
                std::to_string(bytes));
  }
  result<void> check_member(std::uint64_t at, std::span<const std::byte> head, char kind, const std::string& name) const {
    if (kind == '1' || kind == '2')
      return fail(errc::unsupported, at, "the tar archive holds a link", "plain files",
                  quoted(name) + " to " + quoted(text(head, 157, 100)));
    if (kind != '0' && kind != '\0' && kind != '7')
      return fail(errc::unsupported, at, "the tar archive holds something that is no plain file", "plain files",
                  quoted(name) + " of type " + quoted(std::string(1, kind)));
    constexpr std::string_view known[] = {"sys_info", "pickle", "tensors", "storages"};
    if (std::find(std::begin(known), std::end(known), name) == std::end(known) || head[345] != std::byte{0})
      return fail(errc::unsupported, at, "the tar archive is no torch checkpoint", "'sys_info', 'pickle', 'tensors', 'storages'",
                  quoted(name));
    return {};
  }

  /// An extended header: "length key=value\n" over and over. Sizes count; times and owners do not; anything else is refused.
  result<void> read_extended(std::uint64_t at, std::uint64_t size) {
    if (std::exchange(pending_, true)) return fail(errc::malformed, at, "an extended header follows another", "a member", "none");
    constexpr std::uint64_t most = 64u << 10;
    if (size > most)
      return fail(errc::limit, at, "the extended header is too long", std::to_string(most) + " bytes at most", std::to_string(size));
    TENSORSMITH_CHECK(fits(at, size));
    std::string records(static_cast<std::size_t>(size), '\0');
    TENSORSMITH_CHECK(file_.read_at(at + 512, std::as_writable_bytes(std::span(records))));
    for (std::string_view rest = records; !rest.empty();) {
      std::uint64_t length = 0;
      const auto end = std::from_chars(rest.data(), rest.data() + rest.size(), length);
      const auto digits = static_cast<std::size_t>(end.ptr - rest.data());
      if (end.ec != std::errc{} || length <= digits + 1 || length > rest.size() || rest[digits] != ' ' || rest[length - 1] != '\n')
        return fail(errc::malformed, at, "the extended header is damaged", "records 'length key=value'", quoted(rest.substr(0, 40)));
      const std::string_view record = rest.substr(digits + 1, length - digits - 2);
      const std::string_view key = record.substr(0, record.find('='));
      const std::string_view value = record.substr(std::min(key.size() + 1, record.size()));
      rest.remove_prefix(length);
      constexpr std::string_view harmless[] = {"mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment"};
      if (std::find(std::begin(harmless), std::end(harmless), key) != std::end(harmless)) continue;
      std::uint64_t bytes = 0;
      const auto last = std::from_chars(value.data(), value.data() + value.size(), bytes);
      if (key != "size" || last.ec != std::errc{} || last.ptr != value.data() + value.size())
        return fail(errc::unsupported, at, "the extended header changes what torch never changes", "a size or a time",
                    quoted(record.substr(0, 40)));
      pax_size_ = bytes;
    }
    return {};
  }

  const byte_source& file_;
  std::optional<std::uint64_t> pax_size_;
  bool pending_ = false;  // an extended header waits for its member
};

/// One reading of a tar checkpoint.
class torch_tar_reader {
 public:
  torch_tar_reader(std::shared_ptr<const byte_source> file, const limits& bounds)
      : file_(std::move(file)), limits_(bounds), small_(bounds) {
    small_.pickle_bytes = std::min<std::uint64_t>(small_.pickle_bytes, 64u << 10);  // a key, a place, a class
  }

  result<torch_checkpoint> read(std::string_view select) {
    TENSORSMITH_TRY(members_, tar_reader(*file_).read());
    for (const char* name : {"pickle", "tensors", "storages"})
      if (members_.find(name) == members_.end())
        return fail(errc::unsupported, {}, "the tar archive is no torch checkpoint", "a member " + quoted(name),
                    std::to_string(members_.size()) + " members without it");
    TENSORSMITH_CHECK(check_system());
    TENSORSMITH_CHECK(read_storages());
    TENSORSMITH_CHECK(read_tensors());
    const tar_member& member = members_["pickle"];
    const std::string place = "tar member 'pickle'";
    pickle_stream pickles(file_, member.offset, member.offset + member.bytes, limits_, 64u << 10);
    TENSORSMITH_TRY(const pickle_document doc, pickles.next(place, persistent_ids::numbers));
    TENSORSMITH_CHECK(at_end("pickle", pickles.at()));
    torch_tensors tensors(
        doc, file_->name(), place, [this](std::string_view key) { return record(key); }, limits_);
    tensors.pickle_lies_in(file_, pickles.window_offset());
    tensors.references_mean([this](std::string_view number, const std::string& where) { return tensor(number, where); });
    TENSORSMITH_TRY(torch_checkpoint out, torch_walk(doc, tensors, file_->name(), place, limits_).run(select));
    tensors.note_shared_bytes();
    notes_.insert(notes_.end(), tensors.notes().begin(), tensors.notes().end());
    out.notes = std::move(notes_);
    return out;
  }

 private:
  using id = pickle_document::id;
  struct stored {
    torch_storage_id declared;
    std::uint64_t offset = 0, bytes = 0;
  };

  failure fail(errc code, std::string place, std::string what, std::string expected, std::string found) const {
    return failure{.code = code,
                   .what = std::move(what),
                   .file = file_->name(),
                   .place = std::move(place),
                   .expected = std::move(expected),
                   .found = std::move(found)};
  }
  std::uint64_t end_of(const char* member) { return members_[member].offset + members_[member].bytes; }
  result<void> at_end(const char* member, std::uint64_t at) {
    if (at == end_of(member)) return {};
    return fail(errc::malformed, "tar member " + quoted(member), "bytes follow the end of the data", "the end of the member",
                std::to_string(end_of(member) - at) + " bytes");
  }

  result<void> check_system() {
    const auto member = members_.find("sys_info");
    if (member == members_.end()) return {};
    pickle_stream pickles(file_, member->second.offset, end_of("sys_info"), small_, 1024);
    TENSORSMITH_TRY(const pickle_document doc, pickles.next("tar member 'sys_info'", persistent_ids::none));
    TENSORSMITH_CHECK(at_end("sys_info", pickles.at()));
    return check_torch_system(doc, 1000, file_->name(), "tar member 'sys_info'", notes_);
  }

  /// A little-endian integer of a member, which the stream is moved behind.
  result<std::int64_t> number(pickle_stream& pickles, const char* member, std::size_t width) {
    const std::uint64_t at = pickles.at(), left = end_of(member) - at;
    if (left < width)
      return fail(errc::malformed, "tar member " + quoted(member), "the member ends inside a number", std::to_string(width) + " bytes",
                  std::to_string(left));
    std::array<std::byte, 8> bytes{};
    TENSORSMITH_CHECK(file_->read_at(at, std::span(bytes).first(width)));
    pickles.go_to(at + width);
    std::uint64_t value = 0;
    for (std::size_t i = width; i-- > 0;) value = (value << 8) | std::to_integer<std::uint64_t>(bytes[i]);
    return static_cast<std::int64_t>(value);
  }
  result<std::uint64_t> count(pickle_stream& pickles, const char* member) {
    const std::string place = "tar member " + quoted(member);
    TENSORSMITH_TRY(const pickle_document doc, pickles.next(place, persistent_ids::none));
    if (doc.kind(doc.root()) != pickle_kind::integer || doc.integer(doc.root()) < 0)
      return fail(errc::malformed, place, "the member does not start with a count", "an integer from 0", shown_value(doc, doc.root()));
    const auto value = static_cast<std::uint64_t>(doc.integer(doc.root()));
    if (value > limits_.tensors)
      return failure{.code = errc::limit, .what = "the checkpoint has too many tensors", .file = file_->name(), .place = place,
                     .expected = std::to_string(limits_.tensors) + " at most", .found = std::to_string(value),
                     .advice = "raise it with --max-tensors"};
    return value;
  }
  /// The three values (key, something, class) that each storage and each tensor starts with.
  result<std::vector<id>> triple(const pickle_document& doc, const std::string& place, torch_symbol wanted) const {
    const id root = doc.root();
    if (doc.kind(root) == pickle_kind::tuple && doc.count(root) == 3) {
      const std::vector<id> parts = doc.items(root);
      if (doc.kind(parts[0]) == pickle_kind::integer && doc.kind(parts[2]) == pickle_kind::global && doc.symbol(parts[2]) == wanted)
        return parts;
    }
    return fail(errc::malformed, place, "the description is damaged",
                wanted == torch_symbol::storage_class ? "(number, location, storage class)" : "(number, storage, tensor class)",
                shown_value(doc, root));
  }

  result<void> read_storages() {
    const char* const member = "storages";
    const std::string place = "tar member 'storages'";
    pickle_stream pickles(file_, members_[member].offset, end_of(member), small_, 256);
    TENSORSMITH_TRY(const std::uint64_t expected, count(pickles, member));
    for (std::uint64_t i = 0; i < expected; ++i) {
      TENSORSMITH_TRY(const pickle_document doc, pickles.next(place, persistent_ids::none));
      TENSORSMITH_TRY(const auto parts, triple(doc, place, torch_symbol::storage_class));
      stored s;
      s.declared.key = std::to_string(doc.integer(parts[0]));
      s.declared.class_name = doc.full_name(parts[2]);
      s.declared.type = storage_type(doc.name(parts[2]));
      const std::uint64_t unit = storage_unit(s.declared);
      if (unit == 0)
        return fail(errc::unsupported, place, "the storage's element type is not supported", "a type of whole bytes",
                    quoted(s.declared.class_name));
      TENSORSMITH_TRY(const std::int64_t numel, number(pickles, member, 8));
      const std::uint64_t left = end_of(member) - pickles.at();
      if (numel < 0 || static_cast<std::uint64_t>(numel) > left / unit)
        return fail(errc::malformed, place + ", storage " + quoted(s.declared.key), "the member ends inside the storage",
                    std::to_string(numel) + " elements of " + std::to_string(unit) + " bytes", std::to_string(left) + " bytes");
      s.declared.numel = static_cast<std::uint64_t>(numel);
      s.offset = pickles.at();
      s.bytes = s.declared.numel * unit;
      pickles.go_to(s.offset + s.bytes);
      const std::string key = s.declared.key;
      if (!storages_.emplace(key, std::move(s)).second)
        return fail(errc::malformed, place, "two storages have the same number", "one", key);
    }
    return read_storage_views(pickles, place);
  }
  /// The list of (number, number of the whole storage, offset, elements) behind the storages.
  result<void> read_storage_views(pickle_stream& pickles, const std::string& place) {
    TENSORSMITH_TRY(const pickle_document doc, pickles.next(place, persistent_ids::none));
    TENSORSMITH_CHECK(at_end("storages", pickles.at()));
    if (doc.kind(doc.root()) != pickle_kind::list)
      return fail(errc::malformed, place, "the parts of storages are no list", "a list", shown_value(doc, doc.root()));
    std::vector<std::pair<std::string, stored>> views;
    for (const id item : doc.items(doc.root())) {
      bool good = doc.kind(item) == pickle_kind::tuple && doc.count(item) == 4;
      const std::vector<id> parts = good ? doc.items(item) : std::vector<id>{};
      for (const id p : parts) good = good && doc.kind(p) == pickle_kind::integer;
      if (!good)
        return fail(errc::malformed, place, "the part of a storage is damaged", "(number, number, offset, elements)", shown_value(doc, item));
      const auto root = storages_.find(std::to_string(doc.integer(parts[1])));
      if (root == storages_.end() || doc.integer(parts[2]) < 0 || doc.integer(parts[3]) < 0)
        return fail(errc::malformed, place, "the part of a storage is damaged", "a storage, offset and elements from 0",
                    "storage " + std::to_string(doc.integer(parts[1])) + ", " + std::to_string(doc.integer(parts[2])) + ", " +
                        std::to_string(doc.integer(parts[3])));
      stored s = root->second;
      s.declared.view_key = std::to_string(doc.integer(parts[0]));
      s.declared.view_offset = static_cast<std::uint64_t>(doc.integer(parts[2]));
      s.declared.view_numel = static_cast<std::uint64_t>(doc.integer(parts[3]));
      views.emplace_back(s.declared.view_key, std::move(s));
    }
    for (auto& [key, s] : views)
      if (!storages_.emplace(key, std::move(s)).second)
        return fail(errc::malformed, place, "two storages have the same number", "one", key);
    return {};
  }

  result<void> read_tensors() {
    const char* const member = "tensors";
    const std::string place = "tar member 'tensors'";
    pickle_stream pickles(file_, members_[member].offset, end_of(member), small_, 256);
    TENSORSMITH_TRY(const std::uint64_t expected, count(pickles, member));
    for (std::uint64_t i = 0; i < expected; ++i) {
      TENSORSMITH_TRY(const pickle_document doc, pickles.next(place, persistent_ids::none));
      TENSORSMITH_TRY(const auto parts, triple(doc, place, torch_symbol::tensor_class));
      torch_view view;
      if (doc.kind(parts[1]) == pickle_kind::integer) {
        const auto known = storages_.find(std::to_string(doc.integer(parts[1])));
        if (known == storages_.end())
          return fail(errc::malformed, place, "the storage of a tensor is missing", "a number of a storage",
                      std::to_string(doc.integer(parts[1])));
        view.storage = known->second.declared;
      } else if (doc.kind(parts[1]) == pickle_kind::none) {  // an empty tensor: a storage without elements of the same type
        const std::string_view name = doc.name(parts[2]);
        view.storage.class_name = std::string(name.substr(0, name.size() - 6)) + "Storage";
        view.storage.type = storage_type(view.storage.class_name);
      } else {
        return fail(errc::malformed, place, "the storage of a tensor is wrong", "a number or None", shown_value(doc, parts[1]));
      }
      TENSORSMITH_CHECK(read_shape(pickles, place, view));
      const std::string key = std::to_string(doc.integer(parts[0]));
      if (!tensors_.emplace(key, std::move(view)).second)
        return fail(errc::malformed, place, "two tensors have the same number", "one", key);
    }
    return at_end(member, pickles.at());
  }
  /// Rank in 8 bytes, of which 4 count, sizes, strides, offset.
  result<void> read_shape(pickle_stream& pickles, const std::string& place, torch_view& view) {
    const char* const member = "tensors";
    TENSORSMITH_TRY(const std::int64_t ndim, number(pickles, member, 4));
    pickles.go_to(std::min(pickles.at() + 4, end_of(member)));
    if (ndim < 0 || static_cast<std::uint64_t>(ndim) > limits_.rank)
      return failure{.code = errc::limit, .what = "the tensor has too many dimensions", .file = file_->name(), .place = place,
                     .expected = std::to_string(limits_.rank) + " at most", .found = std::to_string(ndim),
                     .advice = "raise it with --max-rank"};
    for (std::vector<std::uint64_t>* list : {&view.sizes, &view.strides})
      for (std::int64_t d = 0; d < ndim; ++d) {
        TENSORSMITH_TRY(const std::int64_t value, number(pickles, member, 8));
        if (value < 0)
          return fail(errc::malformed, place, list == &view.sizes ? "the tensor's size is wrong" : "the tensor's stride is wrong",
                      "integers from 0", std::to_string(value));
        list->push_back(static_cast<std::uint64_t>(value));
      }
    TENSORSMITH_TRY(const std::int64_t offset, number(pickles, member, 8));
    if (offset < 0)
      return fail(errc::malformed, place, "the tensor's offset is wrong", "an integer from 0", std::to_string(offset));
    view.offset = static_cast<std::uint64_t>(offset);
    if (ndim == 0 && view.storage.numel == 0) view.sizes = {0}, view.strides = {1};  // torch 0.1: no dimensions, no elements
    return {};
  }

  result<torch_record> record(std::string_view key) const {
    if (key.empty()) return torch_record{file_, 0, 0, nullptr, "no storage"};
    const auto at = storages_.find(std::string(key));  // read_tensors looked them up
    if (at == storages_.end())
      return fail(errc::internal, "storage " + quoted(key), "the storage was not found", "a storage of the file", "none");
    return torch_record{file_, at->second.offset, at->second.bytes, nullptr, "storage " + quoted(key)};
  }
  result<torch_view> tensor(std::string_view number, const std::string& where) const {
    const auto at = tensors_.find(std::string(number));
    if (at != tensors_.end()) return at->second;
    return fail(storages_.count(std::string(number)) > 0 ? errc::unsupported : errc::malformed,
                "tar member 'pickle', tensor " + quoted(where), "the tensor is not described in the file", "a number of the member 'tensors'",
                quoted(number));
  }

  std::shared_ptr<const byte_source> file_;
  limits limits_, small_;
  std::map<std::string, tar_member> members_;
  std::map<std::string, stored> storages_;
  std::map<std::string, torch_view> tensors_;
  std::vector<note> notes_;
};

}  // namespace detail
TENSORSMITH_END_NAMESPACE
