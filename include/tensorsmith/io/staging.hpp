// SPDX-License-Identifier: MIT
//
// tensorsmith/io/staging.hpp: the parts that io/publish.hpp is made of: temporary folders with a lock, undo, safe targets.
// Include io/publish.hpp instead.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/io/file.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// The permissions that a file inherits from the one it replaces: who may read, write and run it, but not as whom it runs.
inline constexpr std::uint32_t kept_mode = 0777;

/// The path that is really written: symbolic links to an existing folder or file are resolved, so that the temporary name lies
/// on the same file system. @fails path (empty, a dangling link, "." or ".." at the end)
inline result<std::string> publication_target(const std::string& path) {
  const std::string target(without_trailing_slashes(path));
  const auto refuse = [&](std::string what) { return failure{.code = errc::path, .what = std::move(what), .file = path}; };
  if (target.empty()) return refuse("the output path is empty");
  if (target.find('\0') != std::string::npos) return refuse("the output path holds a NUL byte");
  // Other runs may come and go at the same name: one look at the name itself, one behind the link that it is.
  TENSORSMITH_TRY(const auto there, os::status_if_any(target, false));
  if (there && there->kind == os::file_kind::symbolic_link) {
    TENSORSMITH_TRY(const auto behind, os::status_if_any(target));
    if (!behind) return refuse("the output path is a symbolic link to nothing");
  }
  if (there) {
    auto real = os::real_path(target);
    if (real || os::exists(target, false)) return real;  // else it is gone by now
  }
  const std::string_view last = file_name(target);
  if (last == "." || last == "..") return refuse("the output path does not name a folder");
  return target;
}

/// Refuses to replace a folder as a whole if that would destroy a source or the place the program stands in.
inline result<void> check_replaceable(const std::string& target, const std::string& shown, const std::vector<std::string>& sources) {
  const auto inside = [&](const std::string& path) {
    return path == target || target == "/" || (path.size() > target.size() && path.starts_with(target) && path[target.size()] == '/');
  };
  const auto refuse = [&](const std::string& what) {
    return failure{.code = errc::denied, .what = what, .file = shown, .advice = "choose another output path"};
  };
  for (const std::string& source : sources) {
    TENSORSMITH_TRY(const auto there, os::status_if_any(source));
    if (!there) continue;
    TENSORSMITH_TRY(const std::string real, os::real_path(source));  // what cannot be told is not put at risk
    if (inside(real)) return refuse("replacing the output folder would delete the source " + quoted(source));
  }
  if (const auto here = os::real_path("."); here && inside(here.value()))
    return refuse("replacing the output folder would delete the working directory");
  return {};
}

/// Parent folders that had to be made; removed again unless the output was published.
class created_folders {
 public:
  created_folders() = default;
  created_folders(created_folders&& other) noexcept : made_(std::exchange(other.made_, {})) {}
  created_folders& operator=(created_folders&& other) noexcept {
    std::swap(made_, other.made_);
    return *this;
  }
  ~created_folders() {
    for (auto path = made_.rbegin(); path != made_.rend(); ++path) os::remove_empty_folder(*path);
  }

  /// @fails path (a file has the name of a folder), io
  static result<created_folders> make(const std::string& path) {
    created_folders out;
    if (os::exists(path) && !os::is_folder(path))
      return failure{.code = errc::path, .what = "a file lies where the folder of the output belongs", .file = path,
                     .expected = "a folder", .advice = "choose another path or remove the file"};
    std::vector<std::string> missing;
    for (std::string at = path; !os::exists(at) && at != "." && at != "/"; at = std::string(parent_path(at))) missing.push_back(at);
    for (auto at = missing.rbegin(); at != missing.rend(); ++at) {
      out.made_.reserve(missing.size());
      TENSORSMITH_TRY(const bool made, os::make_folder(*at));
      if (made) out.made_.push_back(std::move(*at));
    }
    return out;
  }
  /// Makes the new names durable. @fails io
  result<void> synchronize() const {
    for (const std::string& path : made_) TENSORSMITH_CHECK(os::synchronize_folder(std::string(parent_path(path))));
    return {};
  }
  void keep() noexcept { made_.clear(); }

 private:
  std::vector<std::string> made_;
};

/// Failures of the steps of publishing speak of temporary names; users know the one they gave.
template <class T>
result<T> about(const std::string& shown, result<T> outcome) {
  if (!outcome && outcome.error().file.find(".tensorsmith-") != std::string::npos) outcome.error().file = shown;
  return outcome;
}

/// A folder with a temporary name, locked as long as this object lives. Only its owner can look into it: what is written there may
/// replace a file that others must not read.
class staging {
 public:
  staging() = default;
  staging(staging&& other) noexcept : path_(std::exchange(other.path_, {})), lock_(std::move(other.lock_)) {}
  staging& operator=(staging&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(lock_, other.lock_);
    return *this;
  }
  ~staging() { discard(); }

  const std::string& path() const noexcept { return path_; }
  /// Where the output lies until it is published; also what it replaced, until that is removed.
  std::string output() const { return join_path(path_, "output"); }

  /// Makes `folder/.NAME.tensorsmith-<process>-<number>.tmp` and removes such folders whose process died.
  static result<staging> make_folder(const std::string& folder, std::string_view name) {
    const std::string prefix = name_prefix(name);
    const std::string number = std::to_string(os::process_number()) + "-" + std::to_string(os::random_number());
    for (unsigned n = 0; n < 10'000; ++n) {
      staging out;
      std::string path = join_path(folder, prefix + number + (n == 0 ? "" : "-" + std::to_string(n)) + std::string(suffix));
      TENSORSMITH_TRY(const bool made, os::make_new_folder(path, 0700));
      if (!made) continue;
      out.path_.swap(path);  // from here on it is removed at the end
      auto opened = os::open_folder(out.path_, false);
      if (!opened) {
        if (!os::exists(out.path_, false)) { out.path_.clear(); continue; }
        return std::move(opened).error();
      }
      out.lock_ = std::move(opened).value();
      // Another run may have taken the new folder for a leftover in the moment before this lock: then take another name.
      const os::lock_state lock = os::try_lock(out.lock_);
      if (lock == os::lock_state::held_elsewhere || !os::exists(out.path_, false)) {
        out.path_.clear();
        continue;
      }
      if (lock == os::lock_state::taken && locks_exclude(out.path_)) reclaim(folder, prefix, out.path_);
      return out;
    }
    return failure{.code = errc::io, .what = "no temporary name is free", .file = join_path(folder, prefix)};
  }

  /// Removes the folder and what it holds.
  void discard() noexcept {
    if (path_.empty()) return;
    os::remove_tree(path_, std::move(lock_));
    path_.clear();
  }

 private:
  static constexpr std::string_view suffix = ".tmp";

  /// Names are cut so that the temporary one stays within the 255 bytes of a file name.
  static std::string name_prefix(std::string_view name) { return "." + std::string(name.substr(0, 180)) + ".tensorsmith-"; }

  /// Some file systems grant every lock. A lock that can be taken twice says nothing about other runs.
  static bool locks_exclude(const std::string& locked) {
    const auto again = os::open_folder(locked, false);
    return again && os::try_lock(again.value()) == os::lock_state::held_elsewhere;
  }

  static void reclaim(const std::string& folder, const std::string& prefix, const std::string& own) {
    const auto names = os::list_folder(folder);
    if (!names) return;  // a folder that may be written but not listed: nothing to find
    for (const std::string& name : names.value()) {
      if (!name.starts_with(prefix) || !name.ends_with(suffix)) continue;
      const std::string path = join_path(folder, name);
      if (path == own) continue;
      const auto status = os::status_of(path, false);
      if (!status || status.value().kind != os::file_kind::folder) continue;
      const auto opened = os::open_folder(path, false);
      if (opened && os::try_lock(opened.value()) == os::lock_state::taken) os::remove_tree(path);
    }
  }

  std::string path_;
  os::descriptor lock_;
};

/// The last step of publishing: gives what is staged its final name. Taken back at the end of this object unless kept.
class final_rename {
 public:
  final_rename() = default;
  final_rename(final_rename&& other) noexcept
      : state_(std::exchange(other.state_, state::nothing)), staged_(std::move(other.staged_)), target_(std::move(other.target_)),
        aside_(std::move(other.aside_)), output_(other.output_) {}
  final_rename& operator=(final_rename&&) = delete;
  ~final_rename() {
    if (state_ != state::nothing) take_back();
  }

  /// With `force`, what lies at the target is exchanged with it in one step and lies at `staged` then; where the system has no
  /// exchange, at `aside`. `shown`: the target in messages. @fails path (something is in the way), io
  static result<final_rename> make(const std::string& staged, const std::string& target, const std::string& aside,
                                   const std::string& shown, bool force) {
    final_rename out;
    out.staged_ = staged, out.target_ = target, out.aside_ = aside;
    TENSORSMITH_TRY(out.output_, os::status_of(staged, false));
    const bool folder = out.output_.kind == os::file_kind::folder;
    for (int attempt = 0; attempt < 100; ++attempt) {  // with force, runs that replace each other may get in between
      TENSORSMITH_TRY(const bool renamed, os::rename_new(staged, target));
      if (renamed) {
        out.state_ = state::renamed;
        return out;
      }
      if (!force)
        return failure{.code = errc::path, .what = std::string("the output ") + (folder ? "folder" : "file") + " appeared while it was being written",
                       .file = shown, .advice = "another run writes there; pass --force to replace it, or choose another path"};
      TENSORSMITH_TRY(const bool exchanged, os::exchange(staged, target));
      if (exchanged) {
        out.state_ = state::exchanged;
        const auto old = os::status_of(staged, false);
        if (!old || old.value().kind != out.output_.kind) return in_the_way(folder, shown);  // and back
        return out;
      }
      TENSORSMITH_TRY(const auto there, os::status_if_any(target, false));
      if (!there) continue;
      if (there->kind != out.output_.kind) return in_the_way(folder, shown);
      TENSORSMITH_CHECK(out.replace_in_two_steps(folder));
      return out;
    }
    return failure{.code = errc::busy, .what = "the output path comes and goes", .file = shown, .advice = "let one run at a time write there"};
  }

  void keep() noexcept { state_ = state::nothing; }

 private:
  enum class state : std::uint8_t { nothing, renamed, exchanged, replaced };

  static failure in_the_way(bool folder, const std::string& shown) {
    const std::string what = std::string("the output path became ") + (folder ? "no folder" : "no file");
    return failure{.code = errc::path, .what = what + " while it was being written", .file = shown};
  }

  result<void> replace_in_two_steps(bool folder) {
    const bool linked = !folder && os::hard_link(target_, aside_).has_value();  // a file has no moment without its name then
    if (!linked) TENSORSMITH_CHECK(os::rename_over(target_, aside_));
    if (auto moved = os::rename_over(staged_, target_); !moved) {
      (void)os::rename_over(aside_, target_);
      return moved;
    }
    state_ = state::replaced;
    return {};
  }

  void take_back() noexcept {
    try {
      const auto there = os::status_of(target_, false);
      if (!there || !there.value().same_file(output_)) return;  // another run's by now
      if (state_ == state::renamed) (void)os::rename_over(target_, staged_);
      if (state_ == state::exchanged) (void)os::exchange(staged_, target_);
      if (state_ != state::replaced) return;
      if (output_.kind == os::file_kind::folder) (void)os::rename_over(target_, staged_);
      (void)os::rename_over(aside_, target_);
    } catch (const std::exception&) {  // no memory for a message: it stays published
    }
  }

  state state_ = state::nothing;
  std::string staged_, target_, aside_;
  os::file_status output_;
};

/// Files that took the place of others in an existing folder; put back unless kept.
class replaced_files {
 public:
  replaced_files() = default;
  replaced_files(const replaced_files&) = delete;
  replaced_files& operator=(const replaced_files&) = delete;
  ~replaced_files() {
    for (auto last = done_.rbegin(); last != done_.rend(); ++last) {
      if (last->backup.empty()) {
        (void)os::remove_file(last->to);
      } else {
        (void)os::rename_over(last->backup, last->to);
      }
    }
    for (auto path = folders_.rbegin(); path != folders_.rend(); ++path) os::remove_empty_folder(*path);
  }

  /// Makes a folder that is removed again unless kept. @fails io
  result<void> make_folder(const std::string& path) {
    folders_.push_back(path);  // before it exists, in case that there is no memory
    const auto made = os::make_folder(path);
    if (!made || !made.value()) folders_.pop_back();
    if (!made) return made.error();
    return {};
  }

  /// Renames `from` to `to`. A file there stays reachable as `backup`; a link keeps its name in place until the rename, so that
  /// there is no moment without a file.
  result<void> replace(const std::string& from, const std::string& to, const std::string& backup) {
    step next{to, os::exists(to, false) ? backup : std::string()};
    done_.reserve(done_.size() + 1);  // no memory is needed between a step and its note
    if (next.backup.empty()) {
      TENSORSMITH_TRY(const bool renamed, os::rename_new(from, to));
      if (!renamed) return failure{.code = errc::path, .what = "the output file appeared while it was being written", .file = to};
      done_.push_back(std::move(next));
      return {};
    }
    if (!os::hard_link(to, backup)) TENSORSMITH_CHECK(os::rename_over(to, backup));
    done_.push_back(std::move(next));
    return os::rename_over(from, to);
  }
  void keep() noexcept {
    done_.clear();
    folders_.clear();
  }

 private:
  struct step {
    std::string to, backup;
  };
  std::vector<step> done_;
  std::vector<std::string> folders_;
};

/// True if two files hold the same bytes (or are the same file).
inline result<bool> same_contents(const std::string& a, const std::string& b) {
  TENSORSMITH_TRY(const os::file_status first, os::status_of(a));
  TENSORSMITH_TRY(const os::file_status second, os::status_of(b));
  if (first.kind != os::file_kind::regular || second.kind != os::file_kind::regular) return false;
  if (first.same_file(second)) return true;
  if (first.size != second.size) return false;
  TENSORSMITH_TRY(const auto left, open_file(a));
  TENSORSMITH_TRY(const auto right, open_file(b));
  constexpr std::size_t block = 1u << 20;
  std::vector<std::byte> x(block), y(block);
  for (std::uint64_t at = 0; at < first.size; at += block) {
    const auto count = static_cast<std::size_t>(first.size - at < block ? first.size - at : block);
    TENSORSMITH_CHECK(left->read_at(at, std::span(x).first(count)));
    TENSORSMITH_CHECK(right->read_at(at, std::span(y).first(count)));
    if (std::memcmp(x.data(), y.data(), count) != 0) return false;
  }
  return true;
}

}  // namespace detail

TENSORSMITH_END_NAMESPACE
