// SPDX-License-Identifier: MIT
//
// tensorsmith/io/file.hpp: files as byte sources and byte sinks: positional reads and writes, from any thread.
//
// Include this to open a model file (open_file) or to read a small text file whole (read_text_file). Files that must appear
// whole or not at all are written through io/publish.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "tensorsmith/io/descriptor_pool.hpp"
#include "tensorsmith/io/os.hpp"
#include "tensorsmith/io/path.hpp"
#include "tensorsmith/tensor/byte_io.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A regular file opened for reading. Reads are positional, so that threads share one descriptor.
class file_source final : public byte_source {
 public:
  /// Use open_file. `path` opens it again where `pool` closed it; `name` is for messages.
  file_source(os::descriptor file, std::string path, std::string name, const os::file_status& status,
              std::shared_ptr<descriptor_pool> pool = nullptr)
      : file_(std::move(file), std::move(path), std::move(name), status, pooled_file::access::read, std::move(pool)) {}

  std::uint64_t size() const noexcept override { return file_.status().size; }
  const std::string& name() const noexcept override { return file_.name(); }
  /// Of a file with a pool: stays open from now on. Prefer hold() for a system call and in_file() for the question.
  int descriptor() const noexcept override { return file_.keep_open(); }
  bool in_file() const noexcept override { return true; }
  const file_source* as_file() const noexcept override { return this; }
  void will_need(std::uint64_t offset, std::uint64_t length) const noexcept override {
    try {
      if (const auto held = file_.hold()) os::will_need(held.value().descriptor(), offset, length);
    } catch (const std::exception&) {  // advisory
    }
  }
  /// Its status when it was opened.
  const os::file_status& status() const noexcept { return file_.status(); }
  /// The descriptor for system calls, open as long as the answer lives. @fails integrity, io
  result<pooled_file::use> hold() const { return file_.hold(); }

  /// @fails malformed (past the end), integrity (the file became shorter or was replaced since it was opened), io
  result<void> read_at(std::uint64_t offset, std::span<std::byte> out) const override {
    if (offset > size() || out.size() > size() - offset)
      return failure{.code = errc::malformed, .what = "the data ends past the end of the file", .file = name(),
                     .place = "byte offset " + std::to_string(offset), .expected = std::to_string(out.size()) + " bytes",
                     .found = std::to_string(offset > size() ? 0 : size() - offset)};
    TENSORSMITH_TRY(const pooled_file::use held, file_.hold());
    while (!out.empty()) {
      TENSORSMITH_TRY(const std::size_t got, os::read_some(held.descriptor(), offset, out, name()));
      if (got == 0) return changed("the file became shorter while it was being read", os::status_of(held.descriptor(), name()));
      out = out.subspan(got);
      offset += got;
    }
    return {};
  }

  /// Compares the file with what it was when it was opened. @fails integrity if its size or its time of change differ, or if its
  /// path leads to another file by now
  result<void> check_unchanged() const override {
    TENSORSMITH_TRY(const pooled_file::use held, file_.hold());
    TENSORSMITH_TRY(const os::file_status now, os::status_of(held.descriptor(), name()));
    if (now.size != status().size || now.modified_ns != status().modified_ns)
      return changed("the file changed while it was being read", now);
    if (const auto there = os::status_of(file_.path()); there && !there.value().same_file(now))
      return changed("the file was replaced while it was being read", there);
    return {};
  }

 private:
  failure changed(std::string what, const result<os::file_status>& now) const {
    return failure{.code = errc::integrity, .what = std::move(what), .file = name(),
                   .expected = std::to_string(size()) + " bytes",
                   .found = now ? std::to_string(now.value().size) + " bytes" : "no answer", .advice = "run again when it is complete"};
  }

  pooled_file file_;
};

namespace detail {

/// The rest of open_file: `open() -> result<os::descriptor>` for a path that was a regular file a moment ago.
template <class Open>
result<std::shared_ptr<const byte_source>> open_regular_file(const std::string& path, std::string name, Open&& open,
                                                             std::shared_ptr<descriptor_pool> pool) {
  const auto refuse = [&](std::string_view kind) {
    return failure{.code = errc::path, .what = "the path is no regular file", .file = name, .expected = "a regular file",
                   .found = std::string(kind)};
  };
  // Asked before opening, because opening a device may already do something (rewind a tape); and again afterwards.
  TENSORSMITH_TRY(const os::file_status before, os::status_of(path));
  if (before.kind != os::file_kind::regular) return refuse(os::kind_name(before.kind));
  TENSORSMITH_TRY(os::descriptor file, pool ? pool->open(open) : open());
  TENSORSMITH_TRY(const os::file_status status, os::status_of(file, name));
  if (status.kind != os::file_kind::regular) return refuse(os::kind_name(status.kind));
  if (os::is_pseudo_file(file)) return refuse("a view into the kernel");
  return std::shared_ptr<const byte_source>(
      std::make_shared<file_source>(std::move(file), path, std::move(name), status, std::move(pool)));
}

}  // namespace detail

/// Opens a regular file for reading; returns at once whatever the path is. `name` is what messages call it (default: the path).
/// @fails path (a folder, pipe, socket, device or a file of /proc), io (missing, no permission)
inline result<std::shared_ptr<const byte_source>> open_file(const std::string& path, std::string name = {}) {
  if (name.empty()) name = path;
  return detail::open_regular_file(path, std::move(name), [&] { return os::open_readable(path); }, nullptr);
}

/// Opens `folder/relative`, where `relative` comes from a file and is not trusted: it may not leave the folder, by its text
/// nor by symbolic links. Links of a Hugging Face cache (snapshots/<revision>/… → blobs/…) are accepted. With a `pool`, which many
/// files share, the descriptor is closed while others need the room; the file is opened again when it is read, and must be the same.
/// @fails path, io
inline result<std::shared_ptr<const byte_source>> open_file_below(const std::string& folder, const std::string& relative,
                                                                  std::string_view named_by, bool allow_subfolders = false,
                                                                  std::shared_ptr<descriptor_pool> pool = nullptr) {
  TENSORSMITH_CHECK(check_relative_path(relative, named_by, {}, allow_subfolders));
  const std::string path = join_path(folder, relative);
  TENSORSMITH_TRY(const std::string root, os::real_path(folder.empty() ? "." : folder));
  TENSORSMITH_TRY(const std::string real, os::real_path(path));
  const auto below = [](std::string_view inner, std::string_view outer) {
    return inner.size() > outer.size() && inner.starts_with(outer) && (outer.ends_with('/') || inner[outer.size()] == '/');
  };
  bool contained = below(real, root);
  if (const std::size_t at = root.rfind("/snapshots/"); !contained && at != std::string::npos)
    contained = below(real, root.substr(0, at) + "/blobs");
  if (!contained)
    return failure{.code = errc::path, .what = "the path is a symbolic link that leaves its folder", .file = path,
                   .expected = "a file below " + quoted(root), .found = quoted(real), .advice = "copy the file into the folder"};
  return detail::open_regular_file(real, path, [&] { return os::open_without_links(real); }, std::move(pool));
}

/// A folder from which several files are opened one after another. A writer replaces it as a whole, so what was opened belongs
/// together if the path still leads to the same folder afterwards.
class steady_folder {
 public:
  /// Begin before the first file. @fails io
  static result<steady_folder> begin(const std::string& path) {
    steady_folder out;
    out.path_ = path.empty() ? "." : path;
    TENSORSMITH_TRY(out.folder_, os::hold_folder(out.path_));  // held: its number in the file system is not given to another
    return out;
  }
  /// Ask after the last. @fails integrity (another folder has the path), io
  result<void> check() const {
    TENSORSMITH_TRY(const os::file_status then, os::status_of(folder_, path_));
    const auto now = os::status_of(path_);
    if (now && now.value().same_file(then)) return {};
    return failure{.code = errc::integrity, .what = "the folder was replaced while its files were being opened", .file = path_,
                   .advice = "run again when it is complete"};
  }

 private:
  steady_folder() = default;
  std::string path_;
  os::descriptor folder_;
};

/// The contents of a file of at most `most` bytes. @fails limit (longer), path, io
inline result<std::string> read_text_file(const std::string& path, std::uint64_t most);

/// The contents of a source of at most `most` bytes. `option` names what raises the limit. @fails limit, io
inline result<std::string> read_text(const byte_source& source, std::uint64_t most, std::string_view option = {}) {
  if (source.size() > most)
    return failure{.code = errc::limit, .what = "the file is too long", .file = source.name(),
                   .expected = "at most " + std::to_string(most) + " bytes", .found = std::to_string(source.size()),
                   .advice = option.empty() ? std::string() : "raise " + std::string(option) + " if you trust it"};
  std::string text(static_cast<std::size_t>(source.size()), '\0');
  TENSORSMITH_CHECK(source.read_at(0, std::as_writable_bytes(std::span(text))));
  return text;
}

inline result<std::string> read_text_file(const std::string& path, std::uint64_t most) {
  TENSORSMITH_TRY(const auto file, open_file(path));
  return read_text(*file, most);
}

/// A new file of a size that is fixed when it is created. Writes are positional, from any thread.
class output_file final : public byte_sink {
 public:
  /// Creates `path`, which must not exist, and reserves its space. `name` is what messages call it (default: the path). With a `pool`,
  /// which many files share, it is brought to the disk and closed while others need the room.
  /// Nothing is left at the path after a failure. @fails no_space (with the bytes needed and free), io
  static result<std::shared_ptr<output_file>> create(const std::string& path, std::uint64_t size, std::string name = {},
                                                     std::shared_ptr<descriptor_pool> pool = nullptr) {
    if (name.empty()) name = path;
    const auto open = [&] { return os::create_exclusive(path); };
    auto created = pool ? pool->open(open) : open();
    if (!created) {
      created.error().file = name;
      return std::move(created).error();
    }
    created_path undo{path};
    TENSORSMITH_TRY(const os::file_status status, os::status_of(created.value(), name));
    if (auto reserved = os::reserve(created.value(), size, name); !reserved) {
      failure error = std::move(reserved).error();
      if (error.code == errc::no_space) {
        error.expected = std::to_string(size) + " bytes";
        error.found = std::to_string(std::min(os::free_space(std::string(parent_path(path))), os::file_size_limit())) + " bytes free";
      }
      return error;
    }
    auto out = std::make_shared<output_file>(token{}, std::move(created).value(), path, std::move(name), size, status, std::move(pool));
    undo.path.clear();
    return out;
  }

  const std::string& name() const noexcept override { return file_.name(); }
  /// Where it lies now; it is renamed when it is published.
  const std::string& path() const noexcept { return file_.path(); }
  std::uint64_t size() const noexcept { return size_; }
  /// The descriptor for system calls, open as long as the answer lives. @fails integrity, io, no_space
  result<pooled_file::use> hold() const { return file_.hold(); }

  result<void> write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
    TENSORSMITH_CHECK(inside(offset, bytes.size()));
    TENSORSMITH_TRY(const pooled_file::use held, file_.hold());
    file_.about_to_write();
    return os::write_all(held.descriptor(), offset, bytes, name());
  }

  /// Copies a range inside the kernel. True: done. False: not possible here, use read_at and write_at. @fails io, no_space
  result<bool> copy_from(const byte_source& source, std::uint64_t from, std::uint64_t to, std::uint64_t length) {
    if (!source.in_file()) return false;
    TENSORSMITH_CHECK(inside(to, length));
    TENSORSMITH_TRY(const pooled_file::use held, file_.hold());
    file_.about_to_write();
    if (const file_source* file = source.as_file()) {
      TENSORSMITH_TRY(const pooled_file::use read, file->hold());
      return os::copy_range(read.descriptor().get(), from, held.descriptor(), to, length, name());
    }
    return os::copy_range(source.descriptor(), from, held.descriptor(), to, length, name());
  }

  /// Waits until all bytes are on the disk.
  result<void> sync() { return file_.synchronize(); }
  /// Starts the transfer to the disk without waiting for it.
  void start_writeback() noexcept { file_.start_writeback(); }
  /// Closes; later writes fail. @fails io, no_space (file systems that report a full quota only now)
  result<void> close() {
    closed_ = true;
    return file_.close();
  }
  bool closed() const noexcept { return closed_; }

 private:
  struct token {};
  struct created_path {  // removed unless cleared
    std::string path;
    ~created_path() {
      if (!path.empty()) os::remove_tree(path);
    }
  };

 public:
  /// Use create().
  output_file(token, os::descriptor file, std::string path, std::string name, std::uint64_t size, const os::file_status& status,
              std::shared_ptr<descriptor_pool> pool)
      : file_(std::move(file), std::move(path), std::move(name), status, pooled_file::access::write, std::move(pool)), size_(size) {}

 private:
  result<void> inside(std::uint64_t offset, std::uint64_t length) const {
    if (offset <= size_ && length <= size_ - offset) return {};
    return failure{.code = errc::internal, .what = "write past the planned end", .file = name(),
                   .place = "byte offset " + std::to_string(offset), .expected = "at most " + std::to_string(size_) + " bytes",
                   .found = std::to_string(length) + " more"};
  }

  pooled_file file_;
  std::uint64_t size_;
  bool closed_ = false;
};

TENSORSMITH_END_NAMESPACE
