// SPDX-License-Identifier: MIT
//
// tensorsmith/io/descriptor_pool.hpp: many files with few open descriptors.
//
// Include io/file.hpp instead. A model of 1,000 shards must work where a process may have 1,024 descriptors, or 16: a file of a
// pool is closed while nobody uses it and opened again when it is needed, and must then be the same file.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/io/os.hpp"

TENSORSMITH_BEGIN_NAMESPACE

class descriptor_pool;

/// An open file. With a pool, its descriptor may be closed and opened again between two uses; without one it stays open until the
/// end and a use costs nothing.
class pooled_file {
 public:
  enum class access : std::uint8_t { read, write };

  /// `status`: what it was when it was opened. `path` must stay valid: the real path where a pool is given.
  pooled_file(os::descriptor file, std::string path, std::string name, const os::file_status& status, access mode,
              std::shared_ptr<descriptor_pool> pool);
  pooled_file(const pooled_file&) = delete;
  pooled_file& operator=(const pooled_file&) = delete;
  ~pooled_file();

  /// The descriptor, which stays open as long as this lives.
  class use {
   public:
    use(const pooled_file* file, const os::descriptor& number) noexcept : file_(file), number_(&number) {}
    use(use&& other) noexcept : file_(std::exchange(other.file_, nullptr)), number_(other.number_) {}
    use& operator=(use&&) = delete;
    ~use() {
      if (file_) file_->state_.fetch_sub(1, std::memory_order_release);
    }
    const os::descriptor& descriptor() const noexcept { return *number_; }

   private:
    const pooled_file* file_;
    const os::descriptor* number_;
  };

  /// Opens it again where that is needed. @fails integrity (another file has the name now, or it changed), io, no_space (what was
  /// written could not be brought to the disk when the pool closed it)
  result<use> hold() const;
  /// The number of the descriptor, which the pool leaves open from now on; -1 if it cannot be opened.
  int keep_open() const noexcept;

  const std::string& path() const noexcept { return path_; }
  const std::string& name() const noexcept { return name_; }
  const os::file_status& status() const noexcept { return status_; }

  /// Said before the first byte of each write.
  void about_to_write() const noexcept { dirty_.store(true, std::memory_order_relaxed); }
  /// Brings what was written to the disk; what the pool closed is there already. @fails io, no_space
  result<void> synchronize() const;
  /// Starts bringing it there, if it is open.
  void start_writeback() const noexcept;
  /// Closes for good; using it afterwards fails. @fails io, no_space
  result<void> close();

 private:
  friend class descriptor_pool;
  static constexpr std::uint32_t closed = std::uint32_t{1} << 31;

  result<os::descriptor> open_again() const;
  void close_idle() const noexcept;

  std::string path_, name_;
  os::file_status status_;
  access mode_;
  std::shared_ptr<descriptor_pool> pool_;
  // Uses, and `closed` while the descriptor is not open. file_ changes only under the pool's lock and while `closed` is set.
  mutable std::atomic<std::uint32_t> state_{0};
  mutable std::atomic<bool> recent_{true}, dirty_{true}, kept_{false};
  mutable os::descriptor file_;
  mutable std::optional<failure> lost_;  // under the pool's lock: why it cannot be used any more
};

/// Keeps the number of open descriptors of its files at `most`, less those that threads are using at that moment. A descriptor
/// that was not used for longest, as far as one mark a file tells, is closed first.
class descriptor_pool {
 public:
  /// A quarter of what the process may open, 24 at most: a reading and a writing pool and the rest of a run stay below 64.
  static std::size_t usual_size() noexcept {
    return static_cast<std::size_t>(std::clamp<std::uint64_t>(os::descriptor_limit() / 4, 1, 24));
  }

  explicit descriptor_pool(std::size_t most = usual_size()) : most_(std::max<std::size_t>(most, 1)) {}

  /// Opens with `open() -> result<os::descriptor>`; if that fails, once more after closing all idle ones (EMFILE).
  template <class Open>
  result<os::descriptor> open(Open&& open_file) {
    const std::scoped_lock lock(mutex_);
    make_room(most_ - 1);
    return open_twice(open_file);
  }

  /// Descriptors that are open now.
  std::size_t open_count() const {
    const std::scoped_lock lock(mutex_);
    return open_.size();
  }

 private:
  friend class pooled_file;

  void enter(const pooled_file& file) {
    const std::scoped_lock lock(mutex_);
    open_.push_back(&file);
  }
  void leave(const pooled_file& file) noexcept {
    const std::scoped_lock lock(mutex_);
    std::erase(open_, &file);
  }

  result<void> reopen(const pooled_file& file) {
    const std::scoped_lock lock(mutex_);
    if ((file.state_.load(std::memory_order_acquire) & pooled_file::closed) == 0) return {};
    if (file.lost_) return *file.lost_;
    make_room(most_ - 1);
    open_.reserve(open_.size() + 1);
    TENSORSMITH_TRY(file.file_, open_twice([&] { return file.open_again(); }));
    open_.push_back(&file);
    file.recent_.store(true, std::memory_order_relaxed);
    file.state_.fetch_and(~pooled_file::closed, std::memory_order_release);
    return {};
  }

  template <class Open>
  result<os::descriptor> open_twice(Open&& open_file) {
    result<os::descriptor> file = open_file();
    if (!file && !open_.empty()) {
      make_room(0);
      file = open_file();
    }
    return file;
  }

  void make_room(std::size_t most) noexcept {
    // Two rounds: the first takes the marks away, the second finds those without. What threads hold stays.
    for (std::size_t steps = 2 * open_.size(); open_.size() > most && steps != 0; --steps) {
      hand_ = hand_ < open_.size() ? hand_ : 0;
      const pooled_file& file = *open_[hand_];
      std::uint32_t unused = 0;
      if (file.recent_.exchange(false, std::memory_order_relaxed) ||
          !file.state_.compare_exchange_strong(unused, pooled_file::closed, std::memory_order_acq_rel)) {
        ++hand_;
        continue;
      }
      file.close_idle();
      open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(hand_));
    }
  }

  std::size_t most_, hand_ = 0;
  mutable std::mutex mutex_;
  std::vector<const pooled_file*> open_;
};

inline pooled_file::pooled_file(os::descriptor file, std::string path, std::string name, const os::file_status& status, access mode,
                                std::shared_ptr<descriptor_pool> pool)
    : path_(std::move(path)), name_(std::move(name)), status_(status), mode_(mode), pool_(std::move(pool)), file_(std::move(file)) {
  if (pool_) pool_->enter(*this);
}

inline pooled_file::~pooled_file() {
  if (pool_) pool_->leave(*this);
}

inline result<pooled_file::use> pooled_file::hold() const {
  if (!pool_) return use(nullptr, file_);
  const bool open = (state_.fetch_add(1, std::memory_order_acquire) & closed) == 0;
  use out(this, file_);  // from here on it ends with the use
  if (open) {
    recent_.store(true, std::memory_order_relaxed);
  } else {
    TENSORSMITH_CHECK(pool_->reopen(*this));
  }
  return out;
}

inline int pooled_file::keep_open() const noexcept {
  if (!pool_) return file_.get();
  try {
    auto held = hold();
    if (!held) return -1;
    if (!kept_.exchange(true)) state_.fetch_add(1, std::memory_order_acquire);  // a use that does not end
    return held.value().descriptor().get();
  } catch (const std::exception&) {
    return -1;
  }
}

inline result<os::descriptor> pooled_file::open_again() const {
  auto opened = mode_ == access::read ? os::open_without_links(path_) : os::open_writable(path_);
  if (!opened) {
    opened.error().file = name_;
    return opened;
  }
  os::descriptor file = std::move(opened).value();
  TENSORSMITH_TRY(const os::file_status now, os::status_of(file, name_));
  const bool same = now.kind == os::file_kind::regular && now.same_file(status_);
  if (same && (mode_ == access::write || (now.size == status_.size && now.modified_ns == status_.modified_ns))) return file;
  return failure{.code = errc::integrity, .what = same ? "the file changed while it was being read" : "the file was replaced while it was in use",
                 .file = name_, .expected = std::to_string(status_.size) + " bytes", .found = std::to_string(now.size) + " bytes",
                 .advice = "run again when nothing else changes it"};
}

inline void pooled_file::close_idle() const noexcept {
  if (mode_ == access::read) {
    file_.reset();
    return;
  }
  // An error of writing back is reported to the descriptors that are open at that time: so none is closed before.
  try {
    if (dirty_.exchange(false, std::memory_order_relaxed))
      if (auto done = os::synchronize(file_, name_); !done) lost_ = std::move(done).error();
    if (auto done = file_.close(name_); !done && !lost_) lost_ = std::move(done).error();
  } catch (const std::exception&) {  // no memory for the message
    lost_.emplace(failure{.code = errc::limit, .what = "out of memory"});
  }
}

inline result<void> pooled_file::synchronize() const {
  if (!pool_) return os::synchronize(file_, name_);
  {
    const std::scoped_lock lock(pool_->mutex_);
    if (lost_) return *lost_;
  }
  if (!dirty_.load(std::memory_order_relaxed)) return {};
  TENSORSMITH_TRY(const use held, hold());
  dirty_.store(false, std::memory_order_relaxed);
  return os::synchronize(held.descriptor(), name_);
}

inline void pooled_file::start_writeback() const noexcept {
  if (!pool_) return os::start_writeback(file_, 0, 0);
  if ((state_.fetch_add(1, std::memory_order_acquire) & closed) == 0) os::start_writeback(file_, 0, 0);
  state_.fetch_sub(1, std::memory_order_release);
}

inline result<void> pooled_file::close() {
  if (!pool_) return file_.close(name_);
  pool_->leave(*this);
  const std::scoped_lock lock(pool_->mutex_);
  if (lost_) return *lost_;
  state_.fetch_or(closed, std::memory_order_acq_rel);
  lost_ = failure{.code = errc::internal, .what = "the file is used after it was closed", .file = name_};
  return file_.close(name_);
}

TENSORSMITH_END_NAMESPACE
