// SPDX-License-Identifier: MIT
//
// tensorsmith/format/torch/write.hpp: checkpoints that torch.load reads, with weights_only=True and mmap=True, from torch 1.6 on.
//
// Include this to write .pt, .ckpt and .bin files. Tensors that are one output of one recipe share one storage.
#pragma once

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
#include "tensorsmith/core/json_value.hpp"
#include "tensorsmith/format/torch/pickle_write.hpp"
#include "tensorsmith/format/torch/tag.hpp"
#include "tensorsmith/io/publish.hpp"
#include "tensorsmith/io/zip_write.hpp"
#include "tensorsmith/tensor/catalog.hpp"
#include "tensorsmith/tensor/comparing_sink.hpp"
#include "tensorsmith/tensor/executor.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What surrounds the tensors of a checkpoint.
struct torch_write_options {
  std::string nested{};  ///< key of the dict that holds the tensors ("state_dict"); empty: they are the top-level dict
  std::vector<std::pair<std::string, json_value>> scalars{};  ///< beside `nested`: integers, booleans, null, strings, doubles, objects of these
  bool force = false;                                         ///< replace an existing file
  bool verify = false;  ///< produce everything twice: written, then compared with the file before it is published
};

/// A checkpoint as it will be: every offset and the size of the file are known.
class torch_layout {
 public:
  /// @fails mismatch (no tensors, a name that is no UTF-8), unsupported (element types of less than a byte), usage (scalars without
  /// `nested` or of other kinds)
  static result<torch_layout> plan(const catalog& tensors, const torch_write_options& options = {}) {
    if (tensors.empty()) return failure{.code = errc::mismatch, .what = "there are no tensors to write"};
    torch_layout out;
    TENSORSMITH_TRY(out.pickle_, out.describe(tensors, options));
    out.zip_.add("archive/data.pkl", out.pickle_.size());
    out.zip_.add("archive/byteorder", byte_order.size());
    for (std::size_t i = 0; i < out.storages_.size(); ++i)
      out.zip_.add("archive/data/" + std::to_string(i), out.storages_[i].info().bytes(), 64);
    out.zip_.add("archive/version", version.size());
    return out;
  }

  /// Bytes of the file.
  std::uint64_t file_bytes() const { return zip_.file_bytes(); }

  /// Produces all tensors into `sink`, then the headers with their checksums.
  /// @fails as the recipes and the sink do; integrity (a source changed since it was opened)
  result<void> write(byte_sink& sink, const job& run) const {
    std::deque<crc_sink> entries;
    for (std::size_t i = 0; i < zip_.count(); ++i) entries.emplace_back(sink, zip_.offset(i), zip_.size(i));
    TENSORSMITH_CHECK(entries.front().write_at(0, std::as_bytes(std::span(pickle_))));
    TENSORSMITH_CHECK(entries[1].write_at(0, std::as_bytes(std::span(byte_order))));
    TENSORSMITH_CHECK(entries.back().write_at(0, std::as_bytes(std::span(version))));
    const std::vector<placement> work = placements(entries);
    if (auto done = execute(work, run); !done) {
      TENSORSMITH_CHECK(check_sources_unchanged(work));  // where it holds, the better explanation
      return done;
    }
    TENSORSMITH_CHECK(check_sources_unchanged(work));
    std::vector<std::uint32_t> crcs;
    for (crc_sink& e : entries) {
      TENSORSMITH_TRY(const std::uint32_t crc, e.crc());
      crcs.push_back(crc);
    }
    return zip_.write_headers(sink, crcs);
  }

 private:
  /// One placement a recipe; `entries` are those of the archive.
  std::vector<placement> placements(std::deque<crc_sink>& entries) const {
    std::vector<placement> work;
    std::map<const recipe*, std::size_t> known;  // a recipe with several outputs runs once
    for (std::size_t i = 0; i < storages_.size(); ++i) {
      const tensor_ref& t = storages_[i];
      const auto [at, fresh] = known.emplace(t.source.get(), work.size());
      if (fresh) work.push_back({t.source, std::vector<output_slot>(t.source->outputs().size()), names_[i]});
      work[at->second].slots[t.output] = {&entries[i + 2], 0};
    }
    return work;
  }

  static constexpr std::string_view byte_order = "little", version = "3\n";

  result<std::string> describe(const catalog& tensors, const torch_write_options& options) {
    detail::pickle_writer out;
    if (!options.nested.empty()) {
      out.begin_dict();
      for (const auto& [key, value] : options.scalars) {
        out.text(key);
        if (!out.scalar(value))
          return failure{.code = errc::usage,
                         .what = "a value beside the tensors cannot be written",
                         .place = quoted(key),
                         .expected = "null, a boolean, a number, a string or an object of these",
                         .found = std::string(value.kind())};
        out.end_pair();
      }
      out.text(options.nested);
    } else if (!options.scalars.empty()) {
      return failure{.code = errc::usage, .what = "values beside the tensors need a name for the dict that holds the tensors"};
    }
    out.begin_dict();
    std::map<std::pair<const recipe*, std::size_t>, std::size_t> keys;
    for (const catalog_entry& e : tensors.entries()) {
      const tensor_info& info = e.tensor.info();
      if (std::size_t bad = 0; !is_utf8(e.name, bad))
        return failure{.code = errc::mismatch,
                       .what = "a tensor cannot have this name in a checkpoint",
                       .place = "tensor " + quoted(e.name),
                       .expected = "UTF-8 text"};
      const auto [at, fresh] =
          keys.emplace(std::pair(static_cast<const recipe*>(e.tensor.source.get()), e.tensor.output), storages_.size());
      if (fresh) {
        storages_.push_back(e.tensor);
        names_.push_back(e.name);
      }
      out.text(e.name);
      if (!out.tensor(info, std::to_string(at->second)))
        return failure{.code = errc::unsupported,
                       .what = "torch has no storage for the element type",
                       .place = quoted(e.name),
                       .expected = "a type of whole bytes",
                       .found = std::string(name_of(info.type)),
                       .advice = "cast it, or write .safetensors"};
      out.end_pair();
    }
    out.end_dict();
    if (!options.nested.empty()) {
      out.end_pair();
      out.end_dict();
    }
    return std::move(out).finish();
  }

  std::string pickle_;
  std::vector<tensor_ref> storages_;
  std::vector<std::string> names_;
  zip_layout zip_;
};

/// Writes `tensors` as a checkpoint that appears at `path` when it is complete. Returns the size of the file.
/// @fails as torch_layout::plan and the recipes do; path (it exists without force), integrity (a source changed), internal (verify:
/// the file holds other bytes than were written), io, no_space, cancelled
inline result<std::uint64_t> write_torch(const catalog& tensors, const std::string& path, const job& run,
                                         const torch_write_options& options = {}) {
  TENSORSMITH_TRY(const torch_layout layout, torch_layout::plan(tensors, options));
  TENSORSMITH_TRY(file_publication publication, file_publication::begin(path, {.force = options.force}));
  TENSORSMITH_TRY(const auto file, publication.create(layout.file_bytes()));
  TENSORSMITH_CHECK(layout.write(*file, run));
  if (options.verify) {
    TENSORSMITH_TRY(auto written, open_file(file->path(), file->name()));
    if (written->size() != layout.file_bytes())
      return failure{.code = errc::internal,
                     .what = "the output has another length than planned",
                     .file = file->name(),
                     .expected = std::to_string(layout.file_bytes()) + " bytes",
                     .found = std::to_string(written->size())};
    comparing_sink again(std::move(written));
    TENSORSMITH_CHECK(layout.write(again, run));
  }
  TENSORSMITH_CHECK(publication.commit());
  return layout.file_bytes();
}

TENSORSMITH_END_NAMESPACE
