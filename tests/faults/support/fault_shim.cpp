// SPDX-License-Identifier: MIT
//
// tests/faults/support/fault_shim.cpp: a library for LD_PRELOAD that makes the k-th system call on chosen files fail, be short, or be
// the last thing that the process does.
//
//   TENSORSMITH_FAULT_ROOT   files below this folder are watched; calls on others pass
//   TENSORSMITH_FAULT        CLASS:K:ACTION; "K+" means from the k-th on. CLASS: a name of the table below, or "any".
//                            ACTION: an errno by name, short=BYTES, kill, term, hup, int, stop, lie (success without doing it)
//   TENSORSMITH_FAULT_COUNT  a file of 4096 bytes: calls of each class so far, then whether the fault happened; shared with the test
//   TENSORSMITH_FAULT_OPENS  a file to which every path that is opened is appended, a line each
//
// Written in the style of C: it runs inside programs before their libraries are ready.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

namespace {

enum call_class { OPEN, READ, WRITE, COPY, RESERVE, TRUNCATE, SYNC, RENAME, CLOSE, LINK, MKDIR, REMOVE, STAT, LOCK, MODE, LIST, RESOLVE, CLASSES };
const char* const class_names[CLASSES] = {"open", "read", "write", "copy", "reserve", "truncate", "sync", "rename", "close",
                                          "link", "mkdir", "remove", "stat", "lock", "mode", "list", "resolve"};

struct error_name {
  const char* name;
  int number;
};
const error_name error_names[] = {{"EIO", EIO}, {"ENOSPC", ENOSPC}, {"EINTR", EINTR}, {"EDQUOT", EDQUOT}, {"EACCES", EACCES},
                                  {"EPERM", EPERM}, {"EROFS", EROFS}, {"EMFILE", EMFILE}, {"ENFILE", ENFILE}, {"ENOMEM", ENOMEM},
                                  {"EXDEV", EXDEV}, {"ENOSYS", ENOSYS}, {"EINVAL", EINVAL}, {"EOPNOTSUPP", EOPNOTSUPP}, {"ENOENT", ENOENT},
                                  {"EFBIG", EFBIG}, {"ENOLCK", ENOLCK}, {"EMLINK", EMLINK}, {"ESTALE", ESTALE}};

const error_name signal_names[] = {{"kill", SIGKILL}, {"term", SIGTERM}, {"hup", SIGHUP}, {"int", SIGINT}, {"stop", SIGSTOP}};

struct shared_counts {
  std::atomic<std::uint64_t> of[CLASSES], all, happened;
};

enum action_kind { NONE, FAIL, SHORT, SIGNAL, LIE };

shared_counts own_counts;
shared_counts* counts = &own_counts;
char root[4096];
std::size_t root_length = 0;
int wanted_class = -2;  // -1: any
std::uint64_t wanted_call = 0;
bool from_then_on = false;
action_kind action = NONE;
long argument = 0;
int opens = -1;
std::atomic<bool> watched[4096];

long raw(long number, long a = 0, long b = 0, long c = 0, long d = 0) {
  static long (*const real)(long, ...) = reinterpret_cast<long (*)(long, ...)>(dlsym(RTLD_NEXT, "syscall"));
  return real(number, a, b, c, d, 0L, 0L);
}

void stop(const char* why) {
  fprintf(stderr, "fault shim: %s\n", why);
  _exit(125);
}

void parse(const char* text) {
  char copy[256];
  if (strlen(text) >= sizeof copy) stop("TENSORSMITH_FAULT is too long");
  strcpy(copy, text);
  char* first = strchr(copy, ':');
  char* second = first ? strchr(first + 1, ':') : nullptr;
  if (!second) stop("TENSORSMITH_FAULT is no CLASS:K:ACTION");
  *first = *second = 0;
  if (strcmp(copy, "any") == 0) wanted_class = -1;
  for (int i = 0; i < CLASSES; ++i)
    if (strcmp(copy, class_names[i]) == 0) wanted_class = i;
  if (wanted_class == -2) stop("unknown class of calls");
  char* end = nullptr;
  wanted_call = strtoull(first + 1, &end, 10);
  from_then_on = *end == '+';
  const char* what = second + 1;
  if (strncmp(what, "short=", 6) == 0) {
    action = SHORT, argument = atol(what + 6);
  } else if (strcmp(what, "lie") == 0) {
    action = LIE;
  } else {
    for (const error_name& s : signal_names)
      if (strcmp(what, s.name) == 0) action = SIGNAL, argument = s.number;
    for (const error_name& e : error_names)
      if (strcmp(what, e.name) == 0) action = FAIL, argument = e.number;
    if (action == NONE) stop("unknown action");
  }
}

__attribute__((constructor)) void begin() {
  if (const char* folder = getenv("TENSORSMITH_FAULT_ROOT")) {
    root_length = strlen(folder);
    if (root_length >= sizeof root) stop("TENSORSMITH_FAULT_ROOT is too long");
    strcpy(root, folder);
  }
  if (const char* path = getenv("TENSORSMITH_FAULT_COUNT")) {
    const long file = raw(SYS_openat, AT_FDCWD, reinterpret_cast<long>(path), O_RDWR | O_CLOEXEC);
    void* memory = file < 0 ? MAP_FAILED : mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, static_cast<int>(file), 0);
    if (memory == MAP_FAILED) stop("cannot open TENSORSMITH_FAULT_COUNT");
    raw(SYS_close, file);
    counts = static_cast<shared_counts*>(memory);
  }
  if (const char* path = getenv("TENSORSMITH_FAULT_OPENS"))
    opens = static_cast<int>(raw(SYS_openat, AT_FDCWD, reinterpret_cast<long>(path), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (const char* text = getenv("TENSORSMITH_FAULT")) parse(text);
}

bool below_root(const char* path) {
  return root_length != 0 && path && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}
bool is_watched(int file) { return file >= 0 && file < 4096 && watched[file].load(std::memory_order_relaxed); }
bool is_watched_at(int folder, const char* path) { return below_root(path) || (path && path[0] != '/' && is_watched(folder)); }
void watch(int file, bool value) {
  if (file >= 0 && file < 4096) watched[file].store(value, std::memory_order_relaxed);
}

void note_open(const char* path) {
  if (opens < 0 || !path) return;
  char line[4200];
  const int length = snprintf(line, sizeof line, "%s\n", path);
  if (length > 0) raw(SYS_write, opens, reinterpret_cast<long>(line), length);
}

/// Counts a call on a watched file. True: it is to fail (errno is set) or be short; signals are raised here.
bool meets_fault(int kind) {
  const std::uint64_t k = ++counts->of[kind], all = ++counts->all;
  if (action == NONE || (wanted_class != -1 && wanted_class != kind)) return false;
  const std::uint64_t at = wanted_class == -1 ? all : k;
  if (from_then_on ? at < wanted_call : at != wanted_call) return false;
  counts->happened.store(1);
  if (action == SIGNAL) {
    raw(SYS_kill, getpid(), argument);
    return false;
  }
  if (action == FAIL) errno = static_cast<int>(argument);
  return true;
}

}  // namespace

#define REAL(name) static const auto real = reinterpret_cast<decltype(&name)>(dlsym(RTLD_NEXT, #name))
// A call that returns -1 on failure and 0 when lied about.
#define FAULTY(kind, on_watched)                        \
  if ((on_watched) && meets_fault(kind)) {              \
    if (action == LIE) return 0;                        \
    if (action == FAIL) return -1;                      \
  }

extern "C" {

#define DEFINE_OPEN(name)                                          \
  int name(const char* path, int flags, ...) {                     \
    REAL(name);                                                    \
    va_list list;                                                  \
    va_start(list, flags);                                         \
    const mode_t mode = static_cast<mode_t>(va_arg(list, int));    \
    va_end(list);                                                  \
    note_open(path);                                               \
    const bool ours = below_root(path);                            \
    if (ours && meets_fault(OPEN) && action == FAIL) return -1;    \
    const int file = real(path, flags, mode);                      \
    watch(file, ours);                                             \
    return file;                                                   \
  }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)

#define DEFINE_OPENAT(name)                                        \
  int name(int folder, const char* path, int flags, ...) {         \
    REAL(name);                                                    \
    va_list list;                                                  \
    va_start(list, flags);                                         \
    const mode_t mode = static_cast<mode_t>(va_arg(list, int));    \
    va_end(list);                                                  \
    note_open(path);                                               \
    const bool ours = is_watched_at(folder, path);                 \
    if (ours && meets_fault(OPEN) && action == FAIL) return -1;    \
    const int file = real(folder, path, flags, mode);              \
    watch(file, ours);                                             \
    return file;                                                   \
  }
DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)

FILE* fopen(const char* path, const char* mode) {
  REAL(fopen);
  note_open(path);
  return below_root(path) && meets_fault(OPEN) && action == FAIL ? nullptr : real(path, mode);
}
FILE* fopen64(const char* path, const char* mode) {
  REAL(fopen64);
  note_open(path);
  return below_root(path) && meets_fault(OPEN) && action == FAIL ? nullptr : real(path, mode);
}
DIR* opendir(const char* path) {
  REAL(opendir);
  note_open(path);
  return below_root(path) && meets_fault(OPEN) && action == FAIL ? nullptr : real(path);
}
struct dirent* readdir(DIR* folder) {
  REAL(readdir);
  return is_watched(dirfd(folder)) && meets_fault(LIST) && action == FAIL ? nullptr : real(folder);
}

#define SHORTENED(bytes) (action == SHORT && static_cast<long>(bytes) > argument ? static_cast<std::size_t>(argument) : (bytes))

ssize_t read(int file, void* to, size_t bytes) {
  REAL(read);
  if (is_watched(file) && meets_fault(READ)) {
    if (action == FAIL) return -1;
    bytes = SHORTENED(bytes);
  }
  return real(file, to, bytes);
}
#define DEFINE_PREAD(name)                                              \
  ssize_t name(int file, void* to, size_t bytes, off_t offset) {        \
    REAL(name);                                                         \
    if (is_watched(file) && meets_fault(READ)) {                        \
      if (action == FAIL) return -1;                                    \
      bytes = SHORTENED(bytes);                                         \
    }                                                                   \
    return real(file, to, bytes, offset);                               \
  }
DEFINE_PREAD(pread)
DEFINE_PREAD(pread64)

ssize_t write(int file, const void* from, size_t bytes) {
  REAL(write);
  if (is_watched(file) && meets_fault(WRITE)) {
    if (action == FAIL) return -1;
    bytes = SHORTENED(bytes);
  }
  return real(file, from, bytes);
}
#define DEFINE_PWRITE(name)                                             \
  ssize_t name(int file, const void* from, size_t bytes, off_t offset) { \
    REAL(name);                                                         \
    if (is_watched(file) && meets_fault(WRITE)) {                       \
      if (action == FAIL) return -1;                                    \
      bytes = SHORTENED(bytes);                                         \
    }                                                                   \
    return real(file, from, bytes, offset);                             \
  }
DEFINE_PWRITE(pwrite)
DEFINE_PWRITE(pwrite64)

ssize_t copy_file_range(int from, off64_t* from_at, int to, off64_t* to_at, size_t bytes, unsigned flags) {
  REAL(copy_file_range);
  if ((is_watched(from) || is_watched(to)) && meets_fault(COPY)) {
    if (action == FAIL) return -1;
    bytes = SHORTENED(bytes);
  }
  return real(from, from_at, to, to_at, bytes, flags);
}

int fallocate(int file, int mode, off_t offset, off_t bytes) {
  REAL(fallocate);
  FAULTY(RESERVE, is_watched(file));
  return real(file, mode, offset, bytes);
}
int fallocate64(int file, int mode, off64_t offset, off64_t bytes) {
  REAL(fallocate64);
  FAULTY(RESERVE, is_watched(file));
  return real(file, mode, offset, bytes);
}
int ftruncate(int file, off_t bytes) noexcept {
  REAL(ftruncate);
  FAULTY(TRUNCATE, is_watched(file));
  return real(file, bytes);
}
int ftruncate64(int file, off64_t bytes) noexcept {
  REAL(ftruncate64);
  FAULTY(TRUNCATE, is_watched(file));
  return real(file, bytes);
}
int fsync(int file) {
  REAL(fsync);
  FAULTY(SYNC, is_watched(file));
  return real(file);
}
int fdatasync(int file) {
  REAL(fdatasync);
  FAULTY(SYNC, is_watched(file));
  return real(file);
}
int rename(const char* from, const char* to) noexcept {
  REAL(rename);
  FAULTY(RENAME, below_root(from) || below_root(to));
  return real(from, to);
}
int close(int file) {
  REAL(close);
  const bool ours = is_watched(file);
  watch(file, false);
  const bool fails = ours && meets_fault(CLOSE) && action == FAIL;
  const int outcome = real(file);
  if (!fails) return outcome;
  errno = static_cast<int>(argument);
  return -1;
}
int link(const char* from, const char* to) noexcept {
  REAL(link);
  FAULTY(LINK, below_root(to));
  return real(from, to);
}
int mkdir(const char* path, mode_t mode) noexcept {
  REAL(mkdir);
  FAULTY(MKDIR, below_root(path));
  return real(path, mode);
}
int unlink(const char* path) noexcept {
  REAL(unlink);
  FAULTY(REMOVE, below_root(path));
  return real(path);
}
int rmdir(const char* path) noexcept {
  REAL(rmdir);
  FAULTY(REMOVE, below_root(path));
  return real(path);
}
int unlinkat(int folder, const char* path, int flags) noexcept {
  REAL(unlinkat);
  FAULTY(REMOVE, is_watched_at(folder, path));
  return real(folder, path, flags);
}
int stat(const char* path, struct stat* out) noexcept {
  REAL(stat);
  FAULTY(STAT, below_root(path));
  return real(path, out);
}
int lstat(const char* path, struct stat* out) noexcept {
  REAL(lstat);
  FAULTY(STAT, below_root(path));
  return real(path, out);
}
int fstat(int file, struct stat* out) noexcept {
  REAL(fstat);
  FAULTY(STAT, is_watched(file));
  return real(file, out);
}
int flock(int file, int what) noexcept {
  REAL(flock);
  FAULTY(LOCK, is_watched(file));
  return real(file, what);
}
int chmod(const char* path, mode_t mode) noexcept {
  REAL(chmod);
  FAULTY(MODE, below_root(path));
  return real(path, mode);
}
char* realpath(const char* path, char* out) noexcept {
  REAL(realpath);
  if (below_root(path) && meets_fault(RESOLVE) && action == FAIL) return nullptr;
  return real(path, out);
}

long syscall(long number, ...) noexcept {
  static long (*const real)(long, ...) = reinterpret_cast<long (*)(long, ...)>(dlsym(RTLD_NEXT, "syscall"));
  va_list list;
  va_start(list, number);
  long a[6];
  for (long& value : a) value = va_arg(list, long);
  va_end(list);
  const auto* second = reinterpret_cast<const char*>(a[1]);
#ifdef SYS_renameat2
  if (number == SYS_renameat2) FAULTY(RENAME, below_root(second) || below_root(reinterpret_cast<const char*>(a[3])));
#endif
#ifdef SYS_openat2
  if (number == SYS_openat2) {
    note_open(second);
    const bool ours = is_watched_at(static_cast<int>(a[0]), second);
    if (ours && meets_fault(OPEN) && action == FAIL) return -1;
    const long file = real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    watch(static_cast<int>(file), ours);
    return file;
  }
#endif
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

}  // extern "C"
