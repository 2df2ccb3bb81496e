// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/recipe.hpp: how to produce any region of one or more planned tensors.
//
// Include this to write a recipe (a reader's leaf, a cast, a merge, a quantizer). One virtual call a tile, no type per chain.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/core/job.hpp"
#include "tensorsmith/tensor/byte_io.hpp"
#include "tensorsmith/tensor/region.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Working memory of one thread, used as a stack: what a call takes is given back by the scope that called it.
class scratch {
 public:
  /// `bytes` bytes aligned to 64; contents unspecified; valid until the enclosing `scope` ends.
  std::span<std::byte> take(std::size_t bytes) {
    const std::size_t need = (bytes + 63) / 64 * 64;
    while (current_ < blocks_.size() && blocks_[current_].size - used_ < need) next_block();
    if (current_ == blocks_.size()) {
      constexpr std::size_t smallest = 64u << 10;
      blocks_.push_back(block{need < smallest ? smallest : need});
      used_ = 0;
    }
    std::byte* data = blocks_[current_].data.get() + used_;
    used_ += need;
    return {data, bytes};
  }

  /// Gives back on destruction what was taken since its construction.
  class scope {
   public:
    explicit scope(scratch& owner) noexcept : owner_(owner), current_(owner.current_), used_(owner.used_) {}
    ~scope() { owner_.current_ = current_, owner_.used_ = used_; }
    scope(const scope&) = delete;
    scope& operator=(const scope&) = delete;

   private:
    scratch& owner_;
    std::size_t current_, used_;
  };

 private:
  struct aligned_delete {
    void operator()(std::byte* data) const noexcept { ::operator delete(data, std::align_val_t{64}); }
  };
  struct block {
    explicit block(std::size_t bytes)
        : size(bytes), data(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64}))) {}
    std::size_t size;
    std::unique_ptr<std::byte, aligned_delete> data;
  };
  void next_block() noexcept { ++current_, used_ = 0; }

  std::vector<block> blocks_;
  std::size_t current_ = 0, used_ = 0;
};

/// A tensor that lies contiguously, row-major, in a source: bytes [offset, offset + length).
struct stored_bytes {
  std::shared_ptr<const byte_source> source;
  std::uint64_t offset = 0, length = 0;
};

/// How to produce any region of 1..n planned tensors. Regions are in elements of `work()`, the plane all outputs share
/// unless `output_region` maps it. Thread-safe after `prepare`; regions may be asked for in any order.
class recipe {
 public:
  recipe() = default;
  recipe(const recipe&) = delete;
  recipe& operator=(const recipe&) = delete;
  virtual ~recipe() = default;

  /// Whole-tensor work before the first tile (statistics, checksums). Every user calls it, several placements or recipes at a time if they share
  /// this one: the first call does the work, the others wait for it. After a failure there is nothing to release, and the next call tries again.
  result<void> prepare(const job& run) {
    const lock one(preparing_);
    if (users_ == 0) TENSORSMITH_CHECK(do_prepare(run));
    ++users_;
    return {};
  }
  /// Ends the use that a successful prepare began; the last one frees what was prepared.
  void release() noexcept {
    const lock one(preparing_);
    if (users_ > 0 && --users_ == 0) do_release();
  }

  /// The planned tensors (types and shapes; names are the catalog's business).
  virtual std::span<const tensor_info> outputs() const noexcept = 0;
  /// The plane that is walked. Default: the plane of output 0.
  virtual plane work() const { return plane_of(outputs()[0].shape); }
  /// Regions are multiples of grain.rows × grain.cols (except at the edge) and start at multiples of them.
  virtual region grain() const { return {0, 1, 0, 1}; }
  /// The region of output `k` that follows from region `r` of the work plane. Default: the same.
  virtual region output_region(std::size_t /*k*/, region r) const { return r; }
  /// Bytes that stay allocated between prepare and release; the executor admits recipes within the memory budget.
  virtual std::size_t prepared_bytes() const noexcept { return 0; }
  /// The bytes of region `r` of output 0 where they lie if possible, else produced into `work`. Single-output recipes only.
  virtual result<view> load(region r, scratch& work) const {
    const std::size_t pitch = row_bytes(r);
    const auto bytes = work.take(pitch * r.rows);
    const tile whole{bytes.data(), pitch};
    TENSORSMITH_CHECK(produce(r, std::span<const tile>(&whole, 1), work));
    return view{bytes.data(), pitch};
  }
  /// Writes output_region(k, r) of each output k into `tiles[k]`.
  virtual result<void> produce(region r, std::span<const tile> tiles, scratch& work) const = 0;
  /// Where output 0 lies stored, contiguous and unchanged, if it does: lets writers refer to it.
  virtual std::optional<stored_bytes> stored() const { return std::nullopt; }

  /// Appends the sources whose bytes are read, so that a writer can ask them whether they changed meanwhile.
  virtual void add_sources(std::vector<std::shared_ptr<const byte_source>>& /*out*/) const {}

  /// The same tensor seen otherwise, if that costs nothing at run time (strides change, a cast moves outwards); else nullptr.
  /// tensor/stored.hpp's transposed, reshaped and sliced_rows try these first. Single-output recipes only.
  virtual std::shared_ptr<recipe> fold_transpose() const { return nullptr; }
  virtual std::shared_ptr<recipe> fold_reshape(const shape_type&) const { return nullptr; }
  virtual std::shared_ptr<recipe> fold_rows(std::size_t /*first*/, std::size_t /*count*/) const { return nullptr; }
  /// If this only converts the element type of another recipe's output 0: that recipe; else nullptr.
  virtual std::shared_ptr<recipe> uncast() const { return nullptr; }

 protected:
  /// What `prepare` does for the first user. A recipe over others prepares them here and, if it fails afterwards, releases those again.
  virtual result<void> do_prepare(const job&) { return {}; }
  /// Frees what do_prepare allocated, and releases the recipes that it prepared.
  virtual void do_release() noexcept {}
  /// Bytes of one row of region `r` of output 0. @pre whole bytes (the grain sees to it)
  std::size_t row_bytes(region r) const noexcept { return byte_count(outputs()[0].type, r.cols); }

 private:
  /// A mutex of one byte: a catalog may hold a million recipes.
  class lock {
   public:
    explicit lock(std::atomic_flag& flag) noexcept : flag_(flag) {
      while (flag_.test_and_set(std::memory_order_acquire)) flag_.wait(true, std::memory_order_relaxed);
    }
    ~lock() {
      flag_.clear(std::memory_order_release);
      flag_.notify_one();
    }
    lock(const lock&) = delete;
    lock& operator=(const lock&) = delete;

   private:
    std::atomic_flag& flag_;
  };
  std::atomic_flag preparing_;
  std::uint32_t users_ = 0;
};

using recipe_ptr = std::shared_ptr<recipe>;

/// Prepares all of them or, after a failure, none.
inline result<void> prepare_all(std::span<const recipe_ptr> recipes, const job& run) {
  for (std::size_t i = 0; i < recipes.size(); ++i)
    if (auto outcome = recipes[i]->prepare(run); !outcome) {
      while (i-- > 0) recipes[i]->release();
      return outcome;
    }
  return {};
}

/// Copies `rows` rows of `bytes` bytes each.
inline void copy_rows(view from, tile to, std::size_t rows, std::size_t bytes) noexcept {
  if (bytes == 0 || rows == 0) return;
  if (from.pitch == bytes && to.pitch == bytes) {
    std::memcpy(to.data, from.data, rows * bytes);
    return;
  }
  for (std::size_t r = 0; r < rows; ++r) std::memcpy(to.data + r * to.pitch, from.data + r * from.pitch, bytes);
}

/// One output of a recipe: what a catalog entry or a graph's initializer holds.
struct tensor_ref {
  recipe_ptr source;
  std::size_t output = 0;

  explicit operator bool() const noexcept { return source != nullptr; }
  const tensor_info& info() const { return source->outputs()[output]; }
  dtype type() const { return info().type; }
  const shape_type& shape() const { return info().shape; }
};

TENSORSMITH_END_NAMESPACE
