// SPDX-License-Identifier: MIT
//
// tensorsmith/format/numpy/write.hpp: writes a catalog as a .npz file that numpy.load reads and maps.
//
// Entries are stored, arrays in C order, their data aligned to 64 bytes. Same tensors, same bytes, for any number of threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/job.hpp"
#include "tensorsmith/format/numpy/header.hpp"
#include "tensorsmith/io/publish.hpp"
#include "tensorsmith/io/zip_write.hpp"
#include "tensorsmith/tensor/catalog.hpp"
#include "tensorsmith/tensor/comparing_sink.hpp"
#include "tensorsmith/tensor/executor.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What write_npz may be told.
struct npz_write_options {
  bool force = false;   ///< replace an existing file
  bool verify = false;  ///< produce everything twice: written, then compared with the file before it is published
};

/// A .npz file as it will be: every offset and the size of the file are known.
class npz_layout {
 public:
  /// @fails mismatch (no tensors, a name that an entry cannot have), unsupported (an element type that NumPy lacks)
  static result<npz_layout> plan(const catalog& tensors) {
    if (tensors.empty()) return failure{.code = errc::mismatch, .what = "there are no tensors to write"};
    npz_layout out;
    for (const catalog_entry& e : tensors.entries()) {
      const tensor_info& info = e.tensor.info();
      TENSORSMITH_CHECK(check_name(e.name, tensors));
      if (!npy_name(info.type))
        return failure{.code = errc::unsupported, .what = "NumPy has no element type " + std::string(name_of(info.type)),
                       .place = "tensor " + quoted(e.name), .advice = "cast it first, or write .safetensors"};
      out.headers_.push_back(npy_header_bytes(info.type, info.shape));
      out.zip_.add(e.name + ".npy", out.headers_.back().size() + info.bytes(), 64);
    }
    return out;
  }

  /// Bytes of the file.
  std::uint64_t file_bytes() const { return zip_.file_bytes(); }

  /// Produces all tensors of the planned catalog into `sink`, then the zip's headers with their checksums. The sources are asked
  /// whether they changed meanwhile. @fails as the recipes and the sink do, integrity
  result<void> write(const catalog& tensors, byte_sink& sink, const job& run) const {
    std::deque<crc_sink> entries;
    std::vector<placement> work;
    std::map<const recipe*, std::size_t> first;  // a recipe with several outputs runs once
    for (std::size_t i = 0; i < zip_.count(); ++i) {
      entries.emplace_back(sink, zip_.offset(i), zip_.size(i));
      TENSORSMITH_CHECK(entries.back().write_at(0, std::as_bytes(std::span(headers_[i]))));
      const catalog_entry& e = tensors.entries()[i];
      auto known = first.find(e.tensor.source.get());
      if (known == first.end() || work[known->second].slots[e.tensor.output].sink) {  // new, or an output under two names
        known = first.insert_or_assign(e.tensor.source.get(), work.size()).first;
        work.push_back({e.tensor.source, std::vector<output_slot>(e.tensor.source->outputs().size()), e.name});
      }
      work[known->second].slots[e.tensor.output] = {&entries.back(), headers_[i].size()};
    }
    TENSORSMITH_CHECK(execute(work, run));
    std::vector<std::uint32_t> crcs;
    for (crc_sink& e : entries) {
      TENSORSMITH_TRY(const std::uint32_t crc, e.crc());
      crcs.push_back(crc);
    }
    TENSORSMITH_CHECK(zip_.write_headers(sink, crcs));
    return check_sources_unchanged(work);
  }

 private:
  static result<void> check_name(const std::string& name, const catalog& tensors) {
    const auto refuse = [&](std::string expected) {
      return failure{.code = errc::mismatch, .what = "a tensor cannot have this name in a .npz file", .place = "tensor " + quoted(name),
                     .expected = std::move(expected), .advice = "rename it"};
    };
    std::size_t bad = 0;
    if (!is_utf8(name, bad) || name.find('\0') != name.npos || name.find('\\') != name.npos) return refuse("UTF-8 text without NUL and '\\'");
    if (name.size() > 65000) return refuse("at most 65000 bytes");
    if (name.size() > 1 && name[1] == ':') return refuse("no drive letter");
    for (std::size_t at = 0; at < name.size();) {
      const std::size_t end = std::min(name.find('/', at), name.size());
      const std::string_view part = std::string_view(name).substr(at, end - at);
      // The entry is called <name>.npy: only a part that is a folder can be "." or "..".
      if (part.empty() || (end < name.size() && (part == "." || part == ".."))) return refuse("a path without empty, '.' or '..' parts");
      at = end + 1;
      if (at == name.size()) return refuse("a path without empty, '.' or '..' parts");
    }
    if (name.ends_with(".npy") && tensors.contains(std::string_view(name).substr(0, name.size() - 4)))
      return refuse("a name that numpy.load can tell from " + quoted(std::string_view(name).substr(0, name.size() - 4)));
    return {};
  }

  std::vector<std::string> headers_;
  zip_layout zip_;
};

/// Writes `tensors` as a .npz file that appears at `path` when it is complete and on the disk. Returns the size of the file.
/// @fails as npz_layout::plan and the recipes do; path (it exists without force), integrity (a source changed), internal (the
/// comparison of `verify`), no_space, io, cancelled
inline result<std::uint64_t> write_npz(const catalog& tensors, const std::string& path, const job& run, const npz_write_options& options = {}) {
  TENSORSMITH_TRY(const npz_layout layout, npz_layout::plan(tensors));
  TENSORSMITH_TRY(file_publication publication, file_publication::begin(path, {.force = options.force}));
  TENSORSMITH_TRY(const auto file, publication.create(layout.file_bytes()));
  TENSORSMITH_CHECK(layout.write(tensors, *file, run));
  if (options.verify) {
    TENSORSMITH_TRY(auto written, open_file(file->path(), file->name()));
    if (written->size() != layout.file_bytes())
      return failure{.code = errc::internal, .what = "the output has another length than planned", .file = file->name(),
                     .expected = std::to_string(layout.file_bytes()) + " bytes", .found = std::to_string(written->size())};
    comparing_sink again(std::move(written));
    TENSORSMITH_CHECK(layout.write(tensors, again, run));
  }
  TENSORSMITH_CHECK(publication.commit());
  return layout.file_bytes();
}

TENSORSMITH_END_NAMESPACE
