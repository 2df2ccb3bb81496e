// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/content_hash.hpp: the SHA-256 of a planned tensor's bytes, without holding them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "tensorsmith/core/sha256.hpp"
#include "tensorsmith/tensor/executor.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// Hashes what is written in order, from offset 0 on.
class hashing_sink final : public byte_sink {
 public:
  const std::string& name() const noexcept override { return name_; }
  result<void> write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
    if (offset != next_)
      return failure{.code = errc::internal, .what = "tiles to be hashed come out of order", .place = "byte offset " + std::to_string(offset),
                     .expected = std::to_string(next_)};
    hash_.update(bytes);
    next_ += bytes.size();
    return {};
  }
  sha256_digest finish() noexcept { return hash_.finish(); }

 private:
  std::string name_ = "hash";
  sha256 hash_;
  std::uint64_t next_ = 0;
};

}  // namespace detail

/// The SHA-256 of a tensor's bytes, row-major. One tile is held (a band of rows where the recipe cannot give less; all of the tensor where
/// its recipe makes several at once). @fails as the recipe
inline result<sha256_digest> sha256_of(const tensor_ref& tensor, const job& run) {
  if (tensor.source->outputs().size() != 1) {
    TENSORSMITH_TRY(const auto bytes, materialize(tensor, run));
    sha256 hash;
    hash.update(bytes);
    return hash.finish();
  }
  // One thread walks the tiles in order; tiles of whole rows are written in the order of the bytes.
  const plane all = plane_of(tensor.shape());
  const region grain = tensor.source->grain();
  job quiet;
  quiet.limits = run.limits;
  quiet.threads = 1;
  quiet.cancel = run.cancel;
  quiet.tile_bytes = run.tile_bytes;
  if (grain.rows > 1) quiet.tile_bytes = std::max(quiet.tile_bytes, byte_count(tensor.type(), std::min(grain.rows, all.rows) * all.cols));
  detail::hashing_sink sink;
  const placement whole{tensor.source, {{&sink, 0}}, tensor.info().name};
  TENSORSMITH_CHECK(execute({&whole, 1}, quiet));
  return sink.finish();
}

TENSORSMITH_END_NAMESPACE
