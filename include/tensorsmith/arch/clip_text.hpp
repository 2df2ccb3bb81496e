// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/clip_text.hpp: the CLIP text encoder, with or without projection, from its configuration.
//
// Parameters have the names of transformers ("text_model.encoder.layers.0.self_attn.q_proj.weight"). CLIP-L, OpenCLIP's ViT-H and
// bigG in their transformers form are all this model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/config_reader.hpp"
#include "tensorsmith/arch/interface.hpp"
#include "tensorsmith/graph/nn.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// config.json of a CLIP text encoder, checked.
struct clip_text_config {
  std::size_t vocabulary = 49408, positions = 77;
  std::size_t width = 768, intermediate = 3072, layers = 12, heads = 12;
  std::size_t projection = 768;       ///< rows of text_projection
  bool with_projection = false;       ///< pooled output goes through text_projection
  nn::activation activation = nn::activation::quick_gelu;
  float epsilon = 1e-5F;
  std::int64_t end_token = 49407;     ///< pooled output is taken where this id first occurs
};

namespace detail {

/// True if a configuration asks for text_projection; without `architectures` the weights tell.
inline bool clip_has_projection(config_reader& read, const parameter_source& parameters) {
  const json_value* named = read.find("architectures");
  if (named == nullptr) return parameters.shape_of("text_projection.weight").has_value();
  constexpr std::string_view known[] = {"CLIPTextModel", "CLIPTextModelWithProjection"};
  return read.choices("architectures", 1, known)[0] == 1;
}

}  // namespace detail

/// Reads the configuration. The size of the vocabulary is that of the token embedding where the source knows it: embeddings may
/// have been appended.
///
/// Published configurations say `eos_token_id` 2, a wrong id kept for compatibility that makes transformers pool at the largest id of
/// a sequence. That is the end marker as long as no token was added behind it, so 2 is read as the end marker's id: 49407, or the last
/// id of a smaller vocabulary. @fails malformed, unsupported; all name file and JSON pointer
inline result<clip_text_config> read_clip_text_config(const json_value& config, const std::string& file, const parameter_source& parameters) {
  config_reader read(config, file);
  clip_text_config out;
  out.width = read.required("hidden_size", config_bounds::channels);
  out.intermediate = read.required("intermediate_size", config_bounds::channels);
  out.layers = read.required("num_hidden_layers", config_bounds::layers);
  out.heads = read.required("num_attention_heads", config_bounds::heads);
  out.positions = read.integer("max_position_embeddings", 77, config_bounds::channels);
  out.vocabulary = read.integer("vocab_size", 49408, config_bounds::vocabulary);
  out.epsilon = static_cast<float>(read.number("layer_norm_eps", 1e-5, 0, 1));
  constexpr std::string_view activations[] = {"quick_gelu", "gelu"};
  out.activation = read.choice("hidden_act", "quick_gelu", activations) == 0 ? nn::activation::quick_gelu : nn::activation::gelu;
  out.with_projection = detail::clip_has_projection(read, parameters);
  out.projection = read.integer("projection_dim", 512, config_bounds::channels);
  if (!read.failed() && out.width % out.heads != 0)
    read.refuse(errc::malformed, "num_attention_heads", "the width does not divide into the heads", "a divisor of " + std::to_string(out.width),
                std::to_string(out.heads));
  if (const auto stored = parameters.shape_of("text_model.embeddings.token_embedding.weight"); stored && stored->size() == 2)
    out.vocabulary = (*stored)[0];
  const std::size_t end = read.integer("eos_token_id", 49407, config_bounds::vocabulary, 0);
  constexpr std::size_t legacy = 2, clip_end = 49407;
  out.end_token = static_cast<std::int64_t>(end != legacy ? end : out.vocabulary > clip_end ? clip_end : out.vocabulary - 1);
  TENSORSMITH_CHECK(read.outcome());
  return out;
}

namespace detail {

/// Token and position embeddings: positions 0 … s-1 of the table.
inline value_id clip_embeddings(graph_builder& b, const clip_text_config& c, value_id input_ids) {
  const graph_builder::scope module(b, "embeddings");
  const value_id tokens = nn::embedding(b, "token_embedding", input_ids, c.vocabulary, c.width);
  const value_id sequence = ops::extent(b, input_ids, 1);
  value_id positions = value_id::none;
  {
    const graph_builder::scope table(b, "position_embedding");
    const value_id weight = b.parameter("weight", {c.positions, c.width});
    const value_id first = b.integers({0});
    positions = b.emit("Slice", {weight, first, sequence, first});
  }
  return ops::add(b, tokens, positions);
}

/// Pre-norm transformer layer.
inline value_id clip_layer(graph_builder& b, const clip_text_config& c, std::size_t index, value_id x) {
  const graph_builder::scope module(b, "layers." + std::to_string(index));
  value_id h = nn::layer_norm(b, "layer_norm1", x, c.width, c.epsilon);
  {
    const graph_builder::scope attention(b, "self_attn");
    const value_id q = nn::linear(b, "q_proj", h, c.width, c.width), k = nn::linear(b, "k_proj", h, c.width, c.width),
                   v = nn::linear(b, "v_proj", h, c.width, c.width);
    h = ops::attention(b, q, k, v, {.heads = static_cast<std::int64_t>(c.heads), .causal = true,
                                    .max_sequence = static_cast<std::int64_t>(c.positions)});
    h = nn::linear(b, "out_proj", h, c.width, c.width);
  }
  x = ops::add(b, x, h);
  h = nn::layer_norm(b, "layer_norm2", x, c.width, c.epsilon);
  {
    const graph_builder::scope mlp(b, "mlp");
    h = nn::activate(b, c.activation, nn::linear(b, "fc1", h, c.width, c.intermediate));
    h = nn::linear(b, "fc2", h, c.intermediate, c.width);
  }
  return ops::add(b, x, h);
}

}  // namespace detail

/// The graph of a text encoder. Input `input_ids` [batch, sequence]; outputs `last_hidden_state` [batch, sequence, width] (after the
/// final norm) and `pooler_output` [batch, width], or `text_embeds` [batch, projection] and `last_hidden_state` with projection; then
/// hidden states as the interface says. hidden_states.0 are the embeddings, hidden_states.L the output of the last layer before the
/// final norm. @fails malformed, unsupported (configuration), mismatch (weights)
inline result<graph> build_clip_text(const json_value& config, parameter_source& parameters, const io_interface& io, const arch_options& options) {
  const std::string component = options.component.empty() ? "text_encoder" : options.component;
  TENSORSMITH_TRY(const clip_text_config c, read_clip_text_config(config, component + "/config.json", parameters));
  graph_builder b(component, parameters, options.compute, options.overflow, options.tally);
  const value_id input_ids = b.input("input_ids", io.input_ids, {b.dynamic(io.batch), b.dynamic(io.sequence)});
  std::vector<value_id> states;
  value_id last = value_id::none, pooled = value_id::none;
  {
    const graph_builder::scope model(b, "text_model");
    states.push_back(detail::clip_embeddings(b, c, input_ids));
    {
      const graph_builder::scope encoder(b, "encoder");
      for (std::size_t i = 0; i < c.layers && !b.failed(); ++i) states.push_back(detail::clip_layer(b, c, i, states.back()));
    }
    last = nn::layer_norm(b, "final_layer_norm", states.back(), c.width, c.epsilon);
    pooled = ops::pool_at_token(b, last, input_ids, c.end_token);
  }
  if (c.with_projection) pooled = nn::linear(b, "text_projection", pooled, c.width, c.projection, false);

  const auto output = [&](value_id x, const std::string& name) { b.output(ops::cast(b, x, io.io_float), name); };
  if (c.with_projection) output(pooled, "text_embeds");
  output(last, "last_hidden_state");
  if (!c.with_projection) output(pooled, "pooler_output");
  const hidden_state_outputs wanted = options.last_state_but_one ? io.hidden_states_xl : io.hidden_states;
  if (wanted == hidden_state_outputs::first) output(states[0], "hidden_states");
  for (std::size_t i = 0; wanted == hidden_state_outputs::all && i < states.size(); ++i)
    output(states[i], "hidden_states." + std::to_string(i));
  return b.finish();
}

TENSORSMITH_END_NAMESPACE
