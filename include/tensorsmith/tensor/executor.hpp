// SPDX-License-Identifier: MIT
//
// tensorsmith/tensor/executor.hpp: walks planned tensors in tiles, on all threads, straight to their final offsets.
//
// Include this to write a sink of tensors (execute) or to get a small tensor's bytes (materialize). This is the one header of the
// library that starts threads.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tensorsmith/core/job.hpp"
#include "tensorsmith/tensor/recipe.hpp"
#include "tensorsmith/tensor/tiling.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// The shared state of one run. Work is handed out in (placement, tile) order; a placement is prepared by the first thread
/// that reaches it.
class execution {
 public:
  execution(std::span<const placement> placements, const job& run) : run_(run), placements_(placements) {
    states_.reserve(placements.size());
    for (const placement& p : placements) {
      states_.push_back(state{plan_tiles(p, run.tile_bytes)});
      for (std::size_t k = 0; k < p.slots.size(); ++k)
        if (p.slots[k].sink) progress_.total_bytes += p.source->outputs()[k].bytes();
    }
  }

  result<void> go() {
    const unsigned threads = thread_count();
    std::vector<std::thread> workers;
    for (unsigned i = 1; i < threads; ++i) {
      try {
        workers.emplace_back([this] { work(); });
      } catch (const std::exception&) {
        break;  // the system gives no more threads: go on with those there are
      }
    }
    work();
    for (std::thread& w : workers) w.join();
    for (std::size_t i = 0; i < states_.size(); ++i)
      if (states_[i].stage == phase::ready) placements_[i].source->release();
    if (failed_) return std::move(error_);
    return {};
  }

 private:
  enum class phase : std::uint8_t { waiting, preparing, ready, done };
  struct state {
    tile_grid grid;
    std::size_t next = 0;  // next tile to hand out
    std::size_t open = 0;  // tiles handed out and not finished
    phase stage = phase::waiting;
  };
  struct item {
    std::size_t placement = 0, tile = 0;
    bool prepare = false;
  };

  /// As many threads as asked for, but no more than the memory budget holds tiles for: a tile of the largest placement may be
  /// there three times (read, computed, transposed).
  unsigned thread_count() const {
    std::size_t largest = 1;
    for (const state& s : states_) largest = std::max(largest, 3 * s.grid.tile_bytes);
    const std::size_t affordable = std::max<std::size_t>(1, run_.memory_bytes / largest);
    const unsigned wanted = run_.threads ? run_.threads : std::max(1u, std::thread::hardware_concurrency());
    return static_cast<unsigned>(std::min<std::size_t>(wanted, affordable));
  }

  void work() {
    scratch memory;
    item todo;
    while (claim(todo)) {
      result<void> outcome;
      try {
        outcome = todo.prepare ? placements_[todo.placement].source->prepare(run_) : run_tile(todo, memory);
      } catch (const std::bad_alloc&) {
        outcome = failure{.code = errc::limit, .what = "out of memory", .place = placements_[todo.placement].name,
                          .advice = "lower --threads or --memory"};
      } catch (const std::exception& e) {
        outcome = failure{.code = errc::internal, .what = e.what(), .place = placements_[todo.placement].name};
      }
      finish(todo, std::move(outcome));
    }
  }

  bool claim(item& out) {
    std::unique_lock lock(mutex_);
    for (;;) {
      if (!failed_ && run_.cancelled())
        fail({0, 0, true}, failure{.code = errc::cancelled, .what = "cancelled; nothing was written"});
      if (find_work(out)) return true;
      if (busy_ == 0) return false;
      wake_.wait(lock);
    }
  }

  bool find_work(item& out) {
    while (front_ < states_.size() && states_[front_].stage == phase::done) ++front_;
    for (std::size_t i = front_; i < states_.size(); ++i) {
      state& s = states_[i];
      if (!still_wanted(i, s.stage == phase::ready ? s.next + 1 : 0)) return false;
      if (s.stage == phase::ready && s.next < s.grid.count()) {
        out = {i, s.next++, false};
        ++s.open, ++busy_;
        return true;
      }
      if (s.stage != phase::waiting) continue;
      const std::size_t need = placements_[i].source->prepared_bytes();
      if (prepared_ != 0 && prepared_ + need > run_.memory_bytes) return false;  // wait until something is released
      prepared_ += need;
      s.stage = phase::preparing;
      out = {i, 0, true};
      ++busy_;
      return true;
    }
    return false;
  }

  void finish(const item& done, result<void> outcome) {
    std::uint64_t total = 0;
    {
      const std::scoped_lock lock(mutex_);
      --busy_;
      state& s = states_[done.placement];
      if (!outcome) {
        fail(done, std::move(outcome).error());
        if (done.prepare) s.stage = phase::done;
      } else if (done.prepare) {
        s.stage = phase::ready;
      } else {
        progress_.done_bytes += s.grid.output_bytes(done.tile);
      }
      if (!done.prepare) --s.open;
      if (s.stage == phase::ready && s.next == s.grid.count() && s.open == 0) {
        s.stage = phase::done;
        placements_[done.placement].source->release();
        prepared_ -= placements_[done.placement].source->prepared_bytes();
      }
      total = progress_.done_bytes;
    }
    wake_.notify_all();
    if (!run_.on_progress) return;
    if (const std::unique_lock one(progress_mutex_, std::try_to_lock); one.owns_lock() && total > reported_) {
      reported_ = total;
      run_.on_progress({total, progress_.total_bytes});
    }
  }

  /// After a failure only what comes before it in (placement, tile) order is still done: it may hold an earlier one.
  bool still_wanted(std::size_t placement, std::size_t step) const noexcept { return !failed_ || std::pair(placement, step) < first_; }

  /// The first error in (placement, tile) order wins. Threads run ahead of a placement that is still being prepared, so a later
  /// error may be met first; see still_wanted.
  void fail(const item& at, failure error) {
    const auto key = std::pair(at.placement, at.prepare ? 0 : at.tile + 1);
    if (failed_ && first_ <= key) return;
    failed_ = true;
    first_ = key;
    error_ = std::move(error);
  }

  result<void> run_tile(const item& todo, scratch& memory) {
    const scratch::scope keep(memory);
    const placement& p = placements_[todo.placement];
    const tile_grid& grid = states_[todo.placement].grid;
    const recipe& source = *p.source;
    const region r = grid.at(todo.tile);
    if (r.elements() == 0) return {};
    if (source.outputs().size() == 1) {
      if (!p.slots[0].sink) return {};
      if (const auto there = place_of(p.slots[0], source.outputs()[0], r))
        return source.produce(r, std::span<const tile>(&*there, 1), memory);
      TENSORSMITH_TRY(const view bytes, source.load(r, memory));
      return write_region(p.slots[0], source.outputs()[0], r, bytes);
    }
    std::vector<tile> tiles(source.outputs().size());
    std::vector<bool> placed(tiles.size(), false);
    for (std::size_t k = 0; k < tiles.size(); ++k) {
      const region part = source.output_region(k, r);
      const auto there = p.slots[k].sink ? place_of(p.slots[k], source.outputs()[k], part) : std::nullopt;
      placed[k] = there.has_value();
      const std::size_t pitch = byte_count(source.outputs()[k].type, part.cols);
      tiles[k] = there ? *there : tile{memory.take(pitch * part.rows).data(), pitch};
    }
    TENSORSMITH_CHECK(source.produce(r, tiles, memory));
    for (std::size_t k = 0; k < tiles.size(); ++k)
      if (p.slots[k].sink && !placed[k])
        TENSORSMITH_CHECK(write_region(p.slots[k], source.outputs()[k], source.output_region(k, r),
                                       {tiles[k].data, tiles[k].pitch}));
    return {};
  }

  /// Where a region goes, if its sink is plain memory that holds the whole tensor: no copy is needed then.
  static std::optional<tile> place_of(const output_slot& slot, const tensor_info& info, region r) {
    const std::span<std::byte> memory = slot.sink->resident();
    const std::uint64_t bytes = info.bytes();
    if (slot.offset > memory.size() || bytes > memory.size() - slot.offset) return std::nullopt;
    const std::size_t pitch = byte_count(info.type, plane_of(info.shape).cols);
    return tile{memory.data() + slot.offset + r.row * pitch + byte_count(info.type, r.col), pitch};
  }

  static result<void> write_region(const output_slot& slot, const tensor_info& info, region r, view bytes) {
    const plane all = plane_of(info.shape);
    const std::size_t pitch = byte_count(info.type, all.cols), row = byte_count(info.type, r.cols);
    const std::uint64_t first = slot.offset + r.row * pitch + byte_count(info.type, r.col);
    if (r.cols == all.cols && bytes.pitch == row) return slot.sink->write_at(first, {bytes.data, row * r.rows});
    for (std::size_t i = 0; i < r.rows; ++i)
      TENSORSMITH_CHECK(slot.sink->write_at(first + i * pitch, {bytes.data + i * bytes.pitch, row}));
    return {};
  }

  const job& run_;
  std::span<const placement> placements_;
  std::vector<state> states_;
  std::mutex mutex_, progress_mutex_;
  std::condition_variable wake_;
  std::size_t front_ = 0, busy_ = 0, prepared_ = 0;
  bool failed_ = false;
  std::pair<std::size_t, std::size_t> first_{};
  failure error_;
  progress progress_;
  std::uint64_t reported_ = 0;
};

}  // namespace detail

/// Produces all placements. Bytes out are the same for any thread count and tile size. On failure (or cancellation) the sinks hold
/// partial bytes: the caller must not publish them. The first error in (placement, tile) order is returned.
inline result<void> execute(std::span<const placement> placements, const job& run) {
  return detail::execution(placements, run).go();
}

/// The bytes of one planned tensor, row-major. For small tensors: all of it is held in memory.
inline result<std::vector<std::byte>> materialize(const tensor_ref& tensor, const job& run) {
  std::vector<std::byte> bytes(tensor.info().bytes());
  memory_sink sink(bytes);
  placement whole{tensor.source, std::vector<output_slot>(tensor.source->outputs().size()), tensor.info().name};
  whole.slots[tensor.output] = {&sink, 0};
  job quiet;
  quiet.limits = run.limits;
  quiet.threads = 1;
  quiet.cancel = run.cancel;
  TENSORSMITH_CHECK(execute(std::span<const placement>(&whole, 1), quiet));
  return bytes;
}

TENSORSMITH_END_NAMESPACE
