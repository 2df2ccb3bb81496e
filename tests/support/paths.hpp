// SPDX-License-Identifier: MIT
//
// tests/support/paths.hpp: where the stored test data lies, and an empty folder that goes away with its test.
#pragma once

#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <string>
#include <system_error>

namespace support {

/// `tests/data/<relative>` of the source tree. ctest passes its place; a program compiled by hand is run from there.
inline std::filesystem::path data(const std::string& relative = {}) {
#ifdef TENSORSMITH_TEST_DATA
  const std::filesystem::path root = TENSORSMITH_TEST_DATA;
#else
  const std::filesystem::path root = "tests/data";
#endif
  return relative.empty() ? root : root / relative;
}

/// An empty folder of its own, removed with everything in it.
class temp_folder {
 public:
  temp_folder() {
    static std::atomic<unsigned> next{0};
    path_ = std::filesystem::temp_directory_path() /
            ("tensorsmith-test-" + std::to_string(::getpid()) + "-" + std::to_string(next++));
    std::filesystem::create_directories(path_);
  }
  temp_folder(const temp_folder&) = delete;
  temp_folder& operator=(const temp_folder&) = delete;
  ~temp_folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::filesystem::path& path() const { return path_; }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

}  // namespace support
