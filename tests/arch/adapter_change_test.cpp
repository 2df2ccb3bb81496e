// SPDX-License-Identifier: MIT
//
// Rarer parameters of modules, and where other tools compute something else: replacements, sparse differences, biases, factors of other dimensions
// than the layer, inpainting models, scales. Against the formulas in f64.
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "tensorsmith/arch/merge_adapter.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;

namespace {

using shape = ts::shape_type;
using floats = std::vector<float>;

template <class T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  std::vector<std::byte> out(values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(out.data(), values.data(), out.size());
  return out;
}
ts::tensor_ref tensor(const std::string& name, const shape& extents, const floats& values) { return ts::in_memory({name, ts::dtype::f32, extents}, bytes_of(values)); }

/// Small numbers that repeat late: sums and products of them are exact in f32.
floats counting(const shape& extents, int step) {
  floats out(ts::element_count(extents));
  int state = step;
  for (float& x : out) {
    state = (state * 37 + 11) % 101;
    x = static_cast<float>(state - 50) / 16;
  }
  return out;
}

struct layers {
  ts::package package;
  layers() {
    package.family = "sd1";
    ts::component& unet = package.components.emplace_back();
    unet.name = "unet";
    const auto add = [&](const std::string& name, const shape& weight) {
      REQUIRE(unet.weights.add(name + ".weight", tensor(name, weight, counting(weight, 3)), "base"));
      REQUIRE(unet.weights.add(name + ".bias", tensor(name, {weight[0]}, counting({weight[0]}, 5)), "base"));
    };
    add("linear", {6, 4}), add("point", {6, 4, 1, 1}), add("conv", {6, 4, 3, 3}), add("conv_in", {6, 9, 3, 3});
  }
  floats values(const std::string& name) const {
    const ts::catalog_entry* entry = package.components[0].weights.find(name);
    REQUIRE(entry);
    const auto bytes = ts::materialize(entry->tensor, ts::job{});
    INFO((bytes ? std::string() : bytes.error().message()));
    REQUIRE(bytes);
    floats out(bytes->size() / sizeof(float));
    std::memcpy(out.data(), bytes->data(), bytes->size());
    return out;
  }
};

struct file {
  ts::catalog tensors;
  file& add(const std::string& name, const shape& extents, const floats& values) {
    REQUIRE(tensors.add(name, tensor(name, extents, values), "adapter"));
    return *this;
  }
  file& add(const std::string& name, const shape& extents, int step) { return add(name, extents, counting(extents, step)); }
  template <class T>
  file& integers(const std::string& name, ts::dtype type, const shape& extents, const std::vector<T>& values) {
    REQUIRE(tensors.add(name, ts::in_memory({name, type, extents}, bytes_of(values)), "adapter"));
    return *this;
  }
  floats values(const std::string& name) const {
    const auto bytes = ts::materialize(tensors.find(name)->tensor, ts::job{});
    floats out(bytes->size() / sizeof(float));
    std::memcpy(out.data(), bytes->data(), bytes->size());
    return out;
  }
};

/// Merges into `base`. "applied 1", "ignored 1: why", or the failure; with the remark of the first module.
std::string merge(layers& base, const file& adapter, double strength = 1) {
  auto read = ts::read_adapter(adapter.tensors, "a.safetensors");
  if (!read) return read.error().message();
  ts::adapter_request request{.source = std::move(*read), .unet = strength};
  const auto account = ts::merge_adapters(base.package, {&request, 1}, {.strict = true}, {});
  if (!account) return account.error().message();
  const ts::merged_adapter& one = account->adapters[0];
  std::string out = one.ignored ? "ignored " + std::to_string(one.ignored) + ": " + one.modules[0].reason : "applied " + std::to_string(one.applied);
  for (const std::string& remark : one.modules[0].remarks) out += "; " + remark;
  return out;
}

/// Every element of `found` is `before` plus `strength` times what `change` gives for it.
void check(const floats& found, const floats& before, double strength, const std::function<double(std::size_t)>& change) {
  REQUIRE(found.size() == before.size());
  std::size_t wrong = 0, first = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double wanted = static_cast<double>(before[i]) + strength * change(i);
    if (std::fabs(static_cast<double>(found[i]) - wanted) > 1e-5 * (1 + std::fabs(wanted)) && wrong++ == 0) first = i;
  }
  CAPTURE(first, found[first], before[first], change(first));
  CHECK(wrong == 0);
}

double product(const floats& a, const floats& b, std::size_t r, std::size_t cols, std::size_t i, std::size_t j) {
  double sum = 0;
  for (std::size_t k = 0; k < r; ++k) sum += static_cast<double>(a[i * r + k]) * static_cast<double>(b[k * cols + j]);
  return sum;
}

}  // namespace

TEST_CASE("a stored weight takes the place of the layer's, at strength 1 bit by bit") {
  for (const double strength : {1.0, 0.25, -1.0}) {
    layers base;
    const floats before = base.values("conv.weight"), bias = base.values("conv.bias");
    file adapter;
    adapter.add("lora_unet_conv.set_weight", {6, 4, 3, 3}, 7).add("lora_unet_conv.diff_b", {6}, 8);
    CHECK(merge(base, adapter, strength) == "applied 1");
    const floats saved = adapter.values("lora_unet_conv.set_weight"), difference = adapter.values("lora_unet_conv.diff_b");
    check(base.values("conv.weight"), before, strength, [&](std::size_t i) { return static_cast<double>(saved[i]) - static_cast<double>(before[i]); });
    check(base.values("conv.bias"), bias, strength, [&](std::size_t i) { return static_cast<double>(difference[i]); });
    if (strength == 1.0) CHECK(base.values("conv.weight") == saved);
  }
  layers base;
  CHECK(merge(base, file().add("lora_unet_conv.set_weight", {6, 4}, 7)) ==
        "MIS a.safetensors: module 'lora_unet_conv': the adapter's shapes do not fit the layer (expected factors of a weight [6, 4, 3, 3], found set_weight [6, 4])");
}

TEST_CASE("sparse differences of old LyCORIS files belong to the difference that alpha scales") {
  const auto sparse = [](file& f, const std::string& module, const std::vector<std::int16_t>& size) {
    f.integers<std::int16_t>(module + ".bias_indices", ts::dtype::i16, {2, 3}, {0, 5, 5, 1, 3, 3});
    f.add(module + ".bias_values", {3}, floats{2, -1, 4});
    f.integers(module + ".bias_size", ts::dtype::i16, {size.size()}, size);
  };
  const auto element = [](std::size_t i, std::size_t cols) { return i == 1 ? 2.0 : i == 5 * cols + 3 ? 3.0 : 0.0; };
  for (const bool conv : {false, true})
    for (const bool factors : {false, true}) {
      CAPTURE(conv, factors);
      layers base;
      const std::string layer = conv ? "conv" : "linear", m = "lora_unet_" + layer;
      const std::size_t cols = conv ? 36 : 4;
      const floats before = base.values(layer + ".weight");
      file adapter;
      sparse(adapter, m, {6, static_cast<std::int16_t>(cols)});
      if (factors) adapter.add(m + ".lora_up.weight", {6, 2}, 9).add(m + ".lora_down.weight", {2, cols}, 10).add(m + ".alpha", {}, floats{1});
      CHECK(merge(base, adapter, 0.5) == "applied 1");
      check(base.values(layer + ".weight"), before, 0.5 * (factors ? 0.5 : 1.0), [&](std::size_t i) {
        const double low_rank = factors ? product(adapter.values(m + ".lora_up.weight"), adapter.values(m + ".lora_down.weight"), 2, cols, i / cols, i % cols) : 0.0;
        return low_rank + element(i, cols);
      });
    }
  layers base;
  file outside, half, other;
  sparse(outside, "lora_unet_linear", {24, 1});
  CHECK(merge(base, outside) ==
        "MIS a.safetensors: module 'lora_unet_linear': the adapter's shapes do not fit the layer (expected a sparse difference of a weight [6, 4], found bias_size [24, 1], "
        "bias_indices [2, 3], bias_values [3])");
  half.add("lora_unet_linear.bias_values", {3}, floats{2, -1, 4}).add("lora_unet_linear.diff", {6, 4}, 1);
  CHECK(merge(base, half) ==
        "MIS a.safetensors: module 'lora_unet_linear': a sparse difference is not complete (expected bias_indices, bias_values and bias_size, found bias_values, diff)");
  other.integers<std::int16_t>("lora_unet_linear.bias_indices", ts::dtype::i16, {2, 1}, {6, 0});
  other.add("lora_unet_linear.bias_values", {1}, floats{2});
  other.integers<std::int64_t>("lora_unet_linear.bias_size", ts::dtype::i64, {2}, {6, 4});
  CHECK(merge(base, other) == "applied 1");  // found out when the indices are read
  const auto bytes = ts::materialize(base.package.components[0].weights.find("linear.weight")->tensor, ts::job{});
  REQUIRE_FALSE(bytes);
  CHECK(bytes.error().message().find("a sparse difference has an element outside of the weight (expected an index below 6, found 6)") != std::string::npos);
}

TEST_CASE("factors of two dimensions for a 1×1 convolution, of four for a linear layer: the same product") {
  std::vector<floats> results;
  for (const std::string layer : {"linear", "point"})
    for (const bool four : {false, true}) {
      CAPTURE(layer, four);
      layers base;
      const floats before = base.values(layer + ".weight");
      file adapter;
      const std::string m = "lora_unet_" + layer;
      adapter.add(m + ".lora_up.weight", four ? shape{6, 2, 1, 1} : shape{6, 2}, 9).add(m + ".lora_down.weight", four ? shape{2, 4, 1, 1} : shape{2, 4}, 10);
      CHECK(merge(base, adapter) == "applied 1");
      check(base.values(layer + ".weight"), before, 1.0,
            [&](std::size_t i) { return product(adapter.values(m + ".lora_up.weight"), adapter.values(m + ".lora_down.weight"), 2, 4, i / 4, i % 4); });
      results.push_back(base.values(layer + ".weight"));
      CHECK(results.back() == results.front());
    }
}

TEST_CASE("the kernel belongs into lora_down; a 1×1 product is never spread over a kernel") {
  layers base;
  file turned, small, tucker;
  turned.add("lora_unet_conv.lora_up.weight", {6, 2, 3, 3}, 9).add("lora_unet_conv.lora_down.weight", {2, 4, 1, 1}, 10);
  CHECK(merge(base, turned) ==
        "MIS a.safetensors: module 'lora_unet_conv': the adapter's shapes do not fit the layer (expected factors of a weight [6, 4, 3, 3], found lora_up [6, 2, 3, 3], lora_down [2, 4, "
        "1, 1])");
  small.add("lora_unet_conv.lora_up.weight", {6, 2, 1, 1}, 9).add("lora_unet_conv.lora_down.weight", {2, 4, 1, 1}, 10);
  CHECK(merge(base, small).find("the adapter's shapes do not fit the layer") != std::string::npos);
  // With its core the same pair is a Tucker product: kohya's merge script leaves the core out and spreads the 1×1 product.
  const floats before = base.values("conv.weight");
  tucker.add("lora_unet_conv.lora_up.weight", {6, 2, 1, 1}, 9).add("lora_unet_conv.lora_down.weight", {3, 4, 1, 1}, 10).add("lora_unet_conv.lora_mid.weight", {2, 3, 3, 3}, 11);
  CHECK(merge(base, tucker) == "applied 1");
  const floats up = tucker.values("lora_unet_conv.lora_up.weight"), down = tucker.values("lora_unet_conv.lora_down.weight"), mid = tucker.values("lora_unet_conv.lora_mid.weight");
  check(base.values("conv.weight"), before, 1.0, [&](std::size_t at) {
    double sum = 0;
    for (std::size_t p = 0; p < 2; ++p)
      for (std::size_t q = 0; q < 3; ++q)
        sum += static_cast<double>(up[at / 36 * 2 + p]) * static_cast<double>(mid[(p * 3 + q) * 9 + at % 9]) * static_cast<double>(down[q * 4 + at % 36 / 9]);
    return sum;
  });
}

TEST_CASE("an adapter for 4 input channels on an inpainting model changes those and no other") {
  const std::string m = "lora_unet_conv_in";
  const std::function<void(file&)> kinds[] = {
      [&](file& f) { f.add(m + ".lora_up.weight", {6, 2, 1, 1}, 9).add(m + ".lora_down.weight", {2, 4, 3, 3}, 10); },
      [&](file& f) { f.add(m + ".hada_w1_a", {6, 2}, 9).add(m + ".hada_w1_b", {2, 36}, 10).add(m + ".hada_w2_a", {6, 2}, 11).add(m + ".hada_w2_b", {2, 36}, 12); },
      [&](file& f) { f.add(m + ".lokr_w1", {2, 2}, 9).add(m + ".lokr_w2", {3, 2, 3, 3}, 10); },
      [&](file& f) { f.add(m + ".diff", {6, 4, 3, 3}, 9); }};
  for (std::size_t kind = 0; kind < 4; ++kind) {
    CAPTURE(kind);
    layers base;
    const floats before = base.values("conv_in.weight");
    file adapter;
    kinds[kind](adapter);
    CHECK(merge(base, adapter, 0.5) == "applied 1; the adapter is for 4 input channels: the other 5 of the layer stay as they are");
    const floats after = base.values("conv_in.weight");
    const auto stored = [&](const char* name) { return adapter.values(m + name); };
    std::size_t same = 0, moved = 0;
    for (std::size_t i = 0; i < after.size(); ++i) ++(after[i] == before[i] ? same : moved);
    CHECK(same >= 6 * 5 * 9);
    CHECK(moved > 6 * 4 * 9 / 2);
    check(after, before, 0.5, [&](std::size_t at) {
      const std::size_t row = at / 81, channel = at % 81 / 9, y = at % 9, col = channel * 9 + y;
      if (channel >= 4) return 0.0;
      switch (kind) {
        case 0: return product(stored(".lora_up.weight"), stored(".lora_down.weight"), 2, 36, row, col);
        case 1: return product(stored(".hada_w1_a"), stored(".hada_w1_b"), 2, 36, row, col) * product(stored(".hada_w2_a"), stored(".hada_w2_b"), 2, 36, row, col);
        case 2: return static_cast<double>(stored(".lokr_w1")[row / 3 * 2 + channel / 2]) * static_cast<double>(stored(".lokr_w2")[((row % 3) * 2 + channel % 2) * 9 + y]);
        default: return static_cast<double>(stored(".diff")[row * 36 + col]);
      }
    });
  }
  // DoRA's magnitudes are norms over all channels: nothing can be said about the others.
  layers base;
  file dora;
  dora.add(m + ".lora_up.weight", {6, 2, 1, 1}, 9).add(m + ".lora_down.weight", {2, 4, 3, 3}, 10).add(m + ".dora_scale", {6, 1, 1, 1}, 11);
  CHECK(merge(base, dora).find("MIS a.safetensors: module 'lora_unet_conv_in': the adapter's shapes do not fit the layer (expected factors of a weight [6, 9, 3, 3]") == 0);
}

TEST_CASE("alpha counts once, over the rank of the second factor") {
  // LyCORIS' own merge of LoHa and LoKr multiplies by alpha/rank twice; its functional LoKr takes the rank from w2_a, which is [r, out] with a core.
  layers loha, lokr;
  const floats before = loha.values("conv.weight");
  file a, b;
  const std::string m = "lora_unet_conv";
  a.add(m + ".hada_w1_a", {6, 2}, 9).add(m + ".hada_w1_b", {2, 36}, 10).add(m + ".hada_w2_a", {6, 2}, 11).add(m + ".hada_w2_b", {2, 36}, 12).add(m + ".alpha", {1}, floats{1});
  CHECK(merge(loha, a) == "applied 1");
  check(loha.values("conv.weight"), before, 0.5, [&](std::size_t at) {
    return product(a.values(m + ".hada_w1_a"), a.values(m + ".hada_w1_b"), 2, 36, at / 36, at % 36) * product(a.values(m + ".hada_w2_a"), a.values(m + ".hada_w2_b"), 2, 36, at / 36, at % 36);
  });
  b.add(m + ".lokr_w1", {2, 2}, 9).add(m + ".lokr_w2_a", {4, 3}, 10).add(m + ".lokr_w2_b", {4, 2}, 11).add(m + ".lokr_t2", {4, 4, 3, 3}, 12).add(m + ".alpha", {}, floats{2});
  CHECK(merge(lokr, b) == "applied 1");
  const floats w1 = b.values(m + ".lokr_w1"), left = b.values(m + ".lokr_w2_a"), right = b.values(m + ".lokr_w2_b"), core = b.values(m + ".lokr_t2");
  check(lokr.values("conv.weight"), before, 2.0 / 4.0, [&](std::size_t at) {
    const std::size_t row = at / 36, channel = at % 36 / 9, y = at % 9;
    double sum = 0;
    for (std::size_t i = 0; i < 4; ++i)
      for (std::size_t j = 0; j < 4; ++j)
        sum += static_cast<double>(core[(i * 4 + j) * 9 + y]) * static_cast<double>(left[i * 3 + row % 3]) * static_cast<double>(right[j * 2 + channel % 2]);
    return static_cast<double>(w1[row / 3 * 2 + channel / 2]) * sum;
  });
}

TEST_CASE("a stored alpha is honoured, whatever its type; `scale` takes its place") {
  const auto merged = [](const std::function<void(file&)>& fill) {
    layers base;
    file adapter;
    adapter.add("lora_unet_linear.lora_up.weight", {6, 2}, 9).add("lora_unet_linear.lora_down.weight", {2, 4}, 10);
    fill(adapter);
    CHECK(merge(base, adapter) == "applied 1");
    return base.values("linear.weight");
  };
  const floats plain = merged([](file&) {}), three = merged([](file& f) { f.add("lora_unet_linear.alpha", {}, floats{6}); });
  CHECK(plain != three);
  CHECK(merged([](file& f) { f.add("lora_unet_linear.alpha", {1}, floats{6}); }) == three);
  CHECK(merged([](file& f) { f.integers<std::int64_t>("lora_unet_linear.alpha", ts::dtype::i64, {}, {6}); }) == three);
  CHECK(merged([](file& f) { f.integers<std::uint8_t>("lora_unet_linear.alpha", ts::dtype::u8, {1, 1}, {6}); }) == three);
  CHECK(merged([](file& f) { f.integers<std::uint16_t>("lora_unet_linear.alpha", ts::dtype::bf16, {}, {0x40C0}); }) == three);
  CHECK(merged([](file& f) { f.add("lora_unet_linear.scale", {}, floats{3}).add("lora_unet_linear.alpha", {}, floats{100}); }) == three);
  CHECK(merged([](file& f) { f.add("lora_unet_linear.alpha", {}, floats{2}); }) == plain);
  layers base;
  file odd;
  odd.add("lora_unet_linear.lora_up.weight", {6, 2}, 9).add("lora_unet_linear.lora_down.weight", {2, 4}, 10).add("lora_unet_linear.alpha", {2}, floats{1, 2});
  CHECK(merge(base, odd) == "MIS a.safetensors: module 'lora_unet_linear': a parameter is no single number (expected one element, found alpha [2])");
}

TEST_CASE("a number beside the tensors of a torch file is an alpha, too") {
  layers base;
  file adapter;
  adapter.add("lora_unet_linear.lora_up.weight", {6, 2}, 9).add("lora_unet_linear.lora_down.weight", {2, 4}, 10);
  ts::package opened;
  opened.source = "a.pt", opened.container = "torch";
  opened.components.emplace_back().weights = adapter.tensors;
  opened.scalars = {{"state_dict/lora_unet_linear.alpha", 6}, {"epoch", 3}, {"state_dict/lora_unet_other.alpha", 1.5}};
  ts::job run;
  const auto read = ts::read_adapter(opened, run);
  REQUIRE(read);
  CHECK(read->modules[0].alpha == 6.0);
  REQUIRE(run.notes.size() == 1);
  CHECK(run.notes[0].text == "the file has a plain number 'lora_unet_other.alpha' that is no parameter of any module and was ignored");
}

TEST_CASE("parameters of two algorithms in one module, magnitudes and sparse differences where there are none: refused") {
  layers base;
  const std::string m = "lora_unet_linear";
  file mixed, rotated, scaled, twice;
  mixed.add(m + ".lora_up.weight", {6, 2}, 9).add(m + ".lora_down.weight", {2, 4}, 10).add(m + ".diff", {6, 4}, 11);
  CHECK(merge(base, mixed) ==
        "MIS a.safetensors: module 'lora_unet_linear': a module mixes the parameters of two algorithms (expected those of one, found lora_up, lora_down, diff)");
  rotated.add(m + ".oft_blocks", {3, 2, 2}, 9).add(m + ".dora_scale", {6, 1}, 10);
  CHECK(merge(base, rotated) ==
        "MIS a.safetensors: module 'lora_unet_linear': magnitudes of DoRA stand beside an algorithm that has none (expected LoRA, LoHa, LoKr, GLoRA or full, found oft_blocks, "
        "dora_scale)");
  scaled.add(m + ".weight", {4}, 9).add(m + ".on_input", {}, floats{1}).add(m + ".bias_values", {1}, 10);
  CHECK(merge(base, scaled).starts_with("UNS a.safetensors: module 'lora_unet_linear': a sparse difference stands beside an algorithm that has none"));
  twice.add(m + ".diff", {6, 4}, 9).add(m + ".diff_b", {6}, 10).add(m + ".b_norm", {6}, 11);
  CHECK(merge(base, twice) == "MIS a.safetensors: module 'lora_unet_linear': a module changes its bias twice (expected one change, found diff_b and b_norm)");
}

TEST_CASE("GLoRA: factors whose ranks differ, and ranks of 0, are refused") {
  const std::string m = "lora_unet_linear", no = "MIS a.safetensors: module 'lora_unet_linear': the adapter's shapes do not fit the layer (expected factors of a weight [6, 4], found ";
  const auto told = [&](const shape& a1, const shape& a2, const shape& b1, const shape& b2) {
    layers base;
    file adapter;
    adapter.add(m + ".a1.weight", a1, 9).add(m + ".a2.weight", a2, 10).add(m + ".b1.weight", b1, 11).add(m + ".b2.weight", b2, 12);
    return merge(base, adapter);
  };
  CHECK(told({4, 2}, {2, 4}, {6, 3}, {3, 4}) == "applied 1");
  CHECK(told({4, 3}, {2, 4}, {6, 3}, {3, 4}) == no + "a1 [4, 3], a2 [2, 4])");
  CHECK(told({2, 4}, {4, 3}, {3, 4}, {6, 3}) == no + "a1 [2, 4], a2 [4, 3])");  // an older file
  CHECK(told({4, 0}, {0, 4}, {6, 3}, {3, 4}) == no + "a1 [4, 0], a2 [0, 4], b1 [6, 3], b2 [3, 4])");
}

TEST_CASE("DoRA of a convolution in PEFT's shape under kohya's names: magnitudes of the rows, where they can be nothing else") {
  // [1, out, 1, 1] for a layer of 6 outputs and 4 inputs; [1, in, 1, 1] is LyCORIS' form for the inputs.
  const auto merged = [](const shape& magnitudes, double& row) {
    layers base;
    file adapter;
    adapter.add("lora_unet_conv.lora_up.weight", {6, 2, 1, 1}, 9).add("lora_unet_conv.lora_down.weight", {2, 4, 3, 3}, 10);
    adapter.add("lora_unet_conv.dora_scale", magnitudes, floats(ts::element_count(magnitudes), 2.0f));
    const std::string outcome = merge(base, adapter);
    const floats weight = base.values("conv.weight");
    row = 0;
    for (std::size_t i = 0; i < 36; ++i) row += static_cast<double>(weight[i]) * static_cast<double>(weight[i]);
    return outcome;
  };
  double row = 0;
  CHECK(merged({1, 6, 1, 1}, row) == "applied 1");
  CHECK(std::fabs(row - 4.0) < 1e-4);  // a row's norm is its magnitude
  CHECK(merged({1, 4, 1, 1}, row) == "applied 1");
  CHECK(std::fabs(row - 4.0) > 1e-2);  // an input channel's is
  CHECK(merged({1, 5, 1, 1}, row).find("dora_scale [1, 5, 1, 1]") != std::string::npos);
}

TEST_CASE("(IA)3: on_input may be a boolean") {
  layers base;
  const floats before = base.values("linear.weight");
  file adapter;
  adapter.add("lora_unet_linear.weight", {4}, 9).integers<std::uint8_t>("lora_unet_linear.on_input", ts::dtype::boolean, {}, {1});
  CHECK(merge(base, adapter) == "applied 1");
  const floats scale = adapter.values("lora_unet_linear.weight");
  check(base.values("linear.weight"), before, 1, [&](std::size_t i) { return static_cast<double>(before[i]) * static_cast<double>(scale[i % 4]); });
}

TEST_CASE("a layer without elements takes no change") {
  layers base;
  ts::component& unet = base.package.components[0];
  REQUIRE(unet.weights.add("none.weight", tensor("none", {6, 4, 0, 3}, {}), "base"));
  file adapter;
  adapter.add("lora_unet_none.lokr_w1", {2, 2}, 9).add("lora_unet_none.lokr_w2", {3, 2, 0, 3}, 10);
  CHECK(merge(base, adapter) == "MIS a.safetensors: module 'lora_unet_none': the layer has no elements (expected a weight, found [6, 4, 0, 3])");
}

TEST_CASE("PEFT's lora_B.bias and its embeddings") {
  layers base;
  const floats bias = base.values("linear.bias"), weight = base.values("linear.weight");
  file adapter;
  adapter.add("unet.linear.lora_A.weight", {2, 4}, 9).add("unet.linear.lora_B.weight", {6, 2}, 10).add("unet.linear.lora_B.bias", {6}, 11).add("unet.linear.alpha", {}, floats{1});
  CHECK(merge(base, adapter, 0.5) == "applied 1");
  const floats added = adapter.values("unet.linear.lora_B.bias");
  check(base.values("linear.bias"), bias, 0.25, [&](std::size_t i) { return static_cast<double>(added[i]); });
  layers other;
  file embedding;
  embedding.add("base_model.model.linear.lora_embedding_A", {2, 6}, 9).add("base_model.model.linear.lora_embedding_B", {4, 2}, 10);
  CHECK(merge(other, embedding, 2.0) == "applied 1");
  const floats a = embedding.values("base_model.model.linear.lora_embedding_A"), b = embedding.values("base_model.model.linear.lora_embedding_B");
  check(other.values("linear.weight"), weight, 2.0, [&](std::size_t at) {
    double sum = 0;
    for (std::size_t k = 0; k < 2; ++k) sum += static_cast<double>(b[at % 4 * 2 + k]) * static_cast<double>(a[k * 6 + at / 4]);
    return sum;
  });
  layers half;
  file alone;
  alone.add("base_model.model.linear.lora_embedding_A", {2, 6}, 9).add("lora_unet_conv.diff", {6, 4, 3, 3}, 1);
  CHECK(merge(half, alone).find("a pair of factors is not complete (expected lora_embedding_A and lora_embedding_B") != std::string::npos);
}
