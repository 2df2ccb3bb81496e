// SPDX-License-Identifier: MIT
//
// Our merge of the adapters in tests/data/adapters_reference against what the library that saved each of them made of the same layers.
//
// Where that library's merge is known to be wrong, the right weight is that of its own forward pass, and the test says how its merge differs.
#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "support/catch.hpp"
#include "support/paths.hpp"
#include "tensorsmith/arch/merge_adapter.hpp"

namespace ts = tensorsmith;

namespace {

using doubles = std::vector<double>;

doubles values_of(const ts::tensor_ref& tensor) {
  const auto bytes = ts::materialize(tensor, {});
  INFO((bytes ? std::string() : bytes.error().message()));
  REQUIRE(bytes);
  doubles out(tensor.info().elements());
  ts::convert_elements(tensor.type(), bytes->data(), ts::dtype::f64, reinterpret_cast<std::byte*>(out.data()), out.size());
  return out;
}

/// A file of tests/data/adapters_reference.
struct reference {
  explicit reference(const std::string& file_name) : name(file_name) {
    ts::job run;
    const std::string path = std::string(TENSORSMITH_TEST_DATA) + "/adapters_reference/" + name + ".safetensors";
    auto file = ts::open_weights(path, {}, run);
    INFO((file ? std::string() : file.error().message()));
    REQUIRE(file);
    for (const auto& [key, value] : file->metadata) notes[key] = value;
    ts::component unet;
    unet.name = "unet";
    for (const ts::catalog_entry& entry : file->components[0].weights.entries()) {
      const std::size_t dot = entry.name.find('.');
      const std::string kind = entry.name.substr(0, dot), rest = entry.name.substr(dot + 1);
      if (kind == "adapter") {
        REQUIRE(adapter.add(rest, entry.tensor, "adapter"));
      } else if (kind == "base") {
        REQUIRE(unet.weights.add(rest, entry.tensor, "base"));
        base[rest] = values_of(entry.tensor);
      } else {
        REQUIRE((kind == "tool" || kind == "forward"));
        (kind == "tool" ? tool : forward)[rest] = values_of(entry.tensor);
      }
    }
    REQUIRE(tool.size() == base.size());
    model.family = "sd1";
    model.components.push_back(std::move(unet));
  }

  double note(const std::string& key) const { return std::stod(notes.at(key)); }

  ts::adapter_request request() {
    auto read = ts::read_adapter(std::move(adapter), name);
    INFO((read ? std::string() : read.error().message()));
    REQUIRE(read);
    CHECK(read->unknown.empty());
    ts::adapter_request out{.source = std::move(*read)};
    out.unet = note("strength");
    if (notes.count("dora")) out.how.dora = notes.at("dora") == "peft" ? ts::dora_strength::peft : ts::dora_strength::lycoris;
    if (notes.count("alpha")) out.how.default_alpha = note("alpha");
    out.how.rank_stabilised = notes.count("stabilised") && note("stabilised") == 1;
    return out;
  }

  /// All tensors of the model after our merge, rounded to `to`.
  std::map<std::string, doubles> merged(ts::dtype to) {
    const ts::adapter_request one = request();
    const std::size_t modules = one.source.modules.size();
    const auto account = ts::merge_adapters(model, std::span(&one, 1), {.strict = true, .to = to}, {});
    INFO((account ? std::string() : account.error().message()));
    REQUIRE(account);
    CHECK(account->adapters[0].applied == modules);
    CHECK(account->adapters[0].not_found == 0);
    CHECK(account->adapters[0].ignored == 0);
    for (const ts::merged_module& module : account->adapters[0].modules) {
      CAPTURE(module.name);
      CHECK(module.reason == "");
    }
    std::map<std::string, doubles> out;
    for (const ts::catalog_entry& entry : model.components[0].weights.entries()) {
      CHECK(entry.tensor.type() == to);
      out[entry.name] = values_of(entry.tensor);
    }
    return out;
  }

  std::string name;
  std::map<std::string, std::string> notes;
  std::map<std::string, doubles> base, tool, forward;
  ts::catalog adapter;
  ts::package model;
};

double largest(const doubles& x) {
  double out = 0;
  for (const double v : x) out = std::max(out, std::fabs(v));
  return out;
}

double farthest(const doubles& x, const doubles& y) {
  REQUIRE(x.size() == y.size());
  double out = 0;
  for (std::size_t i = 0; i < x.size(); ++i) out = std::max(out, std::fabs(x[i] - y[i]));
  return out;
}

/// Both roundings, ours of sums in f32 and the tool's: once from f64, or those of a merge in f32 throughout.
double allowed(const reference& r, const doubles& before, const doubles& after) {
  const double steps = r.notes.at("precision") == "f64" ? 4 : 6;
  return steps * 0x1p-24 * (largest(before) + largest(after));
}

const char* const names[] = {
    "kohya_lora", "kohya_tucker", "kohya_oft", "kohya_oft_loose", "lycoris_locon", "lycoris_locon_tucker", "lycoris_norm", "lycoris_dora", "lycoris_dora_input",
    "lycoris_loha", "lycoris_loha_tucker", "lycoris_lokr", "lycoris_lokr_both", "lycoris_lokr_tucker", "lycoris_lokr_full", "lycoris_full",
    "lycoris_ia3", "lycoris_ia3_input", "lycoris_glora", "lycoris_oft", "lycoris_oft_constraint", "lycoris_oft_rescaled", "lycoris_boft",
    "lycoris_boft_rescaled", "peft_lora", "peft_rslora", "peft_dora"};

}  // namespace

TEST_CASE("merges equal those of kohya, LyCORIS and PEFT: every algorithm on linear layers and convolutions") {
  for (const char* const name : names) {
    reference r(name);
    CAPTURE(name, r.notes["tool"]);
    const auto ours = r.merged(ts::dtype::f32);
    std::size_t changed = 0;
    for (const auto& [tensor, value] : ours) {
      CAPTURE(tensor);
      const auto right = r.forward.count(tensor) ? r.forward : r.tool;  // a tool with a wrong merge is right in its forward pass
      const double far = farthest(value, right.at(tensor));
      CHECK(far <= allowed(r, r.base.at(tensor), right.at(tensor)));
      const double change = farthest(r.base.at(tensor), right.at(tensor));
      CHECK((change == 0 || change > 0.01));
      changed += change > 0;
    }
    CHECK(changed >= 3);
  }
}

TEST_CASE("merges rounded to f16 and bf16 are within one unit of the last place of the tools'") {
  for (const char* const name : names)
    for (const auto& [to, fraction, least] : {std::tuple(ts::dtype::f16, 10, -14), std::tuple(ts::dtype::bf16, 7, -126)}) {
      reference r(name);
      CAPTURE(name, ts::name_of(to));
      std::size_t far = 0;
      for (const auto& [tensor, value] : r.merged(to)) {
        const auto& right = (r.forward.count(tensor) ? r.forward : r.tool).at(tensor);
        REQUIRE(value.size() == right.size());
        for (std::size_t i = 0; i < value.size(); ++i) {
          const double ulp = std::ldexp(1.0, std::max(least, right[i] == 0 ? least : std::ilogb(right[i])) - fraction);
          far += std::fabs(value[i] - right[i]) > ulp;
        }
      }
      CHECK(far == 0);
    }
}

TEST_CASE("LyCORIS's merge of LoHa and LoKr multiplies by alpha/rank twice: ours once, as its forward pass") {
  std::size_t layers = 0;
  for (const char* const name : names) {
    if (std::string(name).find("lycoris_lo") != 0) continue;
    const reference r(name);
    CAPTURE(name);
    for (const auto& [tensor, right] : r.forward) {
      CAPTURE(tensor);
      const doubles& base = r.base.at(tensor), &tool = r.tool.at(tensor);
      REQUIRE(right.size() == base.size());
      doubles doubled(right.size());  // alpha/rank is 1/2 in all these files
      for (std::size_t i = 0; i < right.size(); ++i) doubled[i] = base[i] + 0.5 * (right[i] - base[i]);
      CHECK(farthest(tool, doubled) <= allowed(r, base, right));
      CHECK(farthest(tool, right) > 0.01);
      ++layers;
    }
  }
  CHECK(layers == 15);
}

TEST_CASE("kohya's merge of a LoCon with a Tucker core leaves the core out and adds one number to all of a kernel: ours is LyCORIS's") {
  const reference r("kohya_tucker");
  const std::string tensor = "mid_block.resnets.0.conv1.weight";
  const doubles &base = r.base.at(tensor), &tool = r.tool.at(tensor), &right = r.forward.at(tensor);
  CHECK(farthest(tool, right) > 0.1);
  REQUIRE(tool.size() % 9 == 0);
  for (std::size_t i = 0; i < tool.size(); ++i)
    CHECK(std::fabs((tool[i] - base[i]) - (tool[i / 9 * 9] - base[i / 9 * 9])) <= allowed(r, base, tool));
  for (const auto& [other, weight] : r.forward)
    if (other != tensor) CHECK(farthest(r.tool.at(other), weight) <= allowed(r, r.base.at(other), weight));
}
