// SPDX-License-Identifier: MIT
//
// tensorsmith/io/zip_inflate.hpp: deflated zip entries as tensors: a look at their first bytes, and memory only while they are used.
//
// Include this in readers of zips that may be compressed (npz). A deflate stream can only be read from its start: a tensor in it is
// inflated as a whole when its turn comes, within the job's memory budget, and freed after its last tile.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/io/zip.hpp"
#include "tensorsmith/tensor/stored.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// The first `count` bytes of an entry, fewer if it is shorter. Inflates no more than that; nothing is compared with the CRC-32.
/// @fails malformed (damaged deflate data), io
inline result<std::vector<std::byte>> read_entry_start(const zip_archive& archive, const zip_entry& e, std::size_t count) {
  const byte_source& file = *archive.file();
  std::vector<std::byte> out(static_cast<std::size_t>(std::min<std::uint64_t>(count, e.size)));
  if (e.method == 0) {
    TENSORSMITH_CHECK(file.read_at(e.data_offset, out));
    return out;
  }
  z_stream stream{};
  if (::inflateInit2(&stream, -MAX_WBITS) != Z_OK)
    return detail::zip_entry_failure(file, e, errc::internal, "zlib cannot start", {}, stream.msg ? stream.msg : "no reason");
  const std::unique_ptr<z_stream, int (*)(z_stream*)> closing(&stream, &::inflateEnd);
  std::vector<std::byte> in(static_cast<std::size_t>(std::min<std::uint64_t>(e.compressed, 4096)));
  std::uint64_t consumed = 0;
  std::size_t produced = 0;
  while (produced < out.size()) {
    if (stream.avail_in == 0 && consumed < e.compressed) {
      const auto part = std::span(in).first(static_cast<std::size_t>(std::min<std::uint64_t>(in.size(), e.compressed - consumed)));
      TENSORSMITH_CHECK(file.read_at(e.data_offset + consumed, part));
      consumed += part.size();
      stream.next_in = reinterpret_cast<Bytef*>(part.data());
      stream.avail_in = static_cast<uInt>(part.size());
    }
    const std::size_t room = std::min<std::size_t>(out.size() - produced, std::size_t{1} << 30);
    stream.next_out = reinterpret_cast<Bytef*>(out.data() + produced);
    stream.avail_out = static_cast<uInt>(room);
    const int status = ::inflate(&stream, Z_NO_FLUSH);
    produced += room - stream.avail_out;
    if (status == Z_OK && produced < out.size()) continue;
    if (produced < out.size())
      return detail::zip_entry_failure(file, e, errc::malformed, "the deflated data is damaged", "a complete deflate stream",
                                       stream.msg ? stream.msg : "it stops after " + std::to_string(produced) + " bytes");
  }
  return out;
}

namespace detail {

/// The contents of a deflated entry, in memory between pin() and unpin().
class pinned_entry final : public byte_source {
 public:
  pinned_entry(zip_archive archive, zip_entry e) : archive_(std::move(archive)), entry_(std::move(e)) {}
  std::uint64_t size() const noexcept override { return entry_.size; }
  const std::string& name() const noexcept override { return archive_.file()->name(); }
  std::span<const std::byte> resident() const noexcept override { return bytes_; }
  result<void> check_unchanged() const override { return archive_.file()->check_unchanged(); }

  /// Inflates and compares with the CRC-32 if nobody else did; repeats a failure. Every call needs an unpin(), also a failed one.
  result<void> pin() {
    const std::lock_guard lock(mutex_);
    if (users_++ == 0) {
      auto bytes = inflate_entry(*archive_.file(), entry_);
      if (bytes && archive_.checks_crc()) error_ = compare_crc(*archive_.file(), entry_, crc32_of(*bytes));
      if (!bytes) error_ = std::move(bytes).error();
      else if (error_) bytes_ = std::move(bytes).value();
    }
    return error_;
  }
  void unpin() noexcept {
    const std::lock_guard lock(mutex_);
    if (users_ > 0 && --users_ == 0) bytes_ = decltype(bytes_)(), error_ = {};
  }

  result<void> read_at(std::uint64_t offset, std::span<std::byte> out) const override {
    if (bytes_.size() != entry_.size || offset > entry_.size || out.size() > entry_.size - offset)
      return zip_entry_failure(*archive_.file(), entry_, errc::internal, "a compressed entry is read before it was inflated",
                               std::to_string(out.size()) + " bytes at " + std::to_string(offset), std::to_string(bytes_.size()) + " bytes");
    if (!out.empty()) std::memcpy(out.data(), bytes_.data() + offset, out.size());
    return {};
  }

 private:
  zip_archive archive_;
  zip_entry entry_;
  std::mutex mutex_;
  std::size_t users_ = 0;
  std::vector<std::byte> bytes_;
  result<void> error_;
};

/// A view of a pinned entry: the recipe below reads it, this one says when it is needed.
class inflated_recipe final : public recipe {
 public:
  inflated_recipe(std::shared_ptr<pinned_entry> entry, recipe_ptr inner) : entry_(std::move(entry)), inner_(std::move(inner)) {}
  std::span<const tensor_info> outputs() const noexcept override { return inner_->outputs(); }
  plane work() const override { return inner_->work(); }
  region grain() const override { return inner_->grain(); }
  std::size_t prepared_bytes() const noexcept override { return static_cast<std::size_t>(entry_->size()); }
  result<void> do_prepare(const job& run) override {
    auto outcome = entry_->pin();
    if (outcome) outcome = inner_->prepare(run);
    if (!outcome) entry_->unpin();
    return outcome;
  }
  void do_release() noexcept override {
    inner_->release();
    entry_->unpin();
  }
  void add_sources(std::vector<std::shared_ptr<const byte_source>>& out) const override { inner_->add_sources(out); }
  result<view> load(region r, scratch& work) const override { return inner_->load(r, work); }
  result<void> produce(region r, std::span<const tile> tiles, scratch& work) const override { return inner_->produce(r, tiles, work); }
  recipe_ptr fold_transpose() const override { return wrapped(inner_->fold_transpose()); }
  recipe_ptr fold_reshape(const shape_type& shape) const override { return wrapped(inner_->fold_reshape(shape)); }
  recipe_ptr fold_rows(std::size_t first, std::size_t count) const override { return wrapped(inner_->fold_rows(first, count)); }

 private:
  recipe_ptr wrapped(recipe_ptr folded) const { return folded ? std::make_shared<inflated_recipe>(entry_, std::move(folded)) : nullptr; }
  std::shared_ptr<pinned_entry> entry_;
  recipe_ptr inner_;
};

}  // namespace detail

/// A tensor at byte `offset` of an entry's contents, stored or deflated, with strides in elements. A stored entry is compared with
/// its CRC-32 before the first tile, a deflated one when it is inflated. @pre its bytes lie inside the entry; whole-byte elements
inline recipe_ptr tensor_in_entry(const zip_archive& archive, const zip_entry& e, std::uint64_t offset, dtype type, shape_type shape,
                                  std::vector<std::size_t> strides_in_elements, std::string where) {
  if (e.method == 0) {
    entry_bytes bytes = open_entry(archive, e);
    return strided_tensor(std::move(bytes.source), bytes.offset + offset, type, std::move(shape), std::move(strides_in_elements),
                          std::move(where), std::move(bytes.check));
  }
  auto entry = std::make_shared<detail::pinned_entry>(archive, e);
  return std::make_shared<detail::inflated_recipe>(
      entry, strided_tensor(entry, offset, type, std::move(shape), std::move(strides_in_elements), std::move(where)));
}

TENSORSMITH_END_NAMESPACE
