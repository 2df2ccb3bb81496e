// SPDX-License-Identifier: MIT
//
// tensorsmith/io/os.hpp: every system call of the library, as functions that return results.
//
// Include this below io/file.hpp and io/publish.hpp; programs rather include those. Proven on Linux; other POSIX systems take
// the portable branches (no reservation of disk space, no copy in the kernel, no atomic exchange of folders).
#pragma once

#if defined(_WIN32)
#error "tensorsmith reads and writes files on POSIX systems so far; the headers below core, tensor and graph need no system"
#endif

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#if defined(__linux__)
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#endif

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/error.hpp"

TENSORSMITH_BEGIN_NAMESPACE

namespace os {

/// Most bytes of one read or write call: Linux transfers at most 2^31 − 4096 at once (BIG-03), rounded down here.
inline constexpr std::size_t largest_transfer = std::size_t{1} << 30;

/// A failed system call as a failure: "cannot open the file: No such file or directory (errno 2)". A full disk, a quota and a
/// file size limit are no_space, all others io.
inline failure call_failed(std::string what, const std::string& path, int error, std::string place = {}) {
  const bool space = error == ENOSPC || error == EDQUOT || error == EFBIG;
  return failure{.code = space ? errc::no_space : errc::io,
                 .what = what + ": " + std::strerror(error) + " (errno " + std::to_string(error) + ")",
                 .file = path, .place = std::move(place), .advice = space ? "free disk space or choose another place" : ""};
}

/// An open file descriptor, closed on destruction.
class descriptor {
 public:
  descriptor() = default;
  explicit descriptor(int number) noexcept : number_(number) {}
  descriptor(descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  descriptor& operator=(descriptor&& other) noexcept {
    if (this != &other) reset(), number_ = std::exchange(other.number_, -1);
    return *this;
  }
  ~descriptor() { reset(); }

  int get() const noexcept { return number_; }
  /// Gives it to who closes it.
  int release() noexcept { return std::exchange(number_, -1); }
  explicit operator bool() const noexcept { return number_ >= 0; }
  void reset() noexcept {
    if (number_ >= 0) ::close(std::exchange(number_, -1));
  }
  /// Closes and reports what the file system held back until now (network file systems report a full quota here).
  result<void> close(const std::string& path) {
    if (number_ < 0 || ::close(std::exchange(number_, -1)) == 0 || errno == EINTR) return {};
    return call_failed("cannot close the file", path, errno);
  }

 private:
  int number_ = -1;
};

/// What a path or a descriptor refers to.
enum class file_kind : std::uint8_t { regular, folder, symbolic_link, pipe, socket, device, other };

/// "a regular file", "a folder", …: for messages.
constexpr std::string_view kind_name(file_kind kind) noexcept {
  constexpr std::string_view names[] = {"a regular file", "a folder", "a symbolic link", "a named pipe", "a socket",
                                        "a device", "no regular file"};
  return names[static_cast<std::size_t>(kind)];
}

/// The facts of a file that the library compares or keeps.
struct file_status {
  file_kind kind = file_kind::other;
  std::uint64_t size = 0;
  std::uint64_t device = 0, inode = 0;
  std::uint64_t links = 0;
  std::uint32_t mode = 0;           ///< permission bits
  std::int64_t modified_ns = 0;     ///< time of the last change of the contents
  bool same_file(const file_status& other) const noexcept { return device == other.device && inode == other.inode; }
};

inline file_status status_from(const struct ::stat& raw) noexcept {
  file_status out;
  out.kind = S_ISREG(raw.st_mode)    ? file_kind::regular
             : S_ISDIR(raw.st_mode)  ? file_kind::folder
             : S_ISLNK(raw.st_mode)  ? file_kind::symbolic_link
             : S_ISFIFO(raw.st_mode) ? file_kind::pipe
             : S_ISSOCK(raw.st_mode) ? file_kind::socket
             : S_ISCHR(raw.st_mode) || S_ISBLK(raw.st_mode) ? file_kind::device
                                                            : file_kind::other;
  out.size = static_cast<std::uint64_t>(raw.st_size);
  out.device = static_cast<std::uint64_t>(raw.st_dev);
  out.inode = static_cast<std::uint64_t>(raw.st_ino);
  out.links = static_cast<std::uint64_t>(raw.st_nlink);
  out.mode = static_cast<std::uint32_t>(raw.st_mode) & 07777U;
#if defined(__APPLE__)
  out.modified_ns = std::int64_t{raw.st_mtimespec.tv_sec} * 1'000'000'000 + raw.st_mtimespec.tv_nsec;
#else
  out.modified_ns = std::int64_t{raw.st_mtim.tv_sec} * 1'000'000'000 + raw.st_mtim.tv_nsec;
#endif
  return out;
}

/// The status of a path; symbolic links are followed if `follow`.
inline result<file_status> status_of(const std::string& path, bool follow = true) {
  struct ::stat raw {};
  if ((follow ? ::stat(path.c_str(), &raw) : ::lstat(path.c_str(), &raw)) != 0)
    return call_failed("cannot find the file", path, errno);
  return status_from(raw);
}

/// The status of an open file.
inline result<file_status> status_of(const descriptor& file, const std::string& path) {
  struct ::stat raw {};
  if (::fstat(file.get(), &raw) != 0) return call_failed("cannot inspect the file", path, errno);
  return status_from(raw);
}

/// The status of a path if something is there. @fails io (it cannot be told: no permission, a read error)
inline result<std::optional<file_status>> status_if_any(const std::string& path, bool follow = true) {
  struct ::stat raw {};
  if ((follow ? ::stat(path.c_str(), &raw) : ::lstat(path.c_str(), &raw)) == 0) return std::optional<file_status>(status_from(raw));
  if (errno == ENOENT || errno == ENOTDIR) return std::optional<file_status>();
  return call_failed("cannot inspect the file", path, errno);
}

/// True if a folder is there; false if nothing or something else is. @fails io (it cannot be told): not to be taken for "missing"
inline result<bool> has_folder(const std::string& path) {
  TENSORSMITH_TRY(const auto there, status_if_any(path));
  return there && there->kind == file_kind::folder;
}

/// True if the path exists (a dangling symbolic link does not, unless `follow` is false).
inline bool exists(const std::string& path, bool follow = true) {
  struct ::stat raw {};
  return (follow ? ::stat(path.c_str(), &raw) : ::lstat(path.c_str(), &raw)) == 0;
}
inline bool is_folder(const std::string& path) {
  struct ::stat raw {};
  return ::stat(path.c_str(), &raw) == 0 && S_ISDIR(raw.st_mode);
}
inline bool is_regular_file(const std::string& path) {
  struct ::stat raw {};
  return ::stat(path.c_str(), &raw) == 0 && S_ISREG(raw.st_mode);
}

/// The path with every symbolic link resolved.
inline result<std::string> real_path(const std::string& path) {
  struct release {
    void operator()(char* text) const noexcept { std::free(text); }
  };
  const std::unique_ptr<char, release> resolved(::realpath(path.c_str(), nullptr));
  if (!resolved) return call_failed("cannot resolve the path", path, errno);
  return std::string(resolved.get());
}

namespace detail_os {
inline int retry_open(const char* path, int flags, ::mode_t mode = 0) noexcept {
  int number = -1;
  do number = ::open(path, flags | O_CLOEXEC, mode);
  while (number < 0 && errno == EINTR);
  return number;
}
}  // namespace detail_os

/// Opens for reading without waiting (a named pipe returns at once). The caller checks what it is with status_of.
inline result<descriptor> open_readable(const std::string& path, bool follow = true) {
  const int number = detail_os::retry_open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | (follow ? 0 : O_NOFOLLOW));
  if (number < 0) return call_failed("cannot open the file", path, errno);
  return descriptor(number);
}

/// Opens a file by its real path, as real_path gave it, for reading; no part of it may have become a symbolic link since.
inline result<descriptor> open_without_links(const std::string& path) {
  constexpr int flags = O_RDONLY | O_NONBLOCK | O_NOCTTY | O_NOFOLLOW;
#if defined(__linux__) && defined(SYS_openat2)
  struct {
    std::uint64_t flags, mode, resolve;
  } how{static_cast<std::uint64_t>(flags | O_CLOEXEC), 0, 0x02 | 0x04};  // RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS
  long number = -1;
  do number = ::syscall(SYS_openat2, AT_FDCWD, path.c_str(), &how, sizeof how);
  while (number < 0 && errno == EINTR);
  if (number >= 0) return descriptor(static_cast<int>(number));
  if (errno != ENOSYS && errno != EPERM) return call_failed("cannot open the file", path, errno);  // EPERM: a filter of system calls
#endif
  const int plain = detail_os::retry_open(path.c_str(), flags);
  if (plain < 0) return call_failed("cannot open the file", path, errno);
  return descriptor(plain);
}

/// Opens an existing file of ours for reading and writing.
inline result<descriptor> open_writable(const std::string& path) {
  const int number = detail_os::retry_open(path.c_str(), O_RDWR | O_NONBLOCK | O_NOCTTY | O_NOFOLLOW);
  if (number < 0) return call_failed("cannot open the file", path, errno);
  return descriptor(number);
}

/// Opens a folder, to synchronize, lock or list it.
inline result<descriptor> open_folder(const std::string& path, bool follow = true) {
  const int number = detail_os::retry_open(path.c_str(), O_RDONLY | O_DIRECTORY | (follow ? 0 : O_NOFOLLOW));
  if (number < 0) return call_failed("cannot open the folder", path, errno);
  return descriptor(number);
}

/// Holds a folder, so that it can be told from others; needs no permission to read it.
inline result<descriptor> hold_folder(const std::string& path) {
#if defined(O_PATH)
  const int number = detail_os::retry_open(path.c_str(), O_PATH | O_DIRECTORY);
#else
  const int number = detail_os::retry_open(path.c_str(), O_RDONLY | O_DIRECTORY);
#endif
  if (number < 0) return call_failed("cannot open the folder", path, errno);
  return descriptor(number);
}

/// Creates a file that must not exist yet (nor as a symbolic link), for reading and writing.
inline result<descriptor> create_exclusive(const std::string& path, std::uint32_t mode = 0666) {
  const int number = detail_os::retry_open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, static_cast<::mode_t>(mode));
  if (number < 0) return call_failed("cannot create the file", path, errno);
  return descriptor(number);
}

/// Reads at most `out.size()` bytes at `offset`; 0 at the end of the file. Repeats interrupted calls.
inline result<std::size_t> read_some(const descriptor& file, std::uint64_t offset, std::span<std::byte> out, const std::string& path) {
  for (;;) {
    const ::ssize_t got =
        ::pread(file.get(), out.data(), std::min(out.size(), largest_transfer), static_cast<::off_t>(offset));
    if (got >= 0) return static_cast<std::size_t>(got);
    if (errno != EINTR) return call_failed("cannot read", path, errno, "byte offset " + std::to_string(offset));
  }
}

/// Writes all of `bytes` at `offset`.
inline result<void> write_all(const descriptor& file, std::uint64_t offset, std::span<const std::byte> bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ::ssize_t put =
        ::pwrite(file.get(), bytes.data(), std::min(bytes.size(), largest_transfer), static_cast<::off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return call_failed("cannot write", path, put < 0 ? errno : EIO, "byte offset " + std::to_string(offset));
    bytes = bytes.subspan(static_cast<std::size_t>(put));
    offset += static_cast<std::uint64_t>(put);
  }
  return {};
}

/// Bytes that an unprivileged writer may still use on the file system of `path`, if it says.
inline std::uint64_t free_space(const std::string& path) noexcept {
  struct ::statvfs raw {};
  if (::statvfs(path.c_str(), &raw) != 0) return 0;
  return static_cast<std::uint64_t>(raw.f_bavail) * static_cast<std::uint64_t>(raw.f_frsize);
}

/// Most bytes that a file of this process may have (RLIMIT_FSIZE). Exceeding it raises SIGXFSZ, so ask before writing.
inline std::uint64_t file_size_limit() noexcept {
  struct ::rlimit raw {};
  if (::getrlimit(RLIMIT_FSIZE, &raw) != 0 || raw.rlim_cur == RLIM_INFINITY) return ~std::uint64_t{0};
  return static_cast<std::uint64_t>(raw.rlim_cur);
}

/// Gives a new file its final size and reserves the space where the file system can, so that a full disk shows before the
/// work and not after it. @fails no_space, io
inline result<void> reserve(const descriptor& file, std::uint64_t bytes, const std::string& path) {
  if (bytes == 0) return {};
  if (bytes > file_size_limit()) return call_failed("cannot reserve the file's space", path, EFBIG);
#if defined(__linux__)
  int outcome = 0;
  do outcome = ::fallocate(file.get(), 0, 0, static_cast<::off_t>(bytes));
  while (outcome != 0 && errno == EINTR);
  if (outcome == 0) return {};
  if (errno != EOPNOTSUPP && errno != ENOSYS) return call_failed("cannot reserve the file's space", path, errno);
#endif
  // Nothing can be reserved here; what is known to be too little is still refused before the work.
  struct ::statvfs room {};
  if (::fstatvfs(file.get(), &room) == 0 && room.f_blocks != 0 &&
      bytes / std::max<std::uint64_t>(1, room.f_frsize) > static_cast<std::uint64_t>(room.f_bavail))
    return call_failed("cannot reserve the file's space", path, ENOSPC);
  int sized = 0;
  do sized = ::ftruncate(file.get(), static_cast<::off_t>(bytes));
  while (sized != 0 && errno == EINTR);
  if (sized != 0) return call_failed("cannot give the file its size", path, errno);
  return {};
}

/// Copies a range between files inside the kernel. True: all of it is done. False: this pair of files cannot; nothing is
/// promised about the range then. @fails no_space
inline result<bool> copy_range(int from, std::uint64_t from_offset, const descriptor& to, std::uint64_t to_offset,
                               std::uint64_t bytes, const std::string& path) {
#if defined(__linux__)
  auto in = static_cast<::off64_t>(from_offset);
  auto out = static_cast<::off64_t>(to_offset);
  while (bytes != 0) {
    const auto step = static_cast<std::size_t>(std::min<std::uint64_t>(bytes, largest_transfer));
    const ::ssize_t done = ::copy_file_range(from, &in, to.get(), &out, step, 0);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG))
      return call_failed("cannot copy into the file", path, errno, "byte offset " + std::to_string(out));
    if (done <= 0) return false;  // other file systems, an early end, a read or write error: read_at and write_at say which
    bytes -= static_cast<std::uint64_t>(done);
  }
  return true;
#else
  (void)from, (void)from_offset, (void)to, (void)to_offset, (void)bytes, (void)path;
  return false;
#endif
}

/// Makes `to` (empty, new) share the blocks of `from`. False if the file system has no copy-on-write clones.
inline bool clone_file(const descriptor& from, const descriptor& to) noexcept {
#if defined(__linux__) && defined(FICLONE)
  return ::ioctl(to.get(), FICLONE, from.get()) == 0;
#else
  (void)from, (void)to;
  return false;
#endif
}

/// Tells the system that a range will be read soon. Advisory.
inline void will_need(const descriptor& file, std::uint64_t offset, std::uint64_t bytes) noexcept {
#if defined(__linux__)
  (void)::posix_fadvise(file.get(), static_cast<::off_t>(offset), static_cast<::off_t>(bytes), POSIX_FADV_WILLNEED);
#else
  (void)file, (void)offset, (void)bytes;
#endif
}

/// Starts writing a range to the disk without waiting. Advisory: errors show in `synchronize`.
inline void start_writeback(const descriptor& file, std::uint64_t offset, std::uint64_t bytes) noexcept {
#if defined(__linux__)
  (void)::sync_file_range(file.get(), static_cast<::off64_t>(offset), static_cast<::off64_t>(bytes), SYNC_FILE_RANGE_WRITE);
#else
  (void)file, (void)offset, (void)bytes;
#endif
}

/// Waits until the contents (and the size) are on the disk. Never repeated after a failure: the kernel then has dropped the
/// pages, and a second call would claim success. Being interrupted (EINTR) is no such failure.
inline result<void> synchronize(const descriptor& file, const std::string& path) {
  int outcome = 0;
  do {
#if defined(__linux__)
    outcome = ::fdatasync(file.get());
#else
    outcome = ::fsync(file.get());
#endif
  } while (outcome != 0 && errno == EINTR);
  if (outcome != 0) return call_failed("cannot bring the data to the disk", path, errno);
  return {};
}

/// Makes the names inside a folder durable. File systems that cannot synchronize folders (EINVAL) are let pass.
inline result<void> synchronize_folder(const std::string& path) {
  TENSORSMITH_TRY(const descriptor folder, open_folder(path));
  int outcome = 0;
  do outcome = ::fsync(folder.get());
  while (outcome != 0 && errno == EINTR);
  if (outcome != 0 && errno != EINVAL && errno != ENOTSUP)
    return call_failed("cannot bring the folder to the disk", path, errno);
  return {};
}

/// Creates a folder; true if it was created, false if a folder is there already.
inline result<bool> make_folder(const std::string& path, std::uint32_t mode = 0777) {
  if (::mkdir(path.c_str(), static_cast<::mode_t>(mode)) == 0) return true;
  const int error = errno;
  if (error == EEXIST && is_folder(path)) return false;
  return call_failed("cannot create the folder", path, error);
}

/// Creates a folder of a name that is free. False: something has the name, whatever it is.
inline result<bool> make_new_folder(const std::string& path, std::uint32_t mode) {
  if (::mkdir(path.c_str(), static_cast<::mode_t>(mode)) == 0) return true;
  if (errno == EEXIST) return false;
  return call_failed("cannot create the folder", path, errno);
}

inline result<void> set_mode(const std::string& path, std::uint32_t mode) {
  if (::chmod(path.c_str(), static_cast<::mode_t>(mode)) != 0) return call_failed("cannot set the permissions", path, errno);
  return {};
}

inline result<void> hard_link(const std::string& from, const std::string& to) {
  if (::link(from.c_str(), to.c_str()) != 0) return call_failed("cannot link to " + quoted(from), to, errno);
  return {};
}

/// Renames within a file system, replacing a file (or an empty folder) of the new name.
inline result<void> rename_over(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) return call_failed("cannot rename the finished output", to, errno);
  return {};
}

/// Renames if the new name is free. False: something has that name.
inline result<bool> rename_new(const std::string& from, const std::string& to) {
#if defined(__linux__) && defined(SYS_renameat2)
  constexpr unsigned no_replace = 1;  // RENAME_NOREPLACE; the C library's header lacks it before glibc 2.28
  if (::syscall(SYS_renameat2, AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), no_replace) == 0) return true;
  if (errno == EEXIST) return false;
  if (errno != EINVAL && errno != ENOSYS) return call_failed("cannot rename the finished output", to, errno);
#endif
  if (exists(to, false)) return false;
  TENSORSMITH_CHECK(rename_over(from, to));
  return true;
}

/// Exchanges two names in one step. False: the file system cannot, or one of them does not exist.
inline result<bool> exchange(const std::string& a, const std::string& b) {
#if defined(__linux__) && defined(SYS_renameat2)
  constexpr unsigned both = 2;  // RENAME_EXCHANGE
  if (::syscall(SYS_renameat2, AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), both) == 0) return true;
  if (errno != EINVAL && errno != ENOSYS && errno != ENOENT) return call_failed("cannot rename the finished output", b, errno);
#else
  (void)a, (void)b;
#endif
  return false;
}

inline result<void> remove_file(const std::string& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return call_failed("cannot remove the file", path, errno);
  return {};
}
/// Removes an empty folder; false if it is not empty or cannot be removed (tried twice, as remove_tree).
inline bool remove_empty_folder(const std::string& path) noexcept { return ::rmdir(path.c_str()) == 0 || ::rmdir(path.c_str()) == 0; }

/// The names in a folder, sorted by bytes, without "." and "..".
inline result<std::vector<std::string>> list_folder(const std::string& path) {
  struct close {
    void operator()(::DIR* folder) const noexcept { ::closedir(folder); }
  };
  const std::unique_ptr<::DIR, close> folder(::opendir(path.c_str()));
  if (!folder) return call_failed("cannot list the folder", path, errno);
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const ::dirent* entry = ::readdir(folder.get());
    if (!entry && errno != 0) return call_failed("cannot list the folder", path, errno);
    if (!entry) break;
    const std::string_view name(entry->d_name);
    if (name != "." && name != "..") names.emplace_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

namespace detail_os {
inline void remove_contents(::DIR* folder) noexcept;

/// Removes what `name` in the open folder `parent` stands for; true if nothing is left. Symbolic links are removed, never followed.
inline bool remove_entry(int parent, const char* name) noexcept {
  if (::unlinkat(parent, name, 0) == 0 || errno == ENOENT) return true;
  if (::unlinkat(parent, name, AT_REMOVEDIR) == 0 || errno == ENOENT) return true;
  int number = -1;
  do number = ::openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  while (number < 0 && errno == EINTR);
  if (number < 0) return errno == ENOENT;
  if (::DIR* folder = ::fdopendir(number)) {
    remove_contents(folder);
    ::closedir(folder);
  } else {
    ::close(number);
  }
  return ::unlinkat(parent, name, AT_REMOVEDIR) == 0 || errno == ENOENT;
}

inline void remove_contents(::DIR* folder) noexcept {
  while (const ::dirent* entry = ::readdir(folder)) {
    const std::string_view inner(entry->d_name);
    if (inner != "." && inner != "..") remove_entry(::dirfd(folder), entry->d_name);
  }
}
}  // namespace detail_os

/// Removes a file or a folder with all that it holds, without following symbolic links. True if nothing is left. Tries again once:
/// this is the cleaning up after a failure, which one call may have met for the first time.
inline bool remove_tree(const std::string& path) noexcept {
  return detail_os::remove_entry(AT_FDCWD, path.c_str()) || detail_os::remove_entry(AT_FDCWD, path.c_str());
}

/// The same for a folder that is open, and closes it; it works when no more file can be opened.
inline bool remove_tree(const std::string& path, descriptor folder) noexcept {
  if (::DIR* open = folder ? ::fdopendir(folder.get()) : nullptr) {
    folder.release();
    detail_os::remove_contents(open);
    ::closedir(open);
  }
  return remove_tree(path);
}

/// Takes an exclusive lock that ends with the descriptor (and so with the process), without waiting. A system that cannot lock
/// here counts as `unknown`.
enum class lock_state : std::uint8_t { taken, held_elsewhere, unknown };
inline lock_state try_lock(const descriptor& file) noexcept {
  int outcome = 0;
  do outcome = ::flock(file.get(), LOCK_EX | LOCK_NB);
  while (outcome != 0 && errno == EINTR);
  if (outcome == 0) return lock_state::taken;
  return errno == EWOULDBLOCK ? lock_state::held_elsewhere : lock_state::unknown;
}

/// True for files of /proc and /sys: they look like regular files and are none (/proc/self/mem).
inline bool is_pseudo_file(const descriptor& file) noexcept {
#if defined(__linux__)
  struct ::statfs raw {};
  if (::fstatfs(file.get(), &raw) != 0) return false;
  constexpr unsigned long proc = 0x9FA0, sysfs = 0x62656572, debugfs = 0x64626720, tracefs = 0x74726163;
  const auto type = static_cast<unsigned long>(raw.f_type) & 0xFFFFFFFFUL;
  return type == proc || type == sysfs || type == debugfs || type == tracefs;
#else
  (void)file;
  return false;
#endif
}

/// This process's number, for names of temporary files.
inline long process_number() noexcept { return static_cast<long>(::getpid()); }

/// A number that nobody can guess, for names of temporary files; zero where the system has none. Does not wait.
inline std::uint32_t random_number() noexcept {
  std::uint32_t out = 0;
#if defined(__linux__) && defined(SYS_getrandom)
  constexpr unsigned without_waiting = 1;  // GRND_NONBLOCK
  if (::syscall(SYS_getrandom, &out, sizeof out, without_waiting) != static_cast<long>(sizeof out)) out = 0;
#endif
  return out;
}

/// Descriptors that this process may have open.
inline std::uint64_t descriptor_limit() noexcept {
  struct ::rlimit raw {};
  if (::getrlimit(RLIMIT_NOFILE, &raw) != 0 || raw.rlim_cur == RLIM_INFINITY) return ~std::uint64_t{0};
  return static_cast<std::uint64_t>(raw.rlim_cur);
}

/// True if the descriptor (1: standard output, 2: standard error) is a terminal.
inline bool is_terminal(int number) noexcept { return ::isatty(number) == 1; }

/// Resident memory in bytes, as the kernel counts it.
struct memory_use {
  std::uint64_t anonymous = 0;      ///< heap and stacks now (RssAnon)
  std::uint64_t resident = 0;       ///< all resident pages now (VmRSS)
  std::uint64_t peak_resident = 0;  ///< highest resident size so far (VmHWM)
};

/// Memory in use by this process; zeros where /proc is missing.
inline memory_use memory_in_use() {
  memory_use out;
  const descriptor file(detail_os::retry_open("/proc/self/status", O_RDONLY));
  if (!file) return out;
  char text[8192];
  const ::ssize_t got = ::read(file.get(), text, sizeof text);
  if (got <= 0) return out;
  const std::string_view all(text, static_cast<std::size_t>(got));
  const auto field = [&](std::string_view name) -> std::uint64_t {
    std::size_t at = all.find(name);
    if (at == std::string_view::npos) return 0;
    at += name.size();
    while (at < all.size() && (all[at] == ' ' || all[at] == '\t')) ++at;
    std::uint64_t kibibytes = 0;
    for (; at < all.size() && all[at] >= '0' && all[at] <= '9'; ++at)
      kibibytes = kibibytes * 10 + static_cast<std::uint64_t>(all[at] - '0');
    return kibibytes * 1024;
  };
  out.anonymous = field("\nRssAnon:");
  out.resident = field("\nVmRSS:");
  out.peak_resident = field("\nVmHWM:");
  return out;
}

}  // namespace os

TENSORSMITH_END_NAMESPACE
