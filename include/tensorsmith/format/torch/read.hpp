// SPDX-License-Identifier: MIT
//
// tensorsmith/format/torch/read.hpp: checkpoints that torch.save wrote, read without executing anything.
//
// Include this to open .pt, .pth, .ckpt, .bin and .pkl files: zip containers (torch 1.6 and later), legacy streams (0.1.10 to
// 1.5), tar files (before), bare pickles of numpy arrays. Views, transposed and shared storages are honoured through strides; the
// CRC-32 of a zip's storage is compared before its first tile.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/format/torch/bare.hpp"
#include "tensorsmith/format/torch/legacy.hpp"
#include "tensorsmith/format/torch/pickle.hpp"
#include "tensorsmith/format/torch/tag.hpp"
#include "tensorsmith/format/torch/tar.hpp"
#include "tensorsmith/format/torch/tensors.hpp"
#include "tensorsmith/format/torch/walk.hpp"
#include "tensorsmith/io/zip.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// The containers that torch.save ever wrote, told by content, never by the file's extension.
enum class torch_container : std::uint8_t {
  none,    ///< something else
  zip,     ///< torch 1.6 and later; other zip archives look the same until they are opened
  legacy,  ///< torch 0.1.10 to 1.5: pickles one after the other, then raw storages
  tar,     ///< torch up to 0.1.9
  pickle,  ///< a pickle and nothing else
};

/// Recognises a container by the first 264 bytes of a file (fewer if the file is shorter).
inline torch_container torch_container_of(std::span<const std::byte> head) noexcept {
  const std::string_view text(reinterpret_cast<const char*>(head.data()), head.size());
  if (text.substr(0, 4) == "PK\x03\x04" || text.substr(0, 4) == "PK\x05\x06") return torch_container::zip;
  if (detail::legacy_magic_bytes(text) != 0) return torch_container::legacy;
  if (text.size() >= 262 && text.substr(257, 5) == "ustar") return torch_container::tar;
  if (text.size() >= 2 && text[0] == '\x80' && text[1] >= 2 && text[1] <= 5) return torch_container::pickle;
  return torch_container::none;
}

namespace detail {

/// One reading of a torch zip.
class torch_zip_reader {
 public:
  torch_zip_reader(zip_archive archive, const limits& bounds) : archive_(std::move(archive)), limits_(bounds) {}

  result<torch_checkpoint> read(std::string_view select) {
    TENSORSMITH_TRY(const zip_entry* const pickle, find_pickle());
    TENSORSMITH_CHECK(check_version());
    TENSORSMITH_CHECK(check_byte_order());
    TENSORSMITH_TRY(std::vector<std::byte> bytes, read_entry(archive_, *pickle, limits_.pickle_bytes, "--max-pickle"));
    const std::string place = "zip entry " + quoted(pickle->name);
    TENSORSMITH_TRY(const pickle_document doc,
                    parse_pickle(std::make_shared<const std::vector<std::byte>>(std::move(bytes)), file(), place, limits_));
    torch_tensors tensors(
        doc, file(), place, [this](std::string_view key) { return record(key); }, limits_);
    if (pickle->method == 0) tensors.pickle_lies_in(archive_.file(), pickle->data_offset);
    if (big_endian_) tensors.storages_are_big_endian();
    TENSORSMITH_TRY(torch_checkpoint out, torch_walk(doc, tensors, file(), place, limits_).run(select));
    tensors.note_shared_bytes();
    note_unused(tensors);
    notes_.insert(notes_.end(), tensors.notes().begin(), tensors.notes().end());
    out.notes = std::move(notes_);
    return out;
  }

 private:
  const std::string& file() const noexcept { return archive_.file()->name(); }
  failure fail(errc code, std::string place, std::string what, std::string expected, std::string found,
               std::string advice = {}) const {
    return failure{.code = code,
                   .what = std::move(what),
                   .file = file(),
                   .place = std::move(place),
                   .expected = std::move(expected),
                   .found = std::move(found),
                   .advice = std::move(advice)};
  }

  /// The one entry `<root>/data.pkl`; everything else is looked up below the same root.
  result<const zip_entry*> find_pickle() {
    const zip_entry* found = nullptr;
    for (const zip_entry& e : archive_.entries()) {
      const std::size_t slash = e.name.find('/');
      if (slash == e.name.npos || e.name.substr(slash + 1) != "data.pkl") continue;
      if (found)
        return fail(errc::malformed, "zip entry " + quoted(e.name), "the archive is ambiguous: it has two checkpoints",
                    "one data.pkl", "also " + quoted(found->name));
      found = &e;
    }
    if (!found)
      return fail(errc::unsupported, {}, "the zip archive is no torch checkpoint", "an entry <folder>/data.pkl", first_names());
    root_ = found->name.substr(0, found->name.find('/') + 1);
    if (archive_.entries()[0].name.substr(0, root_.size()) != root_)
      return fail(errc::malformed, "zip entry " + quoted(archive_.entries()[0].name),
                  "the archive is ambiguous: it has two top folders", "a name below " + quoted(root_),
                  "data.pkl below another one");
    for (const zip_entry& e : archive_.entries())
      if (e.name == root_ + "constants.pkl" || e.name.substr(0, root_.size() + 5) == root_ + "code/")
        return fail(errc::unsupported, "zip entry " + quoted(e.name), "the file is a TorchScript program, not a state dict",
                    "a checkpoint of torch.save", "a program of torch.jit.save",
                    "save the state_dict of the model with torch.save");
    return found;
  }
  std::string first_names() const {
    std::string out;
    for (std::size_t i = 0; i < std::min<std::size_t>(archive_.entries().size(), 4); ++i)
      out += (i ? ", " : "") + quoted(archive_.entries()[i].name);
    return out.empty() ? "no entries" : out;
  }

  result<void> check_version() const {
    const zip_entry* e = archive_.find(root_ + "version");
    if (!e) e = archive_.find(root_ + ".data/version");
    if (!e) return {};
    TENSORSMITH_TRY(const std::string text, small_text(*e, 32));
    std::uint32_t version = 0;
    const auto end = std::from_chars(text.data(), text.data() + text.size(), version);
    if (end.ec != std::errc{} || end.ptr != text.data() + text.size())
      return fail(errc::malformed, "zip entry " + quoted(e->name), "the version is no number", "1 to 10", quoted(text));
    if (version < 1 || version > 10)
      return fail(errc::unsupported, "zip entry " + quoted(e->name), "the version of the file format is not known", "1 to 10",
                  quoted(text));
    return {};
  }
  result<void> check_byte_order() {
    const zip_entry* e = archive_.find(root_ + "byteorder");
    if (!e) {
      notes_.push_back({note::level::info, file(),
                        "The file does not name its byte order: read as little-endian (torch before 2.0 wrote no other)."});
      return {};
    }
    TENSORSMITH_TRY(const std::string order, small_text(*e, 32));
    if (order == "little") return {};
    if (order == "big") {
      big_endian_ = true;
      notes_.push_back({note::level::info, file(), "The storages are big-endian: their bytes are swapped as they are read."});
      return {};
    }
    return fail(errc::malformed, "zip entry " + quoted(e->name), "the byte order is unknown", "'little' or 'big'", quoted(order));
  }
  result<std::string> small_text(const zip_entry& e, std::uint64_t most) const {
    if (e.size > most)
      return fail(errc::malformed, "zip entry " + quoted(e.name), "the entry is too long for what it says",
                  std::to_string(most) + " bytes at most", std::to_string(e.size) + " bytes");
    TENSORSMITH_TRY(const std::vector<std::byte> bytes, read_entry(archive_, e, most, {}));
    std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.pop_back();
    return text;
  }

  result<torch_record> record(std::string_view key) {
    const std::string name = root_ + "data/" + std::string(key);
    const zip_entry* e = archive_.find(name);
    if (!e)
      return fail(errc::malformed, "zip entry " + quoted(name), "the storage is missing", "an entry of this name", "none",
                  "is the download incomplete?");
    const entry_bytes bytes = open_entry(archive_, *e);
    const std::string place = "zip entry " + quoted(name);
    if (e->method == 8)
      notes_.push_back({note::level::warning, place,
                        "The storage is compressed: it needs " + std::to_string(e->size) + " bytes of memory while it is read."});
    return torch_record{bytes.source, bytes.offset, e->size, bytes.check, place};
  }

  /// Storages that no tensor uses belong to what was left out; other entries mean nothing here.
  void note_unused(const torch_tensors& tensors) {
    const std::vector<std::string> used = tensors.used_keys();
    const std::string data = root_ + "data/";
    std::size_t storages = 0, others = 0;
    std::uint64_t bytes = 0;
    std::string example;
    for (const zip_entry& e : archive_.entries()) {
      if (e.is_folder()) continue;
      const std::string_view name = e.name;
      if (name.substr(0, data.size()) == data) {
        if (std::binary_search(used.begin(), used.end(), name.substr(data.size()))) continue;
        ++storages;
        bytes += e.size;
        continue;
      }
      constexpr std::string_view known[] = {
          "data.pkl", "version", "byteorder", ".data/version", ".data/serialization_id", ".format_version", ".storage_alignment"};
      const bool below = name.substr(0, root_.size()) == root_;
      if (below && std::find(std::begin(known), std::end(known), name.substr(root_.size())) != std::end(known)) continue;
      if (others++ == 0) example = quoted(name);
    }
    if (storages > 0)
      notes_.push_back(
          {note::level::info, file(),
           std::to_string(storages) + (storages == 1 ? " storage (" : " storages (") + std::to_string(bytes) + " bytes) for no tensor that is read"});
    if (others > 0)
      notes_.push_back({note::level::warning, file(),
                        std::to_string(others) + " entries of the archive are not part of a checkpoint and were ignored, first " +
                            example + "."});
  }

  zip_archive archive_;
  limits limits_;
  std::string root_;
  bool big_endian_ = false;
  std::vector<note> notes_;
};

inline failure no_torch_file(const byte_source& file, std::span<const std::byte> head) {
  std::string bytes;
  for (std::size_t i = 0; i < std::min<std::size_t>(head.size(), 16); ++i) {
    bytes += i ? " " : "first bytes ";
    append_hex(bytes, std::to_integer<std::uint32_t>(head[i]), 2);
  }
  return failure{.code = errc::unsupported,
                 .what = "the file is no torch checkpoint",
                 .file = file.name(),
                 .place = "byte offset 0",
                 .expected = "a zip archive, a legacy stream, a tar file or a pickle",
                 .found = bytes.empty() ? "an empty file" : bytes};
}

}  // namespace detail

/// Reads a checkpoint: its tensors, where they sit, what else there is. No payload is read yet. `select` names the dict to
/// read, keys joined with '/' ("ema/params"); empty: "state_dict" wherever it exists, else the dict itself if it holds tensors,
/// else the first of model, net, params, params_ema, generator, module that holds some.
/// @fails malformed, limit, unsupported (other containers, TorchScript, opaque objects with tensors inside, blocked
/// globals), mismatch (two tensors of one name), path, integrity, usage (`select` does not exist), io.
inline result<torch_checkpoint> read_torch(std::shared_ptr<const byte_source> file, const limits& bounds = {},
                                           std::string_view select = {}) {
  std::array<std::byte, 264> buffer{};
  const auto head = std::span(buffer).first(static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), file->size())));
  TENSORSMITH_CHECK(file->read_at(0, head));
  const torch_container kind = torch_container_of(head);
  if (kind == torch_container::none && file->size() >= 22) {  // a zip with something in front: let open_zip say so
    std::array<std::byte, 22> tail{};
    TENSORSMITH_CHECK(file->read_at(file->size() - 22, tail));
    if (detail::zip_u32(tail, 0) == 0x06054B50) {
      auto opened = open_zip(file, bounds);
      if (!opened) return std::move(opened).error();
    }
  }
  switch (kind) {
    case torch_container::zip: {
      TENSORSMITH_TRY(zip_archive archive, open_zip(std::move(file), bounds));
      return detail::torch_zip_reader(std::move(archive), bounds).read(select);
    }
    case torch_container::legacy:
      return detail::torch_legacy_reader(std::move(file), bounds).read(select);
    case torch_container::tar:
      return detail::torch_tar_reader(std::move(file), bounds).read(select);
    case torch_container::pickle:
      return detail::read_bare_pickle(file, bounds, select);
    case torch_container::none:
      break;
  }
  return detail::no_torch_file(*file, head);
}

TENSORSMITH_END_NAMESPACE
