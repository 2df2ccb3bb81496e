// SPDX-License-Identifier: MIT
//
// Chains from a finished folder of ONNX graphs to another one.
#include <filesystem>
#include <fstream>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/stage/onnx_folder.hpp"

namespace ts = tensorsmith;
namespace fs = std::filesystem;
using namespace ts::tags;

namespace {

std::string text_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// A stage of a user: the bias of conv_in becomes zero.
struct silence {
  using input = ts::package;
  using output = ts::package;
  static constexpr std::string_view name = "silence";

  ts::result<ts::package> run(ts::package in, ts::job&) const {
    ts::catalog& weights = in.find("unet")->weights;
    const ts::tensor_info info = weights.find("conv_in.bias")->tensor.info();
    weights.replace("conv_in.bias", ts::in_memory({"zeros", info.type, info.shape}, std::vector<std::byte>(info.bytes())));
    return in;
  }
};

}  // namespace

TEST_CASE("a folder of ONNX graphs is opened, changed and written again in one chain", "[stage]") {
  const support::temp_folder folder;
  const fs::path base = support::data("onnx/script");
  const auto same = ts::open<onnx_folder>(base.string()) | ts::rewrite_onnx(folder / "same");
  INFO((same ? std::string() : same.error().message()));
  REQUIRE(same);
  std::size_t files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(base))
    if (entry.is_regular_file()) {
      ++files;
      CHECK(text_of(entry.path()) == text_of(folder.path() / "same" / fs::relative(entry.path(), base)));
    }
  CHECK(files == 3);
  const auto changed = ts::open<onnx_folder>(base.string()) | silence() | ts::rewrite_onnx(folder / "changed", {.verify = true});
  REQUIRE(changed);
  CHECK(changed->components.size() == 2);
  CHECK(text_of(folder.path() / "changed" / "unet" / "weights.pb") == text_of(base / "unet" / "weights.pb"));  // a bias lies inside the graph
  CHECK(text_of(folder.path() / "changed" / "unet" / "model.onnx") != text_of(base / "unet" / "model.onnx"));
  CHECK(fs::file_size(folder.path() / "changed" / "unet" / "model.onnx") == fs::file_size(base / "unet" / "model.onnx"));
  const auto again = ts::open<onnx_folder>(base.string()) | ts::rewrite_onnx(folder / "changed");
  REQUIRE(!again);
  CHECK(again.error().code == ts::errc::path);
}
