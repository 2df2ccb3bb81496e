// SPDX-License-Identifier: MIT
//
// tensorsmith/format/torch/bare.hpp: a file that is one pickle and nothing else: dicts of numpy arrays or of tensors, as
// pickle.dump writes them.
//
// Included by read.hpp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "tensorsmith/format/torch/legacy.hpp"
#include "tensorsmith/format/torch/pickle_stream.hpp"
#include "tensorsmith/format/torch/tensors.hpp"
#include "tensorsmith/format/torch/walk.hpp"

TENSORSMITH_BEGIN_NAMESPACE
namespace detail {

/// Reads a pickle of protocol 2 to 5 that ends with the file. Arrays of numbers are read from where they lie in it, and so are
/// tensors, whose storages pickle.dump packs into bytes that torch.save wrote.
inline result<torch_checkpoint> read_bare_pickle(const std::shared_ptr<const byte_source>& file, const limits& bounds,
                                                 std::string_view select) {
  pickle_stream pickles(file, 0, file->size(), bounds, 64u << 10);
  TENSORSMITH_TRY(const pickle_document doc, pickles.next({}, persistent_ids::none));
  if (pickles.at() != file->size())
    return failure{.code = errc::malformed,
                   .what = std::to_string(file->size() - pickles.at()) + " trailing bytes follow STOP",
                   .file = file->name(),
                   .place = "byte offset " + std::to_string(pickles.at()),
                   .expected = "the end of the file",
                   .found = std::to_string(file->size() - pickles.at()) + " bytes"};
  torch_tensors tensors(
      doc, file->name(), "pickle",
      [&](std::string_view key) -> result<torch_record> {
        return failure{.code = errc::internal, .what = "a bare pickle has no storages", .file = file->name(), .place = quoted(key)};
      },
      bounds);
  tensors.pickle_lies_in(file, pickles.window_offset());
  tensors.packed_storages_mean([&](std::shared_ptr<const byte_source> source, std::uint64_t begin, std::uint64_t end) {
    return torch_legacy_reader(std::move(source), bounds, begin, end).read_storage();
  });
  TENSORSMITH_TRY(torch_checkpoint out, torch_walk(doc, tensors, file->name(), "pickle", bounds).run(select));
  tensors.note_shared_bytes();
  out.notes = tensors.notes();
  return out;
}

}  // namespace detail
TENSORSMITH_END_NAMESPACE
