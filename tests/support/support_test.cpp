// SPDX-License-Identifier: MIT
#include <filesystem>
#include <fstream>
#include <string>

#include "support/catch.hpp"
#include "support/paths.hpp"

TEST_CASE("a temporary folder is empty, its own, and goes away") {
  std::filesystem::path first;
  {
    const support::temp_folder one, two;
    first = one.path();
    CHECK(one.path() != two.path());
    CHECK(std::filesystem::is_empty(first));
    std::ofstream(one / "file") << "text";
    CHECK(std::filesystem::exists(first / "file"));
  }
  CHECK_FALSE(std::filesystem::exists(first));
}

TEST_CASE("the stored test data is where data() says") { CHECK(std::filesystem::is_directory(support::data())); }
