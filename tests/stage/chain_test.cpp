// SPDX-License-Identifier: MIT
//
// The chain as the documentation shows it, compiled with every dependency included and all tags in scope.
#include <onnx/onnx_pb.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/tensorsmith.hpp"

namespace ts = tensorsmith;
using namespace ts::tags;

namespace {

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream out;
  out << file.rdbuf();
  return out.str();
}

}  // namespace

TEST_CASE("a folder and a checkpoint of one model give the same pipeline through a chain", "[stage]") {
  const support::temp_folder out;
  const auto from_folder = ts::open<diffusers_folder>(support::data("sd1/diffusers").string())
                         | ts::build<sd15>(ts::interface::optimum)
                         | ts::lower_to<ort_cuda>()
                         | ts::verify()
                         | ts::write<onnx_folder>(out / "folder");
  INFO((from_folder ? std::string() : from_folder.error().message()));
  REQUIRE(from_folder);
  REQUIRE(from_folder->components.size() == 4);

  const auto from_file = ts::open<torch_file>(support::data("sd1/sd1.ckpt").string())
                       | ts::build<sd15>(ts::interface::optimum)
                       | ts::lower_to<ort_cuda>()
                       | ts::write<onnx_folder>(out / "file");
  INFO((from_file ? std::string() : from_file.error().message()));
  REQUIRE(from_file);
  for (const char* file : {"/unet/model.onnx", "/unet/model.onnx_data", "/text_encoder/model.onnx", "/vae_decoder/model.onnx_data"}) {
    INFO(file);
    const std::string one = contents(out / "folder" + file);
    CHECK_FALSE(one.empty());
    CHECK(one == contents(out / "file" + file));
  }
}

TEST_CASE("a cast in the chain decides what the graphs compute in", "[stage]") {
  const support::temp_folder out;
  const auto written = ts::open<diffusers_folder>(support::data("sd1/diffusers").string())
                     | ts::cast<f32>()
                     | ts::build<stable_diffusion>()
                     | ts::lower_to<ort_cpu>({.opset = 15})
                     | ts::write<onnx_folder>(out / "out");
  INFO((written ? std::string() : written.error().message()));
  REQUIRE(written);
  for (const ts::component_report& part : written->components) {
    REQUIRE(part.dtypes.size() == 1);
    CHECK(part.dtypes[0].first == "f32");
  }
  onnx::ModelProto model;
  REQUIRE(model.ParseFromString(contents(out / "out/unet/model.onnx")));
  CHECK(model.opset_import(0).version() == 15);
}

TEST_CASE("weights that stay behind a cast are said to follow the rest of their component", "[stage]") {
  const auto built = ts::open<diffusers_folder>(support::data("sd2_v/diffusers").string())
                   | ts::cast<f32>(ts::keep{"*norm*"})
                   | ts::build<sd21>();
  REQUIRE(built);
  bool said = false;
  for (const ts::note& n : built.notes()) said = said || (n.subject == "unet" && n.text.find("tensors of other types than f32 become f32") != std::string::npos);
  CHECK(said);
}

TEST_CASE("the first failure ends a chain and nothing is written", "[stage]") {
  const support::temp_folder out;
  const auto opened = ts::open<safetensors_file>(support::data("nothing.safetensors").string()) | ts::build<sd15>() | ts::lower_to<ort>() |
                      ts::write<onnx_folder>(out / "out");
  REQUIRE_FALSE(opened);
  CHECK(opened.error().code == ts::errc::io);
  CHECK(access((out / "out").c_str(), F_OK) != 0);

  const auto other_format = ts::open<safetensors_file>(support::data("sd1/sd1.ckpt").string());
  REQUIRE_FALSE(other_format);
  CHECK(other_format.error().code == ts::errc::unsupported);
  CHECK(other_format.error().advice == "use open<torch_file>, or open<weights_file> for any of them");

  const auto wrong_family = ts::open<diffusers_folder>(support::data("sd1/diffusers").string()) | ts::build<ts::tags::sdxl>();
  REQUIRE_FALSE(wrong_family);
  CHECK(wrong_family.error().code == ts::errc::mismatch);

  const auto typo = ts::open<diffusers_folder>(support::data("sd1/diffusers").string()) | ts::cast<f16>(ts::keep{"*nrom*"});
  REQUIRE_FALSE(typo);
  CHECK(typo.error().what == "the pattern '*nrom*' keeps nothing");
}
