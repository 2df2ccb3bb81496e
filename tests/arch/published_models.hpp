// SPDX-License-Identifier: MIT
//
// tests/arch/published_models.hpp: names and shapes of the parameters of published models, written from their block structure, and
// catalogs of tensors that have a shape and no bytes.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tensorsmith/tensor/catalog.hpp"

namespace support {

using parameters = std::vector<std::pair<std::string, tensorsmith::shape_type>>;

/// A tensor that can be planned and not read.
class shape_only final : public tensorsmith::recipe {
 public:
  shape_only(tensorsmith::shape_type shape, tensorsmith::dtype type) : info_{{}, type, std::move(shape)} {}
  std::span<const tensorsmith::tensor_info> outputs() const noexcept override { return {&info_, 1}; }
  tensorsmith::result<void> produce(tensorsmith::region, std::span<const tensorsmith::tile>, tensorsmith::scratch&) const override {
    return tensorsmith::failure{.code = tensorsmith::errc::internal, .what = "this tensor has no bytes"};
  }

 private:
  tensorsmith::tensor_info info_;
};

inline tensorsmith::catalog shapes(const parameters& list, tensorsmith::dtype type = tensorsmith::dtype::f16) {
  tensorsmith::catalog out;
  std::vector<tensorsmith::catalog_entry> entries;
  for (const auto& [name, shape] : list) entries.push_back({name, {std::make_shared<shape_only>(shape, type), 0}, "made: " + name});
  (void)out.add_all(std::move(entries));
  return out;
}

inline std::size_t elements(const parameters& list) {
  std::size_t sum = 0;
  for (const auto& entry : list) sum += tensorsmith::element_count(entry.second);
  return sum;
}

/// A UNet: channels of the levels, transformer depth of each down and up attention (empty: none), middle (0 none, 1 resnet, 2 all).
struct unet_plan {
  std::vector<std::size_t> channels;
  std::vector<std::vector<std::size_t>> down, up;  // up: coarsest first
  int middle = 2;
  std::size_t middle_depth = 1, cross = 768, in = 4, added = 0, layers = 2;
  bool linear = false;
};

class unet_writer {
 public:
  explicit unet_writer(const unet_plan& plan) : plan_(plan), time_(4 * plan.channels[0]) {}

  parameters write() {
    const auto& c = plan_.channels;
    const std::size_t levels = c.size(), layers = plan_.layers;
    conv("conv_in", plan_.in, c[0], 3);
    linear("time_embedding.linear_1", c[0], time_);
    linear("time_embedding.linear_2", time_, time_);
    if (plan_.added) linear("add_embedding.linear_1", plan_.added, time_), linear("add_embedding.linear_2", time_, time_);
    std::vector<std::size_t> skips{c[0]};
    std::size_t now = c[0];
    for (std::size_t i = 0; i < levels; ++i) {
      const std::string at = "down_blocks." + std::to_string(i);
      for (std::size_t j = 0; j < layers; ++j) {
        resnet(at + ".resnets." + std::to_string(j), now, c[i]);
        now = c[i];
        if (!plan_.down[i].empty()) attention(at + ".attentions." + std::to_string(j), now, plan_.down[i][j]);
        skips.push_back(now);
      }
      if (i + 1 < levels) conv(at + ".downsamplers.0.conv", now, now, 3), skips.push_back(now);
    }
    if (plan_.middle > 0) resnet("mid_block.resnets.0", now, now);
    if (plan_.middle > 1) attention("mid_block.attentions.0", now, plan_.middle_depth), resnet("mid_block.resnets.1", now, now);
    for (std::size_t i = 0; i < levels; ++i) {
      const std::string at = "up_blocks." + std::to_string(i);
      const std::size_t channels = c[levels - 1 - i];
      for (std::size_t j = 0; j <= layers; ++j) {
        resnet(at + ".resnets." + std::to_string(j), now + skips.back(), channels);
        skips.pop_back();
        now = channels;
        if (!plan_.up[i].empty()) attention(at + ".attentions." + std::to_string(j), now, plan_.up[i][j]);
      }
      if (i + 1 < levels) conv(at + ".upsamplers.0.conv", now, now, 3);
    }
    norm("conv_norm_out", c[0]);
    conv("conv_out", c[0], 4, 3);
    return std::move(out_);
  }

 private:
  void add(std::string name, tensorsmith::shape_type shape) { out_.emplace_back(std::move(name), std::move(shape)); }
  void norm(const std::string& at, std::size_t c) { add(at + ".weight", {c}), add(at + ".bias", {c}); }
  void linear(const std::string& at, std::size_t in, std::size_t out) { add(at + ".weight", {out, in}), add(at + ".bias", {out}); }
  void conv(const std::string& at, std::size_t in, std::size_t out, std::size_t k) { add(at + ".weight", {out, in, k, k}), add(at + ".bias", {out}); }
  void resnet(const std::string& at, std::size_t in, std::size_t out) {
    norm(at + ".norm1", in), conv(at + ".conv1", in, out, 3), linear(at + ".time_emb_proj", time_, out);
    norm(at + ".norm2", out), conv(at + ".conv2", out, out, 3);
    if (in != out) conv(at + ".conv_shortcut", in, out, 1);
  }
  void attention(const std::string& at, std::size_t c, std::size_t depth) {
    norm(at + ".norm", c);
    plan_.linear ? linear(at + ".proj_in", c, c) : conv(at + ".proj_in", c, c, 1);
    for (std::size_t k = 0; k < depth; ++k) {
      const std::string block = at + ".transformer_blocks." + std::to_string(k);
      for (const char* n : {"1", "2"}) {
        const std::size_t width = *n == '1' ? c : plan_.cross;
        norm(block + ".norm" + n, c);
        add(block + ".attn" + n + ".to_q.weight", {c, c});
        add(block + ".attn" + n + ".to_k.weight", {c, width});
        add(block + ".attn" + n + ".to_v.weight", {c, width});
        linear(block + ".attn" + n + ".to_out.0", c, c);
      }
      norm(block + ".norm3", c);
      linear(block + ".ff.net.0.proj", c, 8 * c);
      linear(block + ".ff.net.2", 4 * c, c);
    }
    plan_.linear ? linear(at + ".proj_out", c, c) : conv(at + ".proj_out", c, c, 1);
  }

  const unet_plan& plan_;
  std::size_t time_;
  parameters out_;
};

inline parameters unet_parameters(const unet_plan& plan) { return unet_writer(plan).write(); }

inline unet_plan sd1_unet() { return {{320, 640, 1280, 1280}, {{1, 1}, {1, 1}, {1, 1}, {}}, {{}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}}}; }
inline unet_plan sd2_unet() {
  unet_plan plan = sd1_unet();
  plan.cross = 1024, plan.linear = true;
  return plan;
}
inline unet_plan sdxl_unet() {
  return {{320, 640, 1280}, {{}, {2, 2}, {10, 10}}, {{10, 10, 10}, {2, 2, 2}, {}}, 2, 10, 2048, 4, 2816, 2, true};
}
inline unet_plan refiner_unet() {
  return {{384, 768, 1536, 1536}, {{}, {4, 4}, {4, 4}, {}}, {{}, {4, 4, 4}, {4, 4, 4}, {}}, 2, 4, 1280, 4, 2560, 2, true};
}
/// The 1.3 billion parameter distillation of SDXL: shallower, and a middle of one resnet.
inline unet_plan ssd_unet() {
  return {{320, 640, 1280}, {{}, {2, 2}, {4, 4}}, {{4, 4, 10}, {2, 1, 1}, {}}, 1, 0, 2048, 4, 2816, 2, true};
}
/// Small and tiny distillations of SD1: one layer a block, no middle; tiny has a level less.
inline unet_plan small_unet() { return {{320, 640, 1280, 1280}, {{1}, {1}, {1}, {}}, {{}, {1, 1}, {1, 1}, {1, 1}}, 0, 0, 768, 4, 0, 1, false}; }
inline unet_plan tiny_unet() { return {{320, 640, 1280}, {{1}, {1}, {1}}, {{1, 1}, {1, 1}, {1, 1}}, 0, 0, 768, 4, 0, 1, false}; }

/// The autoencoder that all families share.
inline parameters vae_parameters(const std::vector<std::size_t>& channels = {128, 256, 512, 512}, std::size_t layers = 2) {
  parameters out;
  const auto norm = [&](const std::string& at, std::size_t c) { out.push_back({at + ".weight", {c}}), out.push_back({at + ".bias", {c}}); };
  const auto conv = [&](const std::string& at, std::size_t in, std::size_t to, std::size_t k) {
    out.push_back({at + ".weight", {to, in, k, k}}), out.push_back({at + ".bias", {to}});
  };
  const auto resnet = [&](const std::string& at, std::size_t in, std::size_t to) {
    norm(at + ".norm1", in), conv(at + ".conv1", in, to, 3), norm(at + ".norm2", to), conv(at + ".conv2", to, to, 3);
    if (in != to) conv(at + ".conv_shortcut", in, to, 1);
  };
  const auto middle = [&](const std::string& half, std::size_t c) {
    resnet(half + ".mid_block.resnets.0", c, c), resnet(half + ".mid_block.resnets.1", c, c);
    norm(half + ".mid_block.attentions.0.group_norm", c);
    for (const char* m : {"to_q", "to_k", "to_v", "to_out.0"}) {
      const std::string at = half + ".mid_block.attentions.0." + m;
      out.push_back({at + ".weight", {c, c}}), out.push_back({at + ".bias", {c}});
    }
  };
  const std::size_t levels = channels.size(), top = channels.back();
  conv("encoder.conv_in", 3, channels[0], 3);
  std::size_t now = channels[0];
  for (std::size_t i = 0; i < levels; ++i) {
    const std::string at = "encoder.down_blocks." + std::to_string(i);
    for (std::size_t j = 0; j < layers; ++j) resnet(at + ".resnets." + std::to_string(j), now, channels[i]), now = channels[i];
    if (i + 1 < levels) conv(at + ".downsamplers.0.conv", now, now, 3);
  }
  middle("encoder", top), norm("encoder.conv_norm_out", top), conv("encoder.conv_out", top, 8, 3);
  conv("quant_conv", 8, 8, 1), conv("post_quant_conv", 4, 4, 1), conv("decoder.conv_in", 4, top, 3), middle("decoder", top);
  now = top;
  for (std::size_t i = 0; i < levels; ++i) {
    const std::string at = "decoder.up_blocks." + std::to_string(i);
    const std::size_t c = channels[levels - 1 - i];
    for (std::size_t j = 0; j <= layers; ++j) resnet(at + ".resnets." + std::to_string(j), now, c), now = c;
    if (i + 1 < levels) conv(at + ".upsamplers.0.conv", now, now, 3);
  }
  norm("decoder.conv_norm_out", channels[0]), conv("decoder.conv_out", channels[0], 3, 3);
  return out;
}

/// A CLIP text encoder under transformers' names.
inline parameters clip_parameters(std::size_t width, std::size_t layers, std::size_t projection = 0, std::size_t vocabulary = 49408) {
  parameters out;
  const auto linear = [&](const std::string& at, std::size_t in, std::size_t to) {
    out.push_back({at + ".weight", {to, in}}), out.push_back({at + ".bias", {to}});
  };
  const auto norm = [&](const std::string& at) { out.push_back({at + ".weight", {width}}), out.push_back({at + ".bias", {width}}); };
  out.push_back({"text_model.embeddings.token_embedding.weight", {vocabulary, width}});
  out.push_back({"text_model.embeddings.position_embedding.weight", {77, width}});
  for (std::size_t n = 0; n < layers; ++n) {
    const std::string at = "text_model.encoder.layers." + std::to_string(n);
    for (const char* m : {"q_proj", "k_proj", "v_proj", "out_proj"}) linear(at + ".self_attn." + m, width, width);
    norm(at + ".layer_norm1"), norm(at + ".layer_norm2");
    linear(at + ".mlp.fc1", width, 4 * width), linear(at + ".mlp.fc2", 4 * width, width);
  }
  norm("text_model.final_layer_norm");
  if (projection) out.push_back({"text_projection.weight", {projection, width}});
  return out;
}

/// An OpenCLIP text encoder under its own names.
inline parameters open_clip_parameters(std::size_t width, std::size_t blocks, std::size_t vocabulary = 49408) {
  parameters out;
  out.push_back({"positional_embedding", {77, width}});
  out.push_back({"token_embedding.weight", {vocabulary, width}});
  for (std::size_t n = 0; n < blocks; ++n) {
    const std::string at = "transformer.resblocks." + std::to_string(n);
    out.push_back({at + ".attn.in_proj_weight", {3 * width, width}});
    out.push_back({at + ".attn.in_proj_bias", {3 * width}});
    for (const auto& [m, in, to] : {std::tuple(".attn.out_proj", width, width), {".mlp.c_fc", width, 4 * width}, {".mlp.c_proj", 4 * width, width}})
      out.push_back({at + m + ".weight", {to, in}}), out.push_back({at + m + ".bias", {to}});
    for (const char* m : {".ln_1", ".ln_2"}) out.push_back({at + m + ".weight", {width}}), out.push_back({at + m + ".bias", {width}});
  }
  out.push_back({"ln_final.weight", {width}}), out.push_back({"ln_final.bias", {width}});
  out.push_back({"text_projection", {width, width}});
  return out;
}

}  // namespace support
