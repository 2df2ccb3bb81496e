// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/textual_inversion.hpp: Textual Inversion embeddings: vectors for new tokens, in every form that trainers save them.
//
// Include this to read embeddings; arch/merge_embedding.hpp puts them into a model. Sources of names and shapes: the savers and loaders of the web
// UI of AUTOMATIC1111, of kohya-ss/sd-scripts, of diffusers and of cloneofsimo/lora.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/convert.hpp"
#include "tensorsmith/format/checkpoint/open.hpp"
#include "tensorsmith/tensor/package.hpp"
#include "tensorsmith/tensor/views.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Vectors for one text encoder.
struct embedding_vectors {
  std::size_t width = 0;  ///< elements of a vector
  std::size_t count = 0;  ///< vectors
  tensor_ref rows;        ///< [count, width], any floating type
  std::string encoder;    ///< "text_encoder" or "text_encoder_2", if the file tells; empty: the width does
};

/// One embedding: what a trigger word stands for.
struct textual_inversion {
  std::string file;    ///< for messages
  std::string name;    ///< the trigger word that the file suggests: a key, or the file's name without its extension
  std::string format;  ///< "A1111", "kohya", "SDXL", "diffusers", "cloneofsimo", "bundled", "bare tensor"
  std::vector<embedding_vectors> parts;  ///< one, or one for each text encoder
  std::vector<std::string> tensors;      ///< names of the tensors it was made of
  std::vector<std::string> notes;        ///< what else the file says: "its name is 'cat'"
};

namespace detail {

/// Marks of images, in which the web UI hides embeddings as well.
inline std::string_view image_kind(std::string_view head) noexcept {
  struct mark {
    std::size_t offset;
    std::string_view bytes, kind;
  };
  constexpr mark marks[] = {{0, std::string_view("\x89PNG\r\n\x1A\n", 8), "PNG"},
                            {8, "WEBP", "WebP"},
                            {0, std::string_view("\xFF\x0A", 2), "JPEG XL"},
                            {0, std::string_view("\0\0\0\x0CJXL \r\n\x87\n", 12), "JPEG XL"},
                            {4, "ftypavif", "AVIF"},
                            {4, "ftypavis", "AVIF"}};
  for (const mark& m : marks)
    if (head.size() >= m.offset + m.bytes.size() && head.substr(m.offset, m.bytes.size()) == m.bytes) {
      if (m.bytes.size() == 2 && head.size() > 8 && head[8] == '{') continue;  // the header of a safetensors file may be 2,815 bytes long
      return m.kind;
    }
  return {};
}

/// A file's name without its folder and extension.
inline std::string file_stem(std::string_view path) {
  const std::string_view name = file_name(without_trailing_slashes(path)), ending = extension(name);
  return std::string(name.substr(0, name.size() - ending.size()));
}

/// Takes the embeddings out of the tensors of one file.
class embedding_reader {
 public:
  explicit embedding_reader(const package& file) : file_(file) {
    for (const component& part : file.components)
      for (const catalog_entry& entry : part.weights.entries()) entries_.push_back(&entry);
  }

  /// Embeddings that lie in an adapter of the LoRA family; none: an empty list.
  result<std::vector<textual_inversion>> bundled() {
    for (const catalog_entry* entry : entries_)
      if (std::string_view(entry->name).starts_with("bundle_emb.")) TENSORSMITH_CHECK(add_bundled(*entry));
    for (const auto& [key, value] : file_.metadata)
      if (value == "<embed>")
        if (const catalog_entry* entry = find(key)) TENSORSMITH_CHECK(add(key, "cloneofsimo", *entry, {}));
    return std::move(out_);
  }

  result<std::vector<textual_inversion>> read() {
    TENSORSMITH_TRY(std::vector<textual_inversion> inside, bundled());
    if (!inside.empty()) return inside;
    out_.clear();
    TENSORSMITH_CHECK(read_alone());
    std::size_t used = 0;
    for (const textual_inversion& one : out_) used += one.tensors.size();
    const std::size_t left = entries_.size() - used;
    for (textual_inversion& one : out_)
      if (left != 0)
        one.notes.push_back(std::to_string(left) + (left == 1 ? " other tensor of the file is no list of vectors and was ignored"
                                                              : " other tensors of the file are no lists of vectors and were ignored"));
    return std::move(out_);
  }

 private:
  const catalog_entry* find(std::string_view name) const noexcept {
    for (const component& part : file_.components)
      if (const catalog_entry* entry = part.weights.find(name)) return entry;
    return nullptr;
  }
  std::string stem() const { return file_stem(file_.source); }
  failure refuse(errc code, const catalog_entry& entry, std::string what, std::string expected, std::string found) const {
    return failure{.code = code, .what = std::move(what), .file = file_.source, .place = "tensor " + quoted(entry.name),
                   .expected = std::move(expected), .found = std::move(found)};
  }

  /// [d] is one vector, [n, d] are n of them, [1, n, d] is a batch of one embedding.
  result<embedding_vectors> vectors_of(const catalog_entry& entry, std::string encoder) const {
    const shape_type& shape = entry.tensor.shape();
    const bool batch = shape.size() == 3 && shape[0] == 1;
    if (shape.empty() || (shape.size() > 2 && !batch) || entry.tensor.info().elements() == 0)
      return refuse(errc::mismatch, entry, "an embedding has a shape that is no list of vectors", "[d], [n, d] or [1, n, d]", to_string(shape));
    if (!is_floating(entry.tensor.type()) || !convertible(entry.tensor.type(), dtype::f64))
      return refuse(errc::unsupported, entry, "an embedding is of a type that cannot be computed with", "a floating-point type",
                    std::string(name_of(entry.tensor.type())));
    embedding_vectors out;
    out.width = shape.back();
    out.count = shape.size() == 1 ? 1 : shape[shape.size() - 2];
    out.encoder = std::move(encoder);
    out.rows = entry.tensor;
    if (shape.size() != 2) {
      TENSORSMITH_TRY(out.rows, reshaped(entry.tensor, {out.count, out.width}));
    }
    return out;
  }

  /// Adds vectors to the embedding `name`, or a new one.
  result<void> add(std::string name, std::string_view format, const catalog_entry& entry, std::string encoder) {
    TENSORSMITH_TRY(embedding_vectors part, vectors_of(entry, std::move(encoder)));
    const auto same = std::find_if(out_.begin(), out_.end(), [&](const textual_inversion& one) { return one.name == name; });
    textual_inversion& to = same == out_.end() ? out_.emplace_back() : *same;
    for (const embedding_vectors& other : to.parts)
      if (other.encoder == part.encoder)
        return refuse(errc::mismatch, entry, "the embedding " + quoted(name) + " has vectors for one text encoder twice", "one tensor",
                      "also " + quoted(to.tensors[0]));
    to.file = file_.source;
    to.name = std::move(name);
    to.format = format;
    to.parts.push_back(std::move(part));
    to.tensors.push_back(entry.name);
    return {};
  }

  static std::string encoder_of_key(std::string_view key) {
    return key == "clip_l" ? "text_encoder" : key == "clip_g" ? "text_encoder_2" : std::string();
  }

  /// bundle_emb.NAME.string_to_param.*, bundle_emb.NAME.clip_l: the name ends at the first dot.
  result<void> add_bundled(const catalog_entry& entry) {
    const std::string_view key = std::string_view(entry.name).substr(std::string_view("bundle_emb.").size());
    const std::size_t dot = key.find('.');
    const std::string_view rest = dot == key.npos ? std::string_view() : key.substr(dot + 1);
    const bool known = rest.starts_with("string_to_param.") || rest == "clip_l" || rest == "clip_g" || rest == "emb_params";
    if (!known || dot == 0)
      return refuse(errc::unsupported, entry, "an embedding inside the adapter has a form that is not known",
                    "bundle_emb.NAME.string_to_param.*, .emb_params, .clip_l or .clip_g", quoted(entry.name));
    return add(std::string(key.substr(0, dot)), "bundled", entry, encoder_of_key(rest));
  }

  result<void> read_alone() {
    std::vector<const catalog_entry*> of_a1111;
    for (const catalog_entry* entry : entries_)
      if (std::string_view(entry->name).starts_with("string_to_param.")) of_a1111.push_back(entry);
    if (of_a1111.size() > 1)
      return refuse(errc::mismatch, *of_a1111[1], "the embedding has several lists of vectors", "one entry in string_to_param",
                    "also " + quoted(of_a1111[0]->name));
    if (!of_a1111.empty()) {
      TENSORSMITH_CHECK(add(stem(), "A1111", *of_a1111[0], {}));
      return describe_a1111();
    }
    const catalog_entry *left = find("clip_l"), *right = find("clip_g");
    if (left) TENSORSMITH_CHECK(add(stem(), "SDXL", *left, "text_encoder"));
    if (right) TENSORSMITH_CHECK(add(stem(), "SDXL", *right, "text_encoder_2"));
    if (left || right) return {};
    if (const catalog_entry* plain = find("emb_params")) return add(stem(), "kohya", *plain, {});
    if (entries_.size() == 1) return add_single(*entries_[0]);
    return add_tokens();
  }

  /// The word under which the web UI's training made it; the file's name counts, as in the web UI.
  result<void> describe_a1111() {
    for (const auto& [key, value] : file_.scalars) {
      const std::string* text = value.as_string();
      if (key == "name" && text) out_[0].notes.push_back("the file calls it " + quoted(*text));
      if (key == "sd_checkpoint_name" && text) out_[0].notes.push_back("it was trained on " + quoted(*text));
      if (key == "step" && value.as_integer()) out_[0].notes.push_back("it was trained for " + std::to_string(*value.as_integer()) + " steps");
    }
    return {};
  }

  /// One tensor under a key is diffusers' form. A tensor without a dict around it has no key.
  result<void> add_single(const catalog_entry& entry) {
    const bool bare = file_.container == "npy" || (file_.container == "torch" && entry.name == "tensor");
    return add(bare ? stem() : entry.name, bare ? "bare tensor" : "diffusers", entry, {});
  }

  /// Several tokens of one vector each (cloneofsimo's .ti.pt).
  result<void> add_tokens() {
    constexpr std::size_t most = 256;  // such files hold a handful
    const auto token = [&](const catalog_entry* entry) {
      const shape_type& shape = entry->tensor.shape();
      const bool marked = entry->name.starts_with("<"), plain = entry->name.find('.') == std::string::npos;
      return shape.size() == 1 && shape[0] == entries_[0]->tensor.shape().back() && is_floating(entry->tensor.type()) && (marked || plain);
    };
    const bool tokens = !entries_.empty() && entries_.size() <= most && !entries_[0]->tensor.shape().empty() &&
                        std::all_of(entries_.begin(), entries_.end(), token);
    if (!tokens) return no_embedding();
    for (const catalog_entry* entry : entries_) TENSORSMITH_CHECK(add(entry->name, "cloneofsimo", *entry, {}));
    return {};
  }

  failure no_embedding() const {
    std::string names;
    for (std::size_t i = 0; i < entries_.size() && i < 3; ++i) names += (i ? ", " : "") + quoted(entries_[i]->name);
    return failure{.code = errc::unsupported, .what = "the file holds no Textual Inversion embedding", .file = file_.source,
                   .expected = "string_to_param, emb_params, clip_l and clip_g, or one tensor named as its token",
                   .found = entries_.empty() ? "no tensors" : std::to_string(entries_.size()) + " tensors: " + names + (entries_.size() > 3 ? ", …" : "")};
  }

  const package& file_;
  std::vector<const catalog_entry*> entries_;
  std::vector<textual_inversion> out_;
};

/// Images are refused by name before anything else looks at the file. @fails unsupported, path, io
inline result<void> refuse_image(const std::string& path) {
  TENSORSMITH_TRY(const auto file, open_file(path));
  std::array<char, 16> bytes{};
  const std::string_view head(bytes.data(), static_cast<std::size_t>(std::min<std::uint64_t>(bytes.size(), file->size())));
  TENSORSMITH_CHECK(file->read_at(0, std::as_writable_bytes(std::span(bytes).first(head.size()))));
  const std::string_view kind = image_kind(head);
  if (kind.empty()) return {};
  return failure{.code = errc::unsupported, .what = "embeddings hidden in images are not read", .file = path,
                 .expected = "a .pt, .bin or .safetensors file", .found = "a " + std::string(kind) + " image", .advice = "export it as .pt"};
}

/// "learned_embeds.safetensors" → "learned_embeds_2.safetensors", the second text encoder's vectors; empty: not such a file.
inline std::string second_embedding_file(const std::string& path) {
  constexpr std::string_view first = "learned_embeds";
  const std::string_view name = file_name(path);
  if (!name.starts_with(first) || name.starts_with("learned_embeds_2")) return {};
  return join_path(parent_path(path), "learned_embeds_2" + std::string(name.substr(first.size())));
}

/// The file of embeddings in a folder. @fails mismatch
inline result<std::string> embedding_in_folder(const std::string& folder) {
  for (const std::string_view name : {"learned_embeds.safetensors", "learned_embeds.bin"})
    if (const std::string path = join_path(folder, name); os::is_regular_file(path)) return path;
  return failure{.code = errc::mismatch, .what = "the folder holds no embedding", .file = folder,
                 .expected = "learned_embeds.safetensors or learned_embeds.bin", .found = "neither", .advice = "pass the file itself"};
}

}  // namespace detail

/// The embeddings of a file that was opened with open_weights: those bundled in an adapter if it has some, else what the whole file is. The rows
/// are planned, not read. A tensor [d] is one vector, [n, d] and [1, n, d] are n. The trigger word is the key where the form has one (diffusers,
/// cloneofsimo, bundled), else the file's name without its extension; the `name` of an A1111 file is only noted, as in the web UI.
/// @fails unsupported (no embedding; element types), mismatch (shapes; several lists of vectors)
inline result<std::vector<textual_inversion>> read_textual_inversions(const package& file) { return detail::embedding_reader(file).read(); }

/// The embeddings that lie beside the modules of a LoRA (bundle_emb.…, cloneofsimo's tokens); often none. `tensors` of each says which of the
/// file's keys are theirs. @fails as read_textual_inversions
inline result<std::vector<textual_inversion>> read_bundled_embeddings(const package& file) { return detail::embedding_reader(file).bundled(); }

/// Opens a file of embeddings, or a folder with learned_embeds.safetensors (or .bin). Beside learned_embeds.*, learned_embeds_2.* is read as
/// the second text encoder's half. Pickles are read as data. @fails as open_weights and read_textual_inversions; unsupported (images)
inline result<std::vector<textual_inversion>> open_textual_inversion(const std::string& path, job& run) {
  std::string file = path;
  if (os::is_folder(path)) {
    TENSORSMITH_TRY(file, detail::embedding_in_folder(path));
  }
  TENSORSMITH_CHECK(detail::refuse_image(file));
  TENSORSMITH_TRY(const package first, open_weights(file, {}, run));
  TENSORSMITH_TRY(std::vector<textual_inversion> out, read_textual_inversions(first));
  if (std::string_view(file_name(file)).starts_with("learned_embeds_2") && out.size() == 1) out[0].parts[0].encoder = "text_encoder_2";
  const std::string second = detail::second_embedding_file(file);
  if (second.empty() || out.size() != 1 || !os::is_regular_file(second)) return out;
  TENSORSMITH_TRY(const package other, open_weights(second, {}, run));
  TENSORSMITH_TRY(std::vector<textual_inversion> more, read_textual_inversions(other));
  if (more.size() != 1 || more[0].name != out[0].name || out[0].parts.size() != 1 || more[0].parts.size() != 1)
    return failure{.code = errc::mismatch, .what = "the two halves of an embedding are for different tokens", .file = second,
                   .expected = quoted(out[0].name), .found = quoted(more[0].name)};
  run.info(file, "the second text encoder's vectors are taken from " + quoted(second));
  out[0].parts[0].encoder = "text_encoder";
  more[0].parts[0].encoder = "text_encoder_2";
  out[0].parts.push_back(std::move(more[0].parts[0]));
  for (std::string& name : more[0].tensors) out[0].tensors.push_back(std::move(name));
  return out;
}

TENSORSMITH_END_NAMESPACE
