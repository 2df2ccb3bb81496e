// SPDX-License-Identifier: MIT
//
// tensorsmith/stage/merge_embedding.hpp: `… | merge_embedding(open<torch_file>("cat.pt"), "<cat>") | …`: a Textual Inversion embedding becomes part
// of the model: rows of the token embeddings, tokens of the tokenizers. Before build it works on weights, behind it on graphs.
#pragma once

#include <concepts>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "tensorsmith/arch/merge_embedding.hpp"
#include "tensorsmith/arch/stable_diffusion_open.hpp"
#include "tensorsmith/core/pipe.hpp"
#include "tensorsmith/graph/ir.hpp"
#include "tensorsmith/stage/changed_model.hpp"
#include "tensorsmith/tensor/package.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// How a chain adds an embedding.
struct merge_embedding_options {
  double strength = 1;        ///< multiplies the vectors
  embedding_options how{};    ///< tokens, missing halves, types
  open_options opening{};     ///< what a single file does not say of itself
  std::shared_ptr<embedding_account> account{};  ///< receives what was added
};

/// Adds the embeddings of one file to what flows: the weights of a pipeline (a single file keeps its names, and its metadata name the tokens, so
/// that build and later readers give them to the tokenizers), or graphs.
class embedding_merge {
 public:
  static constexpr std::string_view name = "merge_embedding";

  /// `embeddings`: as open_textual_inversion gives them. `notes`: remarks from opening them.
  embedding_merge(result<std::vector<textual_inversion>> embeddings, std::string token, std::vector<note> notes, merge_embedding_options options)
      : embeddings_(std::move(embeddings)), token_(std::move(token)), notes_(std::move(notes)), options_(std::move(options)) {}

  result<package> run(package in, job& run) const {
    if (!in.is_single_model()) {
      TENSORSMITH_CHECK(merge(in, run));
      return in;
    }
    package file = in;
    TENSORSMITH_TRY(package model, recognize_stable_diffusion(std::move(in), options_.opening, run));
    TENSORSMITH_TRY(const std::vector<changed_weight> changed, merge(model, run));
    TENSORSMITH_TRY(const std::vector<token_row> tokens, tokens_of_metadata(model.metadata, file.source, run.limits));
    TENSORSMITH_CHECK(add_tokens_to_metadata(file.metadata, tokens, file.source, run.limits));
    return detail::in_form_of_file(std::move(file), std::move(model), changed, run);
  }

  result<bundle> run(bundle in, job& run) const {
    if (options_.how.to)
      return failure{.code = errc::usage, .what = "the rows of graphs have the type that their graph computes in", .file = in.source,
                     .expected = "no type for merge_embedding", .found = std::string(name_of(*options_.how.to)),
                     .advice = "put merge_embedding or a cast before build"};
    package model;
    model.source = in.source, model.family = in.family;
    model.side_files = std::move(in.side_files);
    for (bundle_component& part : in.components)
      if (const initializer* const matrix = find_matrix(part)) {
        component text;
        text.name = part.name;
        text.config = part.config;
        TENSORSMITH_CHECK(text.weights.add(std::string(detail::token_matrix), std::get<tensor_ref>(matrix->data), part.name));
        model.components.push_back(std::move(text));
      }
    TENSORSMITH_CHECK(merge(model, run));
    for (bundle_component& part : in.components)
      if (component* const text = model.find(part.name)) {
        initializer& matrix = *find_matrix(part);
        const tensor_ref grown = text->weights.find(detail::token_matrix)->tensor;
        part.model[matrix.value].shape = dims(grown.shape().begin(), grown.shape().end());
        matrix.data = grown;
        part.config = std::move(text->config);
      }
    in.side_files = std::move(model.side_files);
    return in;
  }

 private:
  static initializer* find_matrix(bundle_component& part) {
    if (!detail::is_pipeline_text(part.name)) return nullptr;
    for (initializer& one : part.model.initializers)
      if (part.model[one.value].name == detail::token_matrix && std::holds_alternative<tensor_ref>(one.data)) return &one;
    return nullptr;
  }

  result<std::vector<embedding_request>> requests() const {
    if (!embeddings_) return failure(embeddings_.error());
    if (!token_.empty() && embeddings_->size() > 1)
      return failure{.code = errc::usage, .what = "one token is given for a file of several embeddings", .file = embeddings_->front().file,
                     .expected = "no token", .found = std::to_string(embeddings_->size()) + " embeddings", .advice = "leave out the token"};
    std::vector<embedding_request> out;
    for (const textual_inversion& one : *embeddings_) out.push_back({one, token_, options_.strength});
    return out;
  }

  result<std::vector<changed_weight>> merge(package& model, job& run) const {
    run.notes.insert(run.notes.end(), notes_.begin(), notes_.end());
    TENSORSMITH_TRY(const std::vector<embedding_request> wanted, requests());
    TENSORSMITH_TRY(embedding_account account, merge_embeddings(model, wanted, options_.how, run));
    for (const ignored_embedding& left : account.ignored) run.warn(left.file, left.what + " is ignored: " + left.reason);
    for (const added_token& token : account.tokens) run.info(token.encoder, quoted(token.token) + " has the id " + std::to_string(token.id));
    std::vector<changed_weight> changed = account.weights;
    if (options_.account) *options_.account = std::move(account);
    return changed;
  }

  result<std::vector<textual_inversion>> embeddings_;
  std::string token_;
  std::vector<note> notes_;
  merge_embedding_options options_;
};

/// Stage: the embeddings of a file that `open<…>` gives, under `token`, or under the trigger word that the file suggests if that is empty.
/// @fails as open, read_textual_inversions and merge_embeddings; usage (one token for a file of several embeddings)
inline embedding_merge merge_embedding(chain<package> file, std::string token = {}, merge_embedding_options options = {}) {
  std::vector<note> notes = file.run() ? file.notes() : std::vector<note>();
  const auto read = [&]() -> result<std::vector<textual_inversion>> {
    if (!file) return failure(file.error());
    return read_textual_inversions(file.value());
  };
  return {read(), std::move(token), std::move(notes), std::move(options)};
}
/// The same for embeddings that open_textual_inversion gave: the two files of an SDXL embedding, for example.
inline embedding_merge merge_embedding(result<std::vector<textual_inversion>> embeddings, std::string token = {}, merge_embedding_options options = {}) {
  return {std::move(embeddings), std::move(token), {}, std::move(options)};
}

/// Merges into weights before build, or into graphs behind it.
template <class From>
chain<From> operator|(chain<From> left, embedding_merge stage) {
  constexpr bool fits = std::same_as<From, package> || std::same_as<From, bundle>;
  static_assert(fits, "tensorsmith: merge_embedding works on weights or graphs; put it between open<…> and build<…>, or between build<…> and write<…>");
  if constexpr (fits) return detail::run_on_model(std::move(left), stage);
  else return {failure{}, nullptr};
}

TENSORSMITH_END_NAMESPACE
