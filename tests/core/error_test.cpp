// SPDX-License-Identifier: MIT
#include "tensorsmith/core/error.hpp"

#include <memory>

#include "support/catch.hpp"

namespace ts = tensorsmith;

TEST_CASE("a failure's message is one sentence with its parts in order", "[core]") {
  const ts::failure all{.code = ts::errc::malformed,
                        .what = "the header ends past the end of the file",
                        .file = "a.safetensors",
                        .place = "byte offset 0",
                        .expected = "at most 92 bytes",
                        .found = "100",
                        .advice = "download the file again"};
  CHECK(all.message() ==
        "FMT a.safetensors: byte offset 0: the header ends past the end of the file (expected at most 92 bytes, found 100); "
        "download the file again");
  const ts::failure few{.code = ts::errc::io, .what = "cannot read", .found = "EIO"};
  CHECK(few.message() == "IO cannot read (found EIO)");
}

TEST_CASE("codes have stable names and exit statuses", "[core]") {
  CHECK(ts::code_name(ts::errc::malformed) == "FMT");
  CHECK(ts::code_name(ts::errc::no_space) == "NOSPC");
  CHECK(ts::code_name(ts::errc::internal) == "INT");
  CHECK(ts::exit_code(ts::errc::usage) == 2);
  CHECK(ts::exit_code(ts::errc::malformed) == 10);
  CHECK(ts::exit_code(ts::errc::internal) == 24);
}

TEST_CASE("untrusted text is escaped and cut", "[core]") {
  CHECK(ts::quoted("plain name") == "'plain name'");
  CHECK(ts::quoted("\x1b[2J\n") == "'\\x1b[2J\\x0a'");
  CHECK(ts::quoted("caf\xC3\xA9") == "'caf\xC3\xA9'");
  CHECK(ts::quoted("\xE2\x80\xAE") == "'\\u{202e}'");
  CHECK(ts::quoted("\xFF\xC0\x80") == "'\\xff\\xc0\\x80'");
  const std::string longest(201, 'a');
  CHECK(ts::quoted(longest) == "'" + std::string(200, 'a') + "'…(201 bytes)");
  CHECK(ts::quoted(std::string(199, 'a') + "\xC3\xA9") == "'" + std::string(199, 'a') + "'…(201 bytes)");
}

TEST_CASE("is_utf8 finds the first wrong byte", "[core]") {
  std::size_t at = 99;
  CHECK(ts::is_utf8("a\xF0\x9F\x98\x80z", at));
  for (const auto& [text, offset] : {std::pair<std::string_view, std::size_t>{"ab\xFF", 2}, {"\xED\xA0\x80", 0},
                                     {"x\xC0\x80", 1}, {"\xF5\x80\x80\x80", 0}, {"abc\xE2\x82", 3}}) {
    CHECK_FALSE(ts::is_utf8(text, at));
    CHECK(at == offset);
  }
}

namespace {
ts::result<int> half_of(int value) {
  if (value % 2 != 0) return ts::failure{.code = ts::errc::mismatch, .what = "odd"};
  return value / 2;
}
ts::result<std::unique_ptr<int>> quarter_of(int value) {
  TENSORSMITH_TRY(const int half, half_of(value));
  TENSORSMITH_TRY(const int quarter, half_of(half));
  return std::make_unique<int>(quarter);
}
ts::result<void> even(int value) {
  TENSORSMITH_CHECK(half_of(value));
  return {};
}
}  // namespace

TEST_CASE("results carry a value or the first failure", "[core]") {
  REQUIRE(quarter_of(8));
  CHECK(**quarter_of(8) == 2);
  REQUIRE_FALSE(quarter_of(6));
  CHECK(quarter_of(6).error().what == "odd");
  CHECK(even(2));
  CHECK(even(3).error().code == ts::errc::mismatch);
}
