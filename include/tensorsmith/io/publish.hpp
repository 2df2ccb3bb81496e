// SPDX-License-Identifier: MIT
//
// tensorsmith/io/publish.hpp: outputs that appear whole or not at all.
//
// Include this to write a folder (folder_publication) or a single file (file_publication). Everything is written beside the
// target under a temporary name, brought to the disk, and renamed. A run that dies leaves only a temporary name, which the next
// run for the same target removes: the lock on it ended with the process.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/io/file.hpp"
#include "tensorsmith/io/staging.hpp"
#include "tensorsmith/tensor/tiling.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How an output may meet what lies at its target.
struct publish_options {
  bool force = false;  ///< replace what exists, in the last step
  /// Add the files to an existing folder instead of replacing the folder (graphs beside the weights they point into).
  bool merge_into_existing = false;
  /// Paths that are being read: a folder that holds one of them is never replaced as a whole.
  std::vector<std::string> sources{};
};

/// Refuses to publish what was made from files that changed meanwhile: asks every source of the work.
/// @fails integrity
inline result<void> check_sources_unchanged(std::span<const placement> work) {
  std::vector<std::shared_ptr<const byte_source>> sources;
  for (const placement& p : work)
    p.source->add_sources(sources);
  std::sort(sources.begin(), sources.end());
  sources.erase(std::unique(sources.begin(), sources.end()), sources.end());
  for (const auto& source : sources) TENSORSMITH_CHECK(source->check_unchanged());
  return {};
}

/// A folder that is written under a temporary name and appears at its target when it is committed. Without a commit, nothing
/// is left and what lay at the target is as it was.
class folder_publication {
 public:
  /// Starts the output folder `target`; missing parent folders are created. Leftovers of runs that died are removed.
  /// @fails path (the target exists and neither option allows it, or it is no folder), denied (force would replace a source,
  /// the root or the working directory), io
  static result<folder_publication> begin(const std::string& target, publish_options options = {}) {
    folder_publication out;
    out.options_ = std::move(options);
    TENSORSMITH_TRY(out.target_, detail::publication_target(target));
    out.shown_ = std::string(without_trailing_slashes(target));
    TENSORSMITH_CHECK(out.check_target());
    TENSORSMITH_TRY(out.parents_, detail::created_folders::make(std::string(parent_path(out.target_))));
    const std::string beside = out.merging_ ? out.target_ : std::string(parent_path(out.target_));
    TENSORSMITH_TRY(out.staging_, detail::about(out.shown_, detail::staging::make_folder(beside, file_name(out.target_))));
    out.content_ = out.staging_.output();
    TENSORSMITH_TRY(const bool made, detail::about(out.shown_, os::make_new_folder(out.content_, 0777)));
    if (!made) return failure{.code = errc::io, .what = "the temporary folder is in use", .file = out.content_};
    return out;
  }

  folder_publication(folder_publication&&) noexcept = default;
  folder_publication& operator=(folder_publication&&) = delete;
  ~folder_publication() {
    files_.clear();
    staging_.discard();
  }

  /// Where the files lie until the commit.
  const std::string& staging_path() const noexcept { return content_; }
  /// The target as the user gave it.
  const std::string& target() const noexcept { return shown_; }
  /// True if files are being added to a folder that exists.
  bool merging() const noexcept { return merging_; }

  /// Creates the file `relative` ("unet/model.onnx") of `size` bytes; folders on the way are made.
  /// @fails path (the name leaves the folder), mismatch (it exists already), no_space, io
  result<std::shared_ptr<output_file>> create(std::string_view relative, std::uint64_t size) {
    TENSORSMITH_TRY(const std::string path, prepare_name(relative));
    TENSORSMITH_TRY(auto file, output_file::create(path, size, join_path(shown_, relative), descriptors_));
    files_.push_back({std::string(relative), file});
    return file;
  }

  /// Writes a small file at once.
  result<void> write_text(std::string_view relative, std::string_view text) {
    TENSORSMITH_TRY(const auto file, create(relative, text.size()));
    return file->write_at(0, std::as_bytes(std::span(text)));
  }

  /// Brings a complete file to the disk and closes it now, so that a folder of very many files needs few descriptors. Without this,
  /// commit() does it. @fails no_space, io
  result<void> settle(const std::shared_ptr<output_file>& file) {
    TENSORSMITH_CHECK(file->sync());
    return file->close();
  }

  /// Copies a source into the file `relative`, in the kernel where possible.
  result<void> write_copy(std::string_view relative, const byte_source& source) {
    TENSORSMITH_TRY(const auto file, create(relative, source.size()));
    TENSORSMITH_TRY(const bool done, file->copy_from(source, 0, 0, source.size()));
    if (done) return {};
    std::vector<std::byte> block(static_cast<std::size_t>(std::min<std::uint64_t>(source.size(), std::uint64_t{1} << 20)));
    for (std::uint64_t at = 0; at < source.size(); at += block.size()) {
      const auto part = std::span(block).first(static_cast<std::size_t>(std::min<std::uint64_t>(block.size(), source.size() - at)));
      TENSORSMITH_CHECK(source.read_at(at, part));
      TENSORSMITH_CHECK(file->write_at(at, part));
    }
    return {};
  }

  /// How link_or_clone made a file: sharing blocks (safe to change either), the same file under two names, or not at all.
  enum class link_kind : std::uint8_t { clone, hard_link, none };

  /// Makes `relative` another name of the file at `source` without copying its bytes: a copy-on-write clone where the file
  /// system has it, else a hard link. `none`: neither works here (another file system), copy instead; nothing was made.
  result<link_kind> link_or_clone(std::string_view relative, const std::string& source) {
    TENSORSMITH_TRY(const std::string path, prepare_name(relative));
    TENSORSMITH_TRY(const std::string real, os::real_path(source));
    TENSORSMITH_TRY(const os::descriptor from, os::open_readable(real));
    TENSORSMITH_TRY(const os::file_status status, os::status_of(from, source));
    if (status.kind != os::file_kind::regular)
      return failure{.code = errc::path, .what = "the path is no regular file", .file = source, .found = std::string(os::kind_name(status.kind))};
    TENSORSMITH_TRY(auto file, output_file::create(path, 0, join_path(shown_, relative)));
    TENSORSMITH_TRY(const bool cloned, clone_into(*file, from));
    if (cloned) {
      files_.push_back({std::string(relative), std::move(file)});
      return link_kind::clone;
    }
    file.reset();
    TENSORSMITH_CHECK(os::remove_file(path));
    if (!os::hard_link(real, path)) return link_kind::none;
    files_.push_back({std::string(relative), nullptr});
    return link_kind::hard_link;
  }

  /// Brings everything to the disk and makes it appear at the target in one step (when merging: file by file in the order of
  /// creation, undone if one fails; the last file created is the last to appear). @fails path (something appeared at the
  /// target meanwhile), no_space, io
  result<void> commit() { return detail::about(shown_, publish()); }

 private:
  struct staged {
    std::string relative;
    std::shared_ptr<output_file> file;  // null for a hard link
  };

  folder_publication() = default;

  result<void> publish() {
    for (const staged& f : files_)
      if (f.file && !f.file->closed()) f.file->start_writeback();
    for (const staged& f : files_)
      if (f.file && !f.file->closed()) TENSORSMITH_CHECK(settle(f.file));
    TENSORSMITH_CHECK(keep_modes());
    for (const std::string& folder : folders_) TENSORSMITH_CHECK(os::synchronize_folder(join_path(content_, folder)));
    TENSORSMITH_CHECK(os::synchronize_folder(content_));
    if (merging_) {
      TENSORSMITH_CHECK(merge());
    } else {
      TENSORSMITH_TRY(auto moved, detail::final_rename::make(content_, target_, join_path(staging_.path(), "old"), shown_, options_.force));
      TENSORSMITH_CHECK(os::synchronize_folder(std::string(parent_path(target_))));
      TENSORSMITH_CHECK(parents_.synchronize());
      moved.keep();
    }
    parents_.keep();
    files_.clear();
    staging_.discard();  // what was replaced goes with it
    return {};
  }

  result<void> check_target() {
    if (!os::exists(target_, false)) return {};
    if (!os::is_folder(target_))
      return failure{.code = errc::path, .what = "the output path is no folder", .file = shown_,
                     .expected = "a new folder", .advice = "choose another path or remove the file"};
    if (options_.merge_into_existing) {
      merging_ = true;
      return {};
    }
    if (!options_.force)
      return failure{.code = errc::path, .what = "the output folder already exists", .file = shown_,
                     .advice = "pass --force to replace it, or choose another path"};
    return detail::check_replaceable(target_, shown_, options_.sources);
  }

  result<std::string> prepare_name(std::string_view relative) {
    TENSORSMITH_CHECK(check_relative_path(relative, shown_, "output file"));
    for (std::size_t slash = relative.find('/'); slash != std::string_view::npos; slash = relative.find('/', slash + 1)) {
      const std::string folder(relative.substr(0, slash));
      TENSORSMITH_TRY(const bool made, detail::about(join_path(shown_, folder), os::make_folder(join_path(content_, folder))));
      if (made) folders_.insert(folders_.begin(), folder);  // inner folders come first: they are synchronized first
    }
    std::string path = join_path(content_, relative);
    if (os::exists(path, false))
      return failure{.code = errc::mismatch, .what = "two output files get the name " + quoted(relative), .file = shown_};
    return path;
  }

  static result<bool> clone_into(const output_file& file, const os::descriptor& from) {
    TENSORSMITH_TRY(const pooled_file::use to, file.hold());
    return os::clone_file(from, to.descriptor());
  }

  /// A file that replaces another never becomes readable for more people than the old one.
  result<void> keep_modes() const {
    TENSORSMITH_TRY(const auto folder, os::status_if_any(target_));
    if (!folder) return {};
    for (const staged& f : files_) {
      if (!f.file) continue;
      TENSORSMITH_TRY(const auto old, os::status_if_any(join_path(target_, f.relative)));
      if (old) TENSORSMITH_CHECK(os::set_mode(join_path(content_, f.relative), old->mode & detail::kept_mode));
    }
    return merging_ ? result<void>() : os::set_mode(content_, folder->mode);
  }

  /// Moves the staged files into the existing folder. What they replace is kept until all of them are in place.
  result<void> merge() {
    std::vector<std::string> todo;
    for (const staged& f : files_) {
      const std::string from = join_path(content_, f.relative), to = join_path(target_, f.relative);
      if (os::exists(to, false)) {
        if (os::is_folder(to))
          return failure{.code = errc::path, .what = "a folder lies where an output file belongs", .file = join_path(shown_, f.relative),
                         .advice = "choose another path or remove the folder"};
        TENSORSMITH_TRY(const bool same, detail::same_contents(from, to));
        if (same) continue;
        if (!options_.force)
          return failure{.code = errc::path, .what = "the output file already exists", .file = join_path(shown_, f.relative),
                         .advice = "pass --force to replace it, or choose another path"};
      }
      todo.push_back(f.relative);
    }
    detail::replaced_files undo;
    std::vector<std::string> touched;
    for (auto folder = folders_.rbegin(); folder != folders_.rend(); ++folder) {
      const std::string path = join_path(target_, *folder);
      TENSORSMITH_CHECK(undo.make_folder(path));
      touched.push_back(path);
    }
    const auto synchronize = [&]() -> result<void> {
      for (auto path = touched.rbegin(); path != touched.rend(); ++path) TENSORSMITH_CHECK(os::synchronize_folder(*path));
      return os::synchronize_folder(target_);
    };
    for (std::size_t i = 0; i < todo.size(); ++i) {
      // The last file is the one that readers look for first: what it speaks of is on the disk before it.
      if (i + 1 == todo.size() && i != 0) TENSORSMITH_CHECK(synchronize());
      TENSORSMITH_CHECK(undo.replace(join_path(content_, todo[i]), join_path(target_, todo[i]),
                                     join_path(staging_.path(), "replaced-" + std::to_string(i))));
    }
    TENSORSMITH_CHECK(synchronize());
    undo.keep();
    return {};
  }

  publish_options options_;
  std::string target_, shown_;
  bool merging_ = false;
  detail::created_folders parents_;  // destroyed after the staging folder inside them
  detail::staging staging_;
  std::string content_;  // in the staging folder
  std::shared_ptr<descriptor_pool> descriptors_ = std::make_shared<descriptor_pool>();
  std::vector<std::string> folders_;
  std::vector<staged> files_;
};

/// A single file that is written under a temporary name and appears at its target when it is committed.
class file_publication {
 public:
  /// Starts the output file `target`. @fails path (it exists without force, or is no regular file), io
  static result<file_publication> begin(const std::string& target, publish_options options = {}) {
    file_publication out;
    out.options_ = std::move(options);
    out.shown_ = target;
    TENSORSMITH_TRY(out.target_, detail::publication_target(target));
    if (os::exists(out.target_, false)) {
      if (!os::is_regular_file(out.target_))
        return failure{.code = errc::path, .what = "the output path is no regular file", .file = target};
      if (!out.options_.force)
        return failure{.code = errc::path, .what = "the output file already exists", .file = target,
                       .advice = "pass --force to replace it, or choose another path"};
    }
    TENSORSMITH_TRY(out.parents_, detail::created_folders::make(std::string(parent_path(out.target_))));
    TENSORSMITH_TRY(out.staging_, detail::about(target, detail::staging::make_folder(std::string(parent_path(out.target_)), file_name(out.target_))));
    return out;
  }

  file_publication(file_publication&&) noexcept = default;
  file_publication& operator=(file_publication&&) = delete;
  ~file_publication() {
    file_.reset();
    staging_.discard();
  }

  /// Creates the file with its final size. Called once. @fails no_space, io
  result<std::shared_ptr<output_file>> create(std::uint64_t size) {
    TENSORSMITH_TRY(file_, output_file::create(staging_.output(), size, shown_));
    return file_;
  }

  /// Brings the file to the disk and makes it appear at the target in one step.
  result<void> commit() { return detail::about(shown_, publish()); }

 private:
  file_publication() = default;

  result<void> publish() {
    if (!file_) return failure{.code = errc::internal, .what = "nothing was written", .file = shown_};
    TENSORSMITH_CHECK(file_->sync());
    TENSORSMITH_CHECK(file_->close());
    const std::string path = file_->path();
    TENSORSMITH_TRY(const auto old, os::status_if_any(target_));
    if (old) TENSORSMITH_CHECK(os::set_mode(path, old->mode & detail::kept_mode));
    TENSORSMITH_TRY(auto moved, detail::final_rename::make(path, target_, join_path(staging_.path(), "old"), shown_, options_.force));
    TENSORSMITH_CHECK(os::synchronize_folder(std::string(parent_path(target_))));
    TENSORSMITH_CHECK(parents_.synchronize());
    moved.keep();
    parents_.keep();
    staging_.discard();  // what was replaced goes with it
    return {};
  }

  publish_options options_;
  std::string target_, shown_;
  detail::created_folders parents_;
  detail::staging staging_;
  std::shared_ptr<output_file> file_;
};

TENSORSMITH_END_NAMESPACE
