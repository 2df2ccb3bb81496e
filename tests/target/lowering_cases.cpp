// SPDX-License-Identifier: MIT
//
// Writes one small ONNX model for each composite operator, lowered for ONNX Runtime, for tests/runtime/lowering.py to run.
//
// usage: lowering_cases FOLDER OPSET f32|f16 [keep]
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/format/onnx/write.hpp"
#include "tensorsmith/graph/ops.hpp"
#include "tensorsmith/graph/verify.hpp"
#include "tensorsmith/target/ort.hpp"
#include "tensorsmith/tensor/memory.hpp"

namespace ts = tensorsmith;
using ts::dim;
using ts::dims;
using ts::dtype;
using ts::value_id;

namespace {

/// Weights that the script makes, too: element i of a parameter is ((i · 2654435761 + FNV-1a of its name) mod 2^32) / 2^32 - 0.5.
class formula_parameters final : public ts::parameter_source {
 public:
  ts::result<ts::tensor_ref> take(std::string_view name, const ts::shape_type& shape) override {
    std::uint32_t seed = 2166136261U;
    for (const char c : name) seed = (seed ^ static_cast<unsigned char>(c)) * 16777619U;
    const std::size_t count = ts::element_count(shape);
    std::vector<std::byte> bytes(count * sizeof(float));
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t mixed = static_cast<std::uint32_t>(i) * 2654435761U + seed;
      const auto x = static_cast<float>(static_cast<double>(mixed) / 4294967296.0 - 0.5);
      std::memcpy(bytes.data() + i * sizeof x, &x, sizeof x);
    }
    return ts::in_memory({std::string(name), dtype::f32, shape}, std::move(bytes));
  }
};

/// One case: what `make` adds to a graph becomes a component.
struct maker {
  ts::bundle& out;
  dtype compute;
  bool failed = false;

  template <class F>
  void operator()(const char* name, F&& make) {
    formula_parameters parameters;
    ts::graph_builder b(name, parameters, compute);
    {
      const ts::graph_builder::scope module(b, "block.0");
      b.output(make(b), "y");
    }
    auto model = b.finish();
    if (!model) return fail(name, model.error());
    if (auto fine = ts::verify(*model); !fine) return fail(name, fine.error());
    ts::bundle_component c;
    c.name = name;
    c.model = std::move(model).value();
    out.components.push_back(std::move(c));
  }
  void fail(const char* name, const ts::failure& error) {
    failed = true;
    std::fprintf(stderr, "%s: %s\n", name, error.message().c_str());
  }
};

void layers(maker& add) {
  const dtype type = add.compute;
  const auto linear = [](ts::graph_builder& b, value_id x, std::size_t in, std::size_t out, bool bias) {
    std::vector<value_id> inputs{x, b.parameter("weight", {out, in})};
    if (bias) inputs.push_back(b.parameter("bias", {out}));
    return b.emit("linear", std::move(inputs));
  };
  add("linear", [&](ts::graph_builder& b) {
    return linear(b, b.input("x", type, {b.dynamic("batch"), b.dynamic("length"), dim(24)}), 24, 40, true);
  });
  add("linear_no_bias", [&](ts::graph_builder& b) {
    return linear(b, b.input("x", type, {b.dynamic("batch"), b.dynamic("length"), dim(24)}), 24, 40, false);
  });
  add("linear_matrix",
      [&](ts::graph_builder& b) { return linear(b, b.input("x", type, {b.dynamic("batch"), dim(24)}), 24, 40, true); });
  add("linear_tied", [&](ts::graph_builder& b) {  // the weight is an embedding table, too
    const value_id ids = b.input("ids", dtype::i64, {b.dynamic("batch"), b.dynamic("length")});
    return linear(b, ts::ops::gather(b, b.parameter("weight", {40, 24}), ids), 24, 40, false);
  });
  add("layer_norm", [&](ts::graph_builder& b) {
    const value_id x = b.input("x", type, {b.dynamic("batch"), b.dynamic("length"), dim(48)});
    return b.emit("layer_norm", {x, b.parameter("weight", {48}), b.parameter("bias", {48})}, {{"epsilon", 1e-5F}});
  });
  add("group_norm", [&](ts::graph_builder& b) {
    const value_id x = b.input("x", type, {b.dynamic("batch"), dim(24), b.dynamic("height"), b.dynamic("width")});
    return b.emit("group_norm", {x, b.parameter("weight", {24}), b.parameter("bias", {24})},
                  {{"num_groups", std::int64_t{8}}, {"epsilon", 1e-5F}});
  });
  add("group_norm_flat", [&](ts::graph_builder& b) {
    const value_id x = b.input("x", type, {b.dynamic("batch"), dim(24), b.dynamic("length")});
    return b.emit("group_norm", {x, b.parameter("weight", {24}), b.parameter("bias", {24})},
                  {{"num_groups", std::int64_t{4}}, {"epsilon", 1e-6F}});
  });
  for (const char* op : {"gelu", "quick_gelu", "silu"})
    add(op, [&](ts::graph_builder& b) {
      return b.emit(op, {b.input("x", type, {b.dynamic("batch"), b.dynamic("length"), dim(24)})});
    });
  add("geglu", [&](ts::graph_builder& b) {
    return ts::ops::geglu(b, b.input("x", type, {b.dynamic("batch"), b.dynamic("length"), dim(48)}));
  });
}

void attentions(maker& add) {
  const dtype type = add.compute;
  struct row { const char* name; bool causal, upcast, fixed; };
  for (const row r : {row{"attention", false, false, false}, row{"attention_upcast", false, true, false},
                      row{"attention_causal", true, false, false}, row{"attention_causal_fixed", true, true, true}}) {
    add(r.name, [&](ts::graph_builder& b) {
      const dim s = r.fixed ? dim(9) : b.dynamic("length"), t = r.causal ? s : b.dynamic("memory");
      const value_id q = b.input("q", type, {b.dynamic("batch"), s, dim(32)});
      const value_id k = b.input("k", type, {b.dynamic("batch"), t, dim(32)});
      const value_id v = b.input("v", type, {b.dynamic("batch"), t, dim(32)});
      const ts::ops::attention_settings settings{4, r.causal, r.upcast, r.causal ? 16 : 0};
      const value_id once = ts::ops::attention(b, q, k, v, settings);
      return r.causal ? ts::ops::attention(b, once, k, v, settings) : once;  // the second finds the mask made
    });
  }
}

void shapes(maker& add) {
  const dtype type = add.compute;
  const auto image = [&](ts::graph_builder& b, std::int64_t channels) {
    return b.input("x", type, {b.dynamic("batch"), dim(channels), b.dynamic("height"), b.dynamic("width")});
  };
  add("upsample_nearest", [&](ts::graph_builder& b) { return ts::ops::upsample_nearest(b, image(b, 3), 2); });
  add("pad_bottom_right", [&](ts::graph_builder& b) { return ts::ops::pad_bottom_right(b, image(b, 3), 1); });
  add("image_to_tokens", [&](ts::graph_builder& b) { return ts::ops::image_to_tokens(b, image(b, 6)); });
  add("tokens_to_image", [&](ts::graph_builder& b) {
    const value_id like = image(b, 6);
    const value_id tokens = b.input("tokens", type, {b.dynamic("batch"), b.dynamic("height") * b.dynamic("width"), dim(6)});
    return ts::ops::add(b, ts::ops::tokens_to_image(b, tokens, like), ts::ops::tokens_to_image(b, tokens, like));
  });
  add("tokens_to_image_fixed", [&](ts::graph_builder& b) {
    const value_id like = b.input("x", type, {b.dynamic("batch"), dim(6), dim(4), dim(5)});
    return ts::ops::tokens_to_image(b, b.input("tokens", type, {b.dynamic("batch"), dim(20), dim(6)}), like);
  });
  for (const dtype ids : {dtype::i32, dtype::i64})
    add(ids == dtype::i32 ? "pool_i32" : "pool_i64", [&](ts::graph_builder& b) {
      const value_id hidden = b.input("x", type, {b.dynamic("batch"), b.dynamic("length"), dim(6)});
      return ts::ops::pool_at_token(b, hidden, b.input("ids", ids, {b.dynamic("batch"), b.dynamic("length")}), 49407);
    });
  add("timestep_scalar", [&](ts::graph_builder& b) {
    return ts::ops::timestep_embedding(b, b.input("t", dtype::f32, {}), {320, true, 0.0F, 10000.0F});
  });
  add("timestep_list", [&](ts::graph_builder& b) {
    return ts::ops::timestep_embedding(b, b.input("t", dtype::i64, {b.dynamic("steps")}), {256, false, 1.0F, 10000.0F});
  });
  add("timestep_odd", [&](ts::graph_builder& b) {
    return ts::ops::timestep_embedding(b, b.input("t", type, {b.dynamic("steps")}), {33, true, 0.0F, 1000.0F});
  });
}

int run(const std::string& folder, int opset, dtype compute, bool keep) {
  ts::bundle models;
  maker add{models, compute};
  layers(add);
  attentions(add);
  shapes(add);
  if (add.failed) return 1;
  ts::job job;
  auto lowered = ts::lower_to_ort(std::move(models), {opset, keep}, job);
  if (!lowered) return std::fprintf(stderr, "%s\n", lowered.error().message().c_str()), 1;
  for (const ts::bundle_component& c : lowered->components)
    if (auto fine = ts::verify(c.model); !fine)
      return std::fprintf(stderr, "%s, lowered: %s\n", c.name.c_str(), fine.error().message().c_str()), 1;
  const auto report = ts::write_onnx_folder(*lowered, folder, {}, job);
  if (!report) return std::fprintf(stderr, "%s\n", report.error().message().c_str()), 1;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return std::fprintf(stderr, "usage: lowering_cases FOLDER OPSET f32|f16 [keep]\n"), 2;
  return run(argv[1], std::atoi(argv[2]), std::strcmp(argv[3], "f16") == 0 ? dtype::f16 : dtype::f32, argc > 4);
}
