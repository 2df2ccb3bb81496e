// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/merge_embedding.hpp: puts Textual Inversion embeddings into a pipeline: rows of the token embeddings, tokens of the tokenizers.
//
// Include this to add embeddings while a model is converted or before it is written. Only the new rows are computed here; those of the model stay
// where they lie.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/added_tokens.hpp"
#include "tensorsmith/arch/textual_inversion.hpp"
#include "tensorsmith/arch/update_checkpoint.hpp"
#include "tensorsmith/tensor/cast.hpp"
#include "tensorsmith/tensor/executor.hpp"
#include "tensorsmith/tensor/memory.hpp"
#include "tensorsmith/tensor/stacked.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Which tokens stand for the n vectors of an embedding.
enum class token_rule : std::uint8_t {
  diffusers,  ///< T, T_1, …, T_(n-1): one vector each; the pipeline replaces T in a prompt by all of them
  onnx_web,   ///< T and T-all: the sum of all vectors; T-0 … T-(n-1): one each. With a key of its own: that key and the file's name: the vector
  kohya,      ///< T, T1, …, T(n-1): one vector each
};

/// One embedding of a merge.
struct embedding_request {
  textual_inversion source;
  std::string token;    ///< the trigger word; empty: source.name
  double strength = 1;  ///< multiplies every vector
};

/// What a merge of embeddings may be told.
struct embedding_options {
  token_rule rule = token_rule::diffusers;
  bool onnx_web_aliases = false;  ///< T-0 … T-(n-1) and T-all in addition to the tokens of the rule
  bool zero_missing = false;      ///< an SDXL embedding with one half gets zeros for the other, instead of being refused
  std::size_t most_vectors = 1024;  ///< of one embedding; a prompt has 75 places
  std::optional<dtype> to{};      ///< element type of the grown matrices; none: as stored
  cast_overflow overflow = cast_overflow::error;  ///< of values that do not fit that type
};

/// A row that a text encoder got.
struct added_token {
  std::string token;
  std::int64_t id = 0;      ///< row of the matrix
  std::string encoder;      ///< "text_encoder", "text_encoder_2"
  std::string file;         ///< the embedding it comes from, the first one if several were added up
  std::size_t vectors = 1;  ///< how many vectors of files are summed up in it; 0: zeros
  double norm = 0;          ///< Euclidean norm of the row before it was rounded
};

/// Something of an embedding that the model did not get.
struct ignored_embedding {
  std::string file, what, reason;
};

/// The account of a merge of embeddings.
struct embedding_account {
  std::vector<added_token> tokens;   ///< by id, then by encoder
  std::vector<ignored_embedding> ignored;
  std::vector<changed_weight> weights;  ///< the matrices that grew
  bool has_tokenizer = false;        ///< tokens were entered in tokenizer files; otherwise only the account and the metadata tell them
};

namespace detail {

inline constexpr std::string_view token_matrix = "text_model.embeddings.token_embedding.weight";

/// The models whose text encoders are this wide.
constexpr std::string_view models_of_width(std::size_t width) noexcept {
  return width == 768 ? " (SD1, or SDXL's first text encoder)" : width == 1024 ? " (SD2)" : width == 1280 ? " (SDXL's second text encoder)" : "";
}

inline bool is_pipeline_text(std::string_view name) noexcept { return name == "text_encoder" || name == "text_encoder_2"; }

/// A token must be text that a prompt can contain. @fails mismatch
inline result<void> check_token(const std::string& token, const std::string& file) {
  const auto refuse = [&](std::string what, std::string expected) {
    return failure{.code = errc::mismatch, .what = std::move(what), .file = file, .place = token.empty() ? std::string() : "token " + quoted(token),
                   .expected = std::move(expected), .advice = "name another token"};
  };
  if (token.empty()) return refuse("the embedding's token is empty", "a word like <cat>");
  constexpr std::size_t most = 256;
  if (token.size() > most) return refuse("the embedding's token is too long", "at most " + std::to_string(most) + " bytes");
  std::size_t bad = 0;
  if (!is_utf8(token, bad)) return refuse("the embedding's token is no UTF-8", "UTF-8");
  std::uint32_t point = 0;
  for (std::size_t at = 0; at < token.size(); at += utf8_sequence(token, at, point)) {
    (void)utf8_sequence(token, at, point);
    if (unsafe_to_print(point)) return refuse("the embedding's token has characters that do not print", "visible characters");
  }
  if (token.front() == ' ' || token.back() == ' ')
    return refuse("the embedding's token begins or ends with a space, which tokenizers drop", "a word like <cat>");
  return {};
}

/// One merge of embeddings into one pipeline.
class embedding_merger {
 public:
  embedding_merger(package& model, const embedding_options& options, job& run) : model_(model), options_(options), run_(run) {}

  result<embedding_account> merge(std::span<const embedding_request> requests) {
    TENSORSMITH_CHECK(find_encoders());
    TENSORSMITH_CHECK(read_tokenizers());
    for (const embedding_request& request : requests) TENSORSMITH_CHECK(add(request));
    warn_of_tokens();
    TENSORSMITH_CHECK(complete());
    if (rows_.empty()) return std::move(account_);
    TENSORSMITH_CHECK(choose_first_id());
    for (std::size_t e = 0; e < encoders_.size(); ++e) TENSORSMITH_CHECK(grow(e));
    TENSORSMITH_CHECK(enter_tokens());
    return std::move(account_);
  }

 private:
  struct encoder {
    component* part;
    tensor_ref matrix;
    std::size_t rows, width;
  };
  /// A token to add, its values for each encoder; empty where none were given.
  struct pending_row {
    std::string token, file;
    std::vector<std::vector<double>> values;
    std::vector<std::size_t> summed;
  };
  /// The vectors of one request for one encoder.
  struct loaded {
    bool given = false;
    std::size_t width = 0;
    std::vector<double> values;  // [count, width]
  };

  failure refuse(errc code, const embedding_request& request, std::string what, std::string expected = {}, std::string found = {},
                 std::string advice = {}) const {
    return failure{.code = code, .what = std::move(what), .file = request.source.file, .place = {}, .expected = std::move(expected),
                   .found = std::move(found), .advice = std::move(advice)};
  }

  result<void> find_encoders() {
    for (component& part : model_.components) {
      const catalog_entry* const matrix = is_pipeline_text(part.name) ? part.weights.find(token_matrix) : nullptr;
      if (!matrix) continue;
      const shape_type& shape = matrix->tensor.shape();
      if (shape.size() != 2 || matrix->tensor.info().elements() == 0 || !is_floating(matrix->tensor.type()) || !convertible(dtype::f64, matrix->tensor.type()))
        return failure{.code = errc::unsupported, .what = "an embedding cannot be added to this token embedding", .place = matrix->origin,
                       .expected = "a floating-point matrix", .found = std::string(name_of(matrix->tensor.type())) + " " + to_string(shape)};
      encoders_.push_back({&part, matrix->tensor, shape[0], shape[1]});
    }
    if (!encoders_.empty()) return {};
    return failure{.code = errc::mismatch, .what = "the model has no text encoder to add tokens to", .file = model_.source,
                   .expected = "text_encoder or text_encoder_2 with " + quoted(token_matrix), .found = "neither"};
  }

  result<void> read_tokenizers() {
    for (const char* folder : {"tokenizer", "tokenizer_2"}) {
      TENSORSMITH_TRY(auto known, read_tokenizer(model_.side_files, folder, run_.limits));
      if (known) tokenizers_.push_back(std::move(*known));
    }
    account_.has_tokenizer = !tokenizers_.empty();
    TENSORSMITH_TRY(told_, tokens_of_metadata(model_.metadata, model_.source, run_.limits));
    return {};
  }

  /// Where a token is known already; empty: nowhere.
  std::string known_place(const std::string& token) const {
    for (const tokenizer_vocabulary& known : tokenizers_)
      if (const auto id = known.find(token)) return known.folder + " has it with the id " + std::to_string(*id);
    for (const token_row& row : told_)  // a single file that was given embeddings before
      if (row.token == token) return "the file's metadata has it with the id " + std::to_string(row.id);
    return {};
  }

  std::string widths_of_model() const {
    std::string out = "vectors of width ";
    for (std::size_t i = 0; i < encoders_.size(); ++i)
      out += (i ? " and " : "") + std::to_string(encoders_[i].width) + std::string(models_of_width(encoders_[i].width));
    return out;
  }
  static std::string widths_of_file(const textual_inversion& source) {
    std::string out = "width ";
    for (std::size_t i = 0; i < source.parts.size(); ++i)
      out += (i ? " and " : "") + std::to_string(source.parts[i].width) + std::string(models_of_width(source.parts[i].width));
    return out;
  }

  /// The encoder that takes a part; nothing: the model lacks it on purpose (part of an SDXL model).
  result<std::optional<std::size_t>> encoder_for(const embedding_request& request, const embedding_vectors& part, const std::vector<loaded>& taken) const {
    const auto other_model = [&] {
      return refuse(errc::mismatch, request, "the embedding is for another model", widths_of_model(), widths_of_file(request.source),
                    "use an embedding that was trained on a model of this family");
    };
    if (!part.encoder.empty()) {
      for (std::size_t e = 0; e < encoders_.size(); ++e)
        if (encoders_[e].part->name == part.encoder) {
          if (encoders_[e].width != part.width) return other_model();
          return std::optional(e);
        }
      const bool two = model_.family.empty() ? encoders_.size() == 1 && encoders_[0].part->name == "text_encoder_2" : model_.family.starts_with("sdxl");
      if (!two || request.source.parts.size() < 2) return other_model();
      return std::optional<std::size_t>();
    }
    for (std::size_t e = 0; e < encoders_.size(); ++e)
      if (encoders_[e].width == part.width && !taken[e].given) return std::optional(e);
    return other_model();
  }

  /// Reads the vectors of one part in f64, times the strength. @fails numeric, io
  result<std::vector<double>> values_of(const embedding_request& request, const embedding_vectors& part) const {
    TENSORSMITH_TRY(const std::vector<std::byte> bytes, materialize(part.rows, run_));
    std::vector<double> out(part.count * part.width);
    convert_elements(part.rows.type(), bytes.data(), dtype::f64, reinterpret_cast<std::byte*>(out.data()), out.size());
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (!std::isfinite(out[i]))
        return failure{.code = errc::numeric, .what = "a vector of the embedding is not finite", .file = request.source.file,
                       .place = "vector " + std::to_string(i / part.width) + ", element " + std::to_string(i % part.width),
                       .expected = "finite numbers", .found = std::isnan(out[i]) ? "NaN" : "infinity"};
      out[i] *= request.strength;
    }
    return out;
  }

  result<std::vector<loaded>> load(const embedding_request& request) {
    const textual_inversion& source = request.source;
    std::vector<loaded> out(encoders_.size());
    for (const embedding_vectors& part : source.parts) {
      if (part.count != source.parts[0].count)
        return refuse(errc::mismatch, request, "the embedding has different numbers of vectors for the two text encoders",
                      std::to_string(source.parts[0].count), std::to_string(part.count));
      TENSORSMITH_TRY(const auto e, encoder_for(request, part, out));
      if (!e) {
        account_.ignored.push_back({source.file, "vectors for " + part.encoder, "the model has no " + part.encoder});
        continue;
      }
      if (out[*e].given)
        return refuse(errc::mismatch, request, "the embedding has two lists of vectors for " + encoders_[*e].part->name, "one");
      TENSORSMITH_TRY(out[*e].values, values_of(request, part));
      out[*e].given = true;
      out[*e].width = part.width;
    }
    return out;
  }

  result<void> add(const embedding_request& request) {
    const textual_inversion& source = request.source;
    if (!std::isfinite(request.strength))
      return refuse(errc::numeric, request, "the strength of the embedding is not finite", "a number", std::to_string(request.strength));
    if (source.parts.empty()) return refuse(errc::mismatch, request, "the embedding has no vectors");
    const std::size_t count = source.parts[0].count;
    if (count > options_.most_vectors)
      return refuse(errc::limit, request, "the embedding has too many vectors", "at most " + std::to_string(options_.most_vectors), std::to_string(count),
                    "raise embedding_options::most_vectors (--max-vectors) if you trust it; a prompt has 75 places");
    const std::string token = request.token.empty() ? source.name : request.token;
    TENSORSMITH_CHECK(check_token(token, source.file));
    triggers_.push_back(token);
    TENSORSMITH_TRY(const std::vector<loaded> vectors, load(request));
    constexpr std::size_t places = 75;
    if (count > places && options_.rule != token_rule::onnx_web)
      run_.warn(source.file, "its " + std::to_string(count) + " vectors do not fit into a prompt, which has " + std::to_string(places) + " places");
    for (const std::string& note : source.notes) run_.info(source.file, note);
    std::size_t applied = 0;
    for (const auto& [name, which] : rows_by_rule(request, token, count)) {
      TENSORSMITH_TRY(const bool fresh, contribute(request, name, which, count, vectors));
      applied += fresh;
    }
    if (applied != 0) return {};
    return refuse(errc::mismatch, request, "none of the embedding's tokens is new to the tokenizer", "a token that is not in the vocabulary",
                  quoted(token), "name another token");
  }

  static constexpr std::size_t all = static_cast<std::size_t>(-1);

  /// Tokens of an embedding, and the vector that each stands for, or `all` for their sum. The first token comes first.
  std::vector<std::pair<std::string, std::size_t>> rows_by_rule(const embedding_request& request, const std::string& token, std::size_t count) const {
    std::vector<std::pair<std::string, std::size_t>> out;
    const auto put = [&](std::string name, std::size_t which) {
      for (const auto& row : out)
        if (row.first == name) return;
      out.emplace_back(std::move(name), which);
    };
    const auto aliases = [&](const std::string& base) {
      put(base + "-all", all);
      for (std::size_t i = 0; i < count; ++i) put(base + "-" + std::to_string(i), i);
    };
    const std::string& form = request.source.format;
    if (options_.rule == token_rule::onnx_web) {
      const bool keyed = form == "diffusers" || form == "cloneofsimo";
      const std::string base = !keyed || !request.token.empty() ? token : file_stem(request.source.file);
      if (keyed) put(request.source.name, all);
      put(base, all);
      if (!keyed || count > 1) aliases(base);
      return out;
    }
    const std::string between = options_.rule == token_rule::diffusers ? "_" : "";
    for (std::size_t i = 0; i < count; ++i) put(i == 0 ? token : token + between + std::to_string(i), i);
    if (options_.onnx_web_aliases) aliases(token);
    return out;
  }

  /// Enters one token with its values. False: the vocabulary has it, which onnx-web's rule allows.
  result<bool> contribute(const embedding_request& request, const std::string& token, std::size_t which, std::size_t count,
                          const std::vector<loaded>& vectors) {
    TENSORSMITH_CHECK(check_token(token, request.source.file));
    if (const std::string where = known_place(token); !where.empty()) {
      if (options_.rule != token_rule::onnx_web)
        return refuse(errc::mismatch, request, "the token " + quoted(token) + " is in the vocabulary already", "a new token", where,
                      "name another one, such as " + quoted("<" + token + ">"));
      account_.ignored.push_back({request.source.file, "token " + quoted(token), "in the vocabulary already: " + where});
      return false;
    }
    const auto [at, fresh] = row_of_.emplace(token, rows_.size());
    if (fresh) rows_.push_back({token, request.source.file, std::vector<std::vector<double>>(encoders_.size()), std::vector<std::size_t>(encoders_.size())});
    pending_row& row = rows_[at->second];
    for (std::size_t e = 0; e < encoders_.size(); ++e) {
      if (!vectors[e].given) continue;
      if (!row.values[e].empty() && options_.rule != token_rule::onnx_web)
        return refuse(errc::mismatch, request, "two embeddings have the same token " + quoted(token), "a token for each", "also " + quoted(row.file),
                      "name another token for one of them");
      row.values[e].resize(vectors[e].width);
      for (std::size_t i = which == all ? 0 : which; i < (which == all ? count : which + 1); ++i, ++row.summed[e])
        for (std::size_t k = 0; k < vectors[e].width; ++k) row.values[e][k] += vectors[e].values[i * vectors[e].width + k];
    }
    return true;
  }

  /// Every token needs a row in each text encoder. @fails mismatch
  result<void> complete() {
    std::map<std::pair<std::string, std::string>, std::string> zeroed;
    for (pending_row& row : rows_)
      for (std::size_t e = 0; e < encoders_.size(); ++e) {
        if (!row.values[e].empty()) continue;
        const std::string& name = encoders_[e].part->name;
        if (!options_.zero_missing)
          return failure{.code = errc::mismatch, .what = "the embedding has vectors for one of the model's two text encoders only", .file = row.file,
                         .place = "token " + quoted(row.token), .expected = "vectors for " + name + ", too: width " + std::to_string(encoders_[e].width) +
                         std::string(models_of_width(encoders_[e].width)),
                         .found = "none", .advice = "pass the other half as well, or --zero-missing to take zeros for it"};
        row.values[e].assign(encoders_[e].width, 0.0);
        zeroed.emplace(std::pair(row.file, name), row.token);
      }
    for (const auto& [where, token] : zeroed)
      run_.warn(where.first, "it has no vectors for " + where.second + ": its tokens get zeros there, " + quoted(token) + " for one");
    return {};
  }

  void warn_of_tokens() {
    const auto word = [](const std::string& t) { return std::all_of(t.begin(), t.end(), [](char c) { return is_letter(c) || (c >= '0' && c <= '9'); }); };
    for (const std::string& token : triggers_) {
      if (word(token))
        run_.warn("token " + quoted(token), "it is found inside longer words, too; " + quoted("<" + token + ">") + " would not be");
      if (std::any_of(token.begin(), token.end(), [](char c) { return c >= 'A' && c <= 'Z'; }))
        run_.warn("token " + quoted(token), "some tokenizers tell capitals from small letters and others do not; small letters work with all");
      for (const std::string& other : triggers_)
        if (other.size() > token.size() && other.starts_with(token))
          run_.warn("token " + quoted(token), "the token " + quoted(other) + " begins with it");
    }
  }
  static bool is_letter(char c) noexcept { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

  /// The first new id: behind all that the tokenizers know. @fails mismatch if the matrices are of another vocabulary
  result<void> choose_first_id() {
    for (const tokenizer_vocabulary& known : tokenizers_) first_ = std::max(first_, static_cast<std::size_t>(known.next_id()));
    if (tokenizers_.empty())
      for (const encoder& e : encoders_) first_ = std::max(first_, e.rows);
    constexpr std::size_t most = 4096;  // matrices are padded to multiples of some power of two at the most
    for (const encoder& e : encoders_) {
      const std::size_t apart = std::max(e.rows, first_) - std::min(e.rows, first_);
      if (apart > most)
        return failure{.code = errc::mismatch, .what = "the tokenizer does not belong to the text encoder", .file = model_.source, .place = e.part->name,
                       .expected = "about " + std::to_string(e.rows) + " tokens, the rows of its token embedding", .found = std::to_string(first_),
                       .advice = "pass the tokenizer of this model"};
      if (apart != 0 && e.rows < first_)
        run_.warn(e.part->name, "its token embedding has " + std::to_string(apart) + " rows less than the tokenizer has tokens; they get zeros");
      if (apart != 0 && e.rows > first_)
        run_.info(e.part->name, "its token embedding has " + std::to_string(apart) + " rows more than the tokenizer has tokens; new tokens take those first");
    }
    for (const tokenizer_vocabulary& known : tokenizers_)
      if (const auto next = static_cast<std::size_t>(known.next_id()); next < first_)
        run_.warn(known.folder, "it knows " + std::to_string(first_ - next) + " tokens less than the other tokenizer; the new ids leave a gap");
    return {};
  }

  /// Rows as they are stored: rounded once from f64.
  result<tensor_ref> stored_rows(std::vector<double> values, std::size_t width, dtype type) const {
    tensor_info info{"new token embeddings", dtype::f64, {values.size() / width, width}};
    std::vector<std::byte> bytes(values.size() * sizeof(double));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    TENSORSMITH_TRY(const tensor_ref rounded, cast(in_memory(info, std::move(bytes)), type, options_.overflow));
    TENSORSMITH_TRY(std::vector<std::byte> stored, materialize(rounded, run_));
    info.type = type;
    return in_memory(std::move(info), std::move(stored));
  }

  result<void> grow(std::size_t index) {
    encoder& e = encoders_[index];
    const std::size_t kept = std::min(e.rows, first_), end = first_ + rows_.size();
    std::vector<double> values((first_ - kept) * e.width, 0.0);
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const std::vector<double>& row = rows_[i].values[index];
      values.insert(values.end(), row.begin(), row.end());
      double sum = 0;
      for (const double x : row) sum += x * x;
      account_.tokens.push_back({rows_[i].token, static_cast<std::int64_t>(first_ + i), e.part->name, rows_[i].file, rows_[i].summed[index], std::sqrt(sum)});
    }
    const dtype type = options_.to.value_or(e.matrix.type());
    TENSORSMITH_TRY(const tensor_ref before, cast(e.matrix, type, options_.overflow));
    std::vector<tensor_ref> parts{before};
    if (kept < e.rows) {
      TENSORSMITH_TRY(parts[0], sliced_rows(before, 0, kept));
    }
    TENSORSMITH_TRY(tensor_ref added, stored_rows(std::move(values), e.width, type));
    parts.push_back(std::move(added));
    if (end < e.rows) {
      TENSORSMITH_TRY(tensor_ref rest, sliced_rows(before, end, e.rows - end));
      parts.push_back(std::move(rest));
    }
    TENSORSMITH_TRY(tensor_ref grown, stacked_rows(std::move(parts)));
    e.part->weights.replace(token_matrix, std::move(grown));
    account_.weights.push_back({e.part->name, std::string(token_matrix)});
    configure(e, std::max(e.rows, end));
    return {};
  }

  /// With the id 2, transformers pools at the largest id of a prompt, which a new token is. The end marker's own id makes it pool there.
  void configure(encoder& e, std::size_t rows) {
    json_value& config = e.part->config;
    if (config.as_object() == nullptr) return;
    config.set("vocab_size", static_cast<std::int64_t>(rows));
    const json_value* const end = config.find("eos_token_id");
    if (!end || *end != json_value(2)) return;
    const std::string folder = e.part->name == "text_encoder_2" ? "tokenizer_2" : "tokenizer";
    constexpr std::size_t clip_end = 49407;
    auto id = static_cast<std::int64_t>(e.rows > clip_end ? clip_end : std::min(e.rows, first_) - 1);
    for (const tokenizer_vocabulary& known : tokenizers_)
      if (const auto own = known.find("<|endoftext|>"); own && (known.folder == folder || tokenizers_.size() == 1)) id = *own;
    config.set("eos_token_id", id);
  }

  result<void> enter_tokens() {
    std::stable_sort(account_.tokens.begin(), account_.tokens.end(), [](const added_token& a, const added_token& b) { return a.id < b.id; });
    std::vector<token_row> tokens;
    for (std::size_t i = 0; i < rows_.size(); ++i) tokens.push_back({rows_[i].token, static_cast<std::int64_t>(first_ + i)});
    for (tokenizer_vocabulary& known : tokenizers_) TENSORSMITH_CHECK(add_tokens(model_.side_files, known, tokens, run_.limits));
    if (tokenizers_.empty())
      run_.warn("tokenizer", "the model comes without its files; " + quoted(tokens[0].token) + " has the id " + std::to_string(tokens[0].id) +
                                 ", and the report lists all");
    return add_tokens_to_metadata(model_.metadata, tokens, model_.source, run_.limits);
  }

  package& model_;
  const embedding_options& options_;
  job& run_;
  std::vector<encoder> encoders_;
  std::vector<tokenizer_vocabulary> tokenizers_;
  std::vector<token_row> told_;  // by the metadata of a single file
  std::vector<pending_row> rows_;
  std::map<std::string, std::size_t> row_of_;
  std::vector<std::string> triggers_;
  std::size_t first_ = 0;
  embedding_account account_;
};

}  // namespace detail

/// Adds embeddings to a pipeline whose text encoders have transformers' names: rows for the token embeddings, the tokens in the tokenizers' files,
/// vocab_size and eos_token_id in the configurations, and the tokens in the package's metadata (`added_tokens_key`), for outputs that hold no
/// tokenizer. New ids start behind all that the tokenizers know, or at the number of rows if there is no tokenizer; all text encoders use the same
/// ids. A matrix with fewer rows than the tokenizer has tokens gets zeros between, one with more has its spare rows replaced first. Vectors are
/// multiplied and summed in f64 and rounded once.
/// @fails mismatch (width, with the families of both; one half of an SDXL embedding; tokens that are empty, unprintable, in the vocabulary or
/// given twice; none new), limit (vectors), numeric (not finite; overflow), unsupported (types). The package is unspecified after a failure.
inline result<embedding_account> merge_embeddings(package& model, std::span<const embedding_request> requests, const embedding_options& options,
                                                  job& run) {
  return detail::embedding_merger(model, options, run).merge(requests);
}

TENSORSMITH_END_NAMESPACE
