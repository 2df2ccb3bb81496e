// SPDX-License-Identifier: MIT
#include "tensorsmith/io/path.hpp"

#include "support/catch.hpp"

namespace ts = tensorsmith;

TEST_CASE("paths are split like the shell's dirname and basename") {
  CHECK(ts::join_path("a", "b") == "a/b");
  CHECK(ts::join_path("a/", "b") == "a/b");
  CHECK(ts::join_path("", "b") == "b");
  CHECK(ts::file_name("a/b.txt") == "b.txt");
  CHECK(ts::file_name("a/b//") == "b");
  CHECK(ts::file_name("b") == "b");
  CHECK(ts::parent_path("a/b") == "a");
  CHECK(ts::parent_path("a//b/") == "a");
  CHECK(ts::parent_path("b") == ".");
  CHECK(ts::parent_path("/b") == "/");
  CHECK(ts::extension("a.b/model.fp16.safetensors") == ".safetensors");
  CHECK(ts::extension("a.b/model").empty());
  CHECK(ts::extension(".hidden").empty());
  CHECK(ts::ends_with_ignoring_case("X.SafeTensors", ".safetensors"));
  CHECK_FALSE(ts::ends_with_ignoring_case("tensors", ".safetensors"));
}

TEST_CASE("relative paths that can leave their folder are refused") {
  const auto code = [](std::string_view path, bool subfolders = true) {
    const auto checked = ts::check_relative_path(path, "index.json", "/weight_map/a", subfolders);
    return checked ? std::string("accepted") : std::string(ts::code_name(checked.error().code));
  };
  CHECK(code("model.safetensors") == "accepted");
  CHECK(code("unet/model.onnx") == "accepted");
  CHECK(code("..a/b..") == "accepted");
  for (const std::string_view bad : {"", ".", "..", "/abs", "../x", "a/../b", "a//b", "a/.", "a/", "a\\b", "a\nb", "./a"})
    CHECK(code(bad) == "PTH");
  CHECK(code(std::string_view("a\0b", 3)) == "PTH");
  CHECK(code("a/b", false) == "PTH");
  CHECK(ts::check_relative_path("../../etc/passwd", "index.json", "/weight_map/a", false).error().message() ==
        "PTH index.json: /weight_map/a: the path '../../etc/passwd' is refused: it leaves its folder (expected the name of a "
        "file in the same folder)");
}
