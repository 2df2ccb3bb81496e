// SPDX-License-Identifier: MIT
//
// tensorsmith/io/staging.hpp: the parts that io/publish.hpp is made of: temporary folders with a lock, undo, safe targets.
// Include io/publish.hpp instead.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/io/file.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace detail {

/// The path that is really written: symbolic links to an existing folder or file are resolved, so that the temporary name lies
/// on the same file system. @fails path (empty, a dangling link, "." or ".." at the end)
inline result<std::string> publication_target(const std::string& path) {
  const std::string target(without_trailing_slashes(path));
  const auto refuse = [&](std::string what) { return failure{.code = errc::path, .what = std::move(what), .file = path}; };
  if (target.empty()) return refuse("the output path is empty");
  if (target.find('\0') != std::string::npos) return refuse("the output path holds a NUL byte");
  if (os::exists(target)) return os::real_path(target);
  if (os::exists(target, false)) return refuse("the output path is a symbolic link to nothing");
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
  for (const std::string& source : sources)
    if (const auto real = os::real_path(source); real && inside(real.value()))
      return refuse("replacing the output folder would delete the source " + quoted(source));
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

  static result<created_folders> make(const std::string& path) {
    created_folders out;
    std::vector<std::string> missing;
    for (std::string at = path; !os::exists(at); at = std::string(parent_path(at))) missing.push_back(at);
    for (auto at = missing.rbegin(); at != missing.rend(); ++at) {
      TENSORSMITH_TRY(const bool made, os::make_folder(*at));
      if (made) out.made_.push_back(*at);
    }
    return out;
  }
  void keep() noexcept { made_.clear(); }

 private:
  std::vector<std::string> made_;
};

/// A folder with a temporary name, locked as long as this object lives.
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

  /// Makes `folder/.NAME.tensorsmith-<process>-<n>.tmp` and removes such folders whose process died.
  static result<staging> make_folder(const std::string& folder, std::string_view name) {
    const std::string prefix = name_prefix(name);
    reclaim(folder, prefix);
    for (unsigned n = 0; n < 10'000; ++n) {
      staging out;
      const std::string path =
          join_path(folder, prefix + std::to_string(os::process_number()) + "-" + std::to_string(n) + std::string(suffix));
      TENSORSMITH_TRY(const bool made, os::make_folder(path));
      if (!made) continue;
      out.path_ = path;
      auto opened = os::open_folder(path, false);
      if (!opened) {
        if (!os::exists(path, false)) { out.path_.clear(); continue; }
        return std::move(opened).error();
      }
      out.lock_ = std::move(opened).value();
      // Another run may have taken the new folder for a leftover in the moment before this lock: then take another name.
      if (os::try_lock(out.lock_) == os::lock_state::held_elsewhere || !os::exists(path, false)) {
        out.path_.clear();
        continue;
      }
      return out;
    }
    return failure{.code = errc::io, .what = "no temporary name is free", .file = join_path(folder, prefix)};
  }

  /// Removes the folder and what it holds.
  void discard() noexcept {
    if (path_.empty()) return;
    os::remove_tree(path_);
    path_.clear();
    lock_.reset();
  }

  /// Renames the folder to `target`; with `force`, a folder there is exchanged with it and removed afterwards.
  result<void> move_to(const std::string& target, const std::string& shown, bool force) {
    TENSORSMITH_TRY(const bool renamed, os::rename_new(path_, target));
    if (renamed) {
      path_.clear();
      return {};
    }
    if (!force)
      return failure{.code = errc::path, .what = "the output folder appeared while it was being written", .file = shown,
                     .advice = "another run writes there; pass --force to replace it, or choose another path"};
    if (!os::is_folder(target))
      return failure{.code = errc::path, .what = "the output path became a file while it was being written", .file = shown};
    TENSORSMITH_TRY(const bool exchanged, os::exchange(path_, target));
    if (!exchanged) {  // no exchange here: two renames, and back if the second fails
      const std::string aside = path_ + ".old";
      TENSORSMITH_CHECK(os::rename_over(target, aside));
      if (auto moved = os::rename_over(path_, target); !moved) {
        (void)os::rename_over(aside, target);
        return moved;
      }
      path_ = aside;
    }
    discard();  // the old folder, which has the temporary name now
    return {};
  }

 private:
  static constexpr std::string_view suffix = ".tmp";

  /// Names are cut so that the temporary one stays within the 255 bytes of a file name.
  static std::string name_prefix(std::string_view name) { return "." + std::string(name.substr(0, 180)) + ".tensorsmith-"; }

  static void reclaim(const std::string& folder, const std::string& prefix) {
    const auto names = os::list_folder(folder);
    if (!names) return;  // a folder that may be written but not listed: nothing to find
    for (const std::string& name : names.value()) {
      if (!name.starts_with(prefix) || !name.ends_with(suffix)) continue;
      const std::string path = join_path(folder, name);
      const auto status = os::status_of(path, false);
      if (!status || status.value().kind != os::file_kind::folder) continue;
      const auto opened = os::open_folder(path, false);
      if (opened && os::try_lock(opened.value()) == os::lock_state::taken) os::remove_tree(path);
    }
  }

  std::string path_;
  os::descriptor lock_;
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

  void made_folder(std::string path) { folders_.push_back(std::move(path)); }

  /// Renames `from` to `to`. A file there stays reachable as `backup`; a link keeps its name in place until the rename, so that
  /// there is no moment without a file.
  result<void> replace(const std::string& from, const std::string& to, const std::string& backup) {
    if (!os::exists(to, false)) {
      TENSORSMITH_TRY(const bool renamed, os::rename_new(from, to));
      if (!renamed) return failure{.code = errc::path, .what = "the output file appeared while it was being written", .file = to};
      done_.push_back({to, {}});
      return {};
    }
    if (!os::hard_link(to, backup)) TENSORSMITH_CHECK(os::rename_over(to, backup));
    done_.push_back({to, backup});
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
