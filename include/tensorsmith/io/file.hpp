// SPDX-License-Identifier: MIT
//
// tensorsmith/io/file.hpp: files as byte sources and byte sinks: positional reads and writes, from any thread.
//
// Include this to open a model file (open_file) or to read a small text file whole (read_text_file). Files that must appear
// whole or not at all are written through io/publish.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "tensorsmith/io/os.hpp"
#include "tensorsmith/io/path.hpp"
#include "tensorsmith/tensor/byte_io.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// A regular file opened for reading. Reads are positional, so that threads share one descriptor.
class file_source final : public byte_source {
 public:
  /// Use open_file.
  file_source(os::descriptor file, std::string name, os::file_status status)
      : file_(std::move(file)), name_(std::move(name)), status_(status) {}

  std::uint64_t size() const noexcept override { return status_.size; }
  const std::string& name() const noexcept override { return name_; }
  int descriptor() const noexcept override { return file_.get(); }
  void will_need(std::uint64_t offset, std::uint64_t length) const noexcept override { os::will_need(file_, offset, length); }
  /// Its status when it was opened.
  const os::file_status& status() const noexcept { return status_; }

  /// @fails malformed (past the end), integrity (the file became shorter since it was opened), io
  result<void> read_at(std::uint64_t offset, std::span<std::byte> out) const override {
    if (offset > size() || out.size() > size() - offset)
      return failure{.code = errc::malformed, .what = "the data ends past the end of the file", .file = name_,
                     .place = "byte offset " + std::to_string(offset), .expected = std::to_string(out.size()) + " bytes",
                     .found = std::to_string(offset > size() ? 0 : size() - offset)};
    while (!out.empty()) {
      TENSORSMITH_TRY(const std::size_t got, os::read_some(file_, offset, out, name_));
      if (got == 0) return changed("the file became shorter while it was being read");
      out = out.subspan(got);
      offset += got;
    }
    return {};
  }

  /// Compares the file with what it was when it was opened. @fails integrity if its size or its time of change differ
  result<void> check_unchanged() const override {
    TENSORSMITH_TRY(const os::file_status now, os::status_of(file_, name_));
    if (now.size != status_.size || now.modified_ns != status_.modified_ns)
      return changed("the file changed while it was being read");
    return {};
  }

 private:
  failure changed(std::string what) const {
    const auto now = os::status_of(file_, name_);
    return failure{.code = errc::integrity, .what = std::move(what), .file = name_,
                   .expected = std::to_string(status_.size) + " bytes",
                   .found = now ? std::to_string(now.value().size) + " bytes" : "no answer", .advice = "run again when it is complete"};
  }

  os::descriptor file_;
  std::string name_;
  os::file_status status_;
};

/// Opens a regular file for reading; returns at once whatever the path is. `name` is what messages call it (default: the path).
/// @fails path (a folder, pipe, socket, device or a file of /proc), io (missing, no permission)
inline result<std::shared_ptr<const byte_source>> open_file(const std::string& path, std::string name = {}) {
  if (name.empty()) name = path;
  const auto refuse = [&](std::string_view kind) {
    return failure{.code = errc::path, .what = "the path is no regular file", .file = name, .expected = "a regular file",
                   .found = std::string(kind)};
  };
  // Asked before opening, because opening a device may already do something (rewind a tape); and again afterwards.
  TENSORSMITH_TRY(const os::file_status before, os::status_of(path));
  if (before.kind != os::file_kind::regular) return refuse(os::kind_name(before.kind));
  TENSORSMITH_TRY(os::descriptor file, os::open_readable(path));
  TENSORSMITH_TRY(const os::file_status status, os::status_of(file, name));
  if (status.kind != os::file_kind::regular) return refuse(os::kind_name(status.kind));
  if (os::is_pseudo_file(file)) return refuse("a view into the kernel");
  return std::shared_ptr<const byte_source>(std::make_shared<file_source>(std::move(file), std::move(name), status));
}

/// Opens `folder/relative`, where `relative` comes from a file and is not trusted: it may not leave the folder, by its text
/// nor by symbolic links. Links of a Hugging Face cache (snapshots/<revision>/… → blobs/…) are accepted.
/// @fails path, io
inline result<std::shared_ptr<const byte_source>> open_file_below(const std::string& folder, const std::string& relative,
                                                                  std::string_view named_by, bool allow_subfolders = false) {
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
  return open_file(real, path);
}

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
  /// Creates `path`, which must not exist, and reserves its space. `name` is what messages call it (default: the path).
  /// Nothing is left at the path after a failure. @fails no_space (with the bytes needed and free), io
  static result<std::shared_ptr<output_file>> create(const std::string& path, std::uint64_t size, std::string name = {}) {
    if (name.empty()) name = path;
    auto created = os::create_exclusive(path);
    if (!created) {
      created.error().file = name;
      return std::move(created).error();
    }
    auto out = std::make_shared<output_file>(token{}, std::move(created).value(), path, std::move(name), size);
    if (auto reserved = os::reserve(out->file_, size, out->name_); !reserved) {
      (void)os::remove_file(path);
      failure error = std::move(reserved).error();
      if (error.code == errc::no_space) {
        error.expected = std::to_string(size) + " bytes";
        error.found = std::to_string(std::min(os::free_space(std::string(parent_path(path))), os::file_size_limit())) + " bytes free";
      }
      return error;
    }
    return out;
  }

  const std::string& name() const noexcept override { return name_; }
  /// Where it lies now; it is renamed when it is published.
  const std::string& path() const noexcept { return path_; }
  std::uint64_t size() const noexcept { return size_; }
  const os::descriptor& file() const noexcept { return file_; }

  result<void> write_at(std::uint64_t offset, std::span<const std::byte> bytes) override {
    TENSORSMITH_CHECK(inside(offset, bytes.size()));
    return os::write_all(file_, offset, bytes, name_);
  }

  /// Copies a range inside the kernel. True: done. False: not possible here, use read_at and write_at. @fails io, no_space
  result<bool> copy_from(const byte_source& source, std::uint64_t from, std::uint64_t to, std::uint64_t length) {
    if (source.descriptor() < 0) return false;
    TENSORSMITH_CHECK(inside(to, length));
    return os::copy_range(source.descriptor(), from, file_, to, length, name_);
  }

  /// Waits until all bytes are on the disk.
  result<void> sync() { return os::synchronize(file_, name_); }
  /// Starts the transfer to the disk without waiting for it.
  void start_writeback() noexcept { os::start_writeback(file_, 0, 0); }
  /// Closes; later writes fail. @fails io, no_space (file systems that report a full quota only now)
  result<void> close() { return file_.close(name_); }

 private:
  struct token {};

 public:
  /// Use create().
  output_file(token, os::descriptor file, std::string path, std::string name, std::uint64_t size)
      : file_(std::move(file)), path_(std::move(path)), name_(std::move(name)), size_(size) {}

 private:
  result<void> inside(std::uint64_t offset, std::uint64_t length) const {
    if (offset <= size_ && length <= size_ - offset) return {};
    return failure{.code = errc::internal, .what = "write past the planned end", .file = name_,
                   .place = "byte offset " + std::to_string(offset), .expected = "at most " + std::to_string(size_) + " bytes",
                   .found = std::to_string(length) + " more"};
  }

  os::descriptor file_;
  std::string path_, name_;
  std::uint64_t size_;
};

TENSORSMITH_END_NAMESPACE
