// SPDX-License-Identifier: MIT
//
// tensorsmith/format/numpy/npz.hpp: reads .npz files: a zip archive in which every entry called *.npy is an array.
//
// Opening reads the zip directory and the start of each entry. Compressed entries (numpy.savez_compressed) are inflated when their
// turn comes, one at a time within the memory budget.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/format/numpy/header.hpp"
#include "tensorsmith/io/zip_inflate.hpp"
#include "tensorsmith/tensor/byte_swap.hpp"
#include "tensorsmith/tensor/catalog.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What a .npz file holds. `tensors` and `ignored` together are all of its entries.
struct npz_contents {
  catalog tensors;                   ///< in the order of the archive; "unet/x.npy" is called "unet/x"
  std::vector<note> notes;
  std::vector<std::string> ignored;  ///< entries that are no arrays: "readme.txt: its name does not end in .npy"
};

/// True if the file starts with the local header of a zip entry whose name ends in ".npy".
inline bool looks_like_npz(const byte_source& file) {
  std::array<std::byte, 30> head{};
  if (file.size() < head.size() || !file.read_at(0, head) || detail::zip_u32(head, 0) != 0x04034B50) return false;
  std::vector<std::byte> name(detail::zip_u16(head, 26));
  if (name.size() < 4 || name.size() > file.size() - head.size() || !file.read_at(head.size(), name)) return false;
  return std::string_view(reinterpret_cast<const char*>(name.data()), name.size()).ends_with(".npy");
}

/// Reads the names, types and shapes of all arrays; no element is read.
/// @fails as open_zip; malformed, limit, unsupported for an array (objects, strings, dates, records), io
inline result<npz_contents> read_npz(std::shared_ptr<const byte_source> file, const limits& bounds = {}) {
  TENSORSMITH_TRY(const zip_archive archive, open_zip(file, bounds));
  npz_contents out;
  std::vector<catalog_entry> planned;
  for (const zip_entry& e : archive.entries()) {
    if (e.is_folder() || !e.name.ends_with(".npy")) {
      out.ignored.push_back(quoted(e.name) + (e.is_folder() ? ": a folder" : ": its name does not end in .npy"));
      continue;
    }
    if (planned.size() >= bounds.tensors)
      return failure{.code = errc::limit, .what = "the file has too many tensors", .file = file->name(), .place = "zip entry " + quoted(e.name),
                     .expected = "at most " + std::to_string(bounds.tensors),
                     .advice = "raise limits::tensors (--max-tensors) if you trust it"};
    if (std::size_t bad = 0; !is_utf8(e.name, bad))
      return failure{.code = errc::malformed, .what = "a name is no UTF-8", .file = file->name(), .place = "zip entry " + quoted(e.name),
                     .expected = "UTF-8", .found = "another byte at offset " + std::to_string(bad), .advice = "rename the array"};
    TENSORSMITH_TRY(npy_header header,
                    detail::read_npy_header(e.size, file->name(), "zip entry " + quoted(e.name) + ", ", bounds,
                                            [&](std::size_t count) { return read_entry_start(archive, e, count); }));
    std::string name = e.name.substr(0, e.name.size() - 4), origin = file->name() + ": " + quoted(name);
    std::vector<std::size_t> strides = header.strides();
    recipe_ptr source = tensor_in_entry(archive, e, header.data_offset, header.type, std::move(header.shape), std::move(strides), origin);
    if (header.big_endian) source = byte_swapped(std::move(source));
    planned.push_back({std::move(name), {std::move(source), 0}, std::move(origin)});
  }
  TENSORSMITH_CHECK(out.tensors.add_all(std::move(planned)));
  return out;
}

TENSORSMITH_END_NAMESPACE
