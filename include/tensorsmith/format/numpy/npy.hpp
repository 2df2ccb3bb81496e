// SPDX-License-Identifier: MIT
//
// tensorsmith/format/numpy/npy.hpp: reads .npy files: one array, one tensor.
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
#include "tensorsmith/io/path.hpp"
#include "tensorsmith/tensor/byte_swap.hpp"
#include "tensorsmith/tensor/catalog.hpp"
#include "tensorsmith/tensor/stored.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// True if the file starts with NumPy's magic bytes.
inline bool looks_like_npy(const byte_source& file) {
  std::array<char, 6> start{};
  return file.size() >= start.size() && file.read_at(0, std::as_writable_bytes(std::span(start))) &&
         std::string_view(start.data(), start.size()) == detail::npy_magic;
}

/// Reads and proves the header of a .npy file; no element is read.
/// @fails malformed, limit, unsupported (objects, strings, dates, records, other versions), io
inline result<npy_header> read_npy_header(const byte_source& file, const limits& bounds = {}) {
  return detail::read_npy_header(file.size(), file.name(), {}, bounds, [&](std::size_t count) -> result<std::vector<std::byte>> {
    std::vector<std::byte> bytes(static_cast<std::size_t>(std::min<std::uint64_t>(count, file.size())));
    TENSORSMITH_CHECK(file.read_at(0, bytes));
    return bytes;
  });
}

/// The array as a catalog of one tensor, named after the file: "a/unet.npy" → "unet". Fortran order becomes strides, big-endian
/// elements are swapped as they pass. @fails as read_npy_header
inline result<catalog> read_npy(std::shared_ptr<const byte_source> file, const limits& bounds = {}) {
  TENSORSMITH_TRY(npy_header header, read_npy_header(*file, bounds));
  std::string_view name = file_name(file->name());
  name.remove_suffix(extension(name).size());
  std::string origin = file->name() + ": " + quoted(name);
  std::vector<std::size_t> strides = header.strides();
  recipe_ptr source = strided_tensor(file, header.data_offset, header.type, std::move(header.shape), std::move(strides), origin);
  if (header.big_endian) source = byte_swapped(std::move(source));
  catalog out;
  TENSORSMITH_CHECK(out.add(std::string(name), {std::move(source), 0}, std::move(origin)));
  return out;
}

TENSORSMITH_END_NAMESPACE
