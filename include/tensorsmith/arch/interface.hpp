// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/interface.hpp: what the graphs of a pipeline look like from outside: names, types and ranks of inputs and outputs.
//
// Architectures know nothing of the tools that load their graphs; they are given one of these tables.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "tensorsmith/core/dtype.hpp"
#include "tensorsmith/tensor/cast.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Which hidden states a text encoder gives beside its last one.
enum class hidden_state_outputs : std::uint8_t {
  none,
  all,    ///< hidden_states.0 (embeddings) to hidden_states.L (last layer, before the final norm)
  first,  ///< one output hidden_states, the embeddings: what exporting a tuple under one name gave
};

/// The table of an ecosystem. Input and output names that all of them share (input_ids, sample, out_sample, …) are not in it.
struct io_interface {
  std::string name = "optimum";

  // Names of dynamic axes.
  std::string batch = "batch_size";
  std::string sequence = "sequence_length";
  std::string height = "height", width = "width";                                    ///< latents of the UNet
  std::string image_height = "sample_height", image_width = "sample_width";          ///< images of the VAE encoder
  std::string latent_height = "latent_height", latent_width = "latent_width";        ///< latents of the VAE decoder

  dtype input_ids = dtype::i64;
  dtype io_float = dtype::f32;             ///< type of floating-point inputs and outputs: f32 or f16
  std::size_t timestep_rank = 0;           ///< 0: a number; 1: one for each sample (a single one serves all)
  bool latent_parameters = true;           ///< VAE encoder: mean ‖ log-variance; else `latent_sample`, the mean
  bool vae_encoder_in_f32 = false;         ///< the VAE encoder computes and speaks f32 whatever the rest does
  hidden_state_outputs hidden_states = hidden_state_outputs::none;     ///< of encoders whose last state conditions the UNet
  hidden_state_outputs hidden_states_xl = hidden_state_outputs::all;   ///< of encoders whose last state but one does (SDXL)
  bool xl_as_optimum = false;              ///< SDXL pipelines follow Optimum's table instead of this one
};

/// Optimum (optimum-onnx 0.1): int64 ids, scalar timestep, VAE encoder gives the distribution's parameters.
inline io_interface interface_optimum() { return {}; }

/// diffusers' ONNX script and OnnxStableDiffusionPipeline: int32 ids, timestep of rank 1, VAE encoder gives a latent. The script
/// draws that latent from the distribution by a random node; here it is the distribution's mean.
inline io_interface interface_diffusers() {
  io_interface io;
  io.name = "diffusers";
  io.batch = "batch";
  io.sequence = "sequence";
  io.image_height = io.latent_height = "height";
  io.image_width = io.latent_width = "width";
  io.input_ids = dtype::i32;
  io.timestep_rank = 1;
  io.latent_parameters = false;
  return io;
}

/// onnx-web: as diffusers' script, the VAE encoder always in f32, a third text encoder output; SDXL as Optimum exports it.
inline io_interface interface_onnx_web() {
  io_interface io = interface_diffusers();
  io.name = "onnx_web";
  io.vae_encoder_in_f32 = true;
  io.hidden_states = hidden_state_outputs::first;
  io.xl_as_optimum = true;
  return io;
}

/// What the code of an architecture is told beside configuration, parameters and interface.
struct arch_options {
  dtype compute = dtype::f32;           ///< type of weights and activations: f32 or f16
  std::string component{};              ///< the model's folder, for messages and the graph's name; empty: the usual one
  bool last_state_but_one = false;      ///< text encoders: the pipeline (SDXL) reads hidden_states[-2]
  cast_overflow overflow = cast_overflow::error;  ///< of a weight's finite values that do not fit `compute`
  std::shared_ptr<cast_tally> tally{};  ///< counts them where that is no error
  std::optional<std::size_t> text_embeds_width{};  ///< SDXL UNets: width of text_embeds; without it the widths of the published models decide
};

TENSORSMITH_END_NAMESPACE
