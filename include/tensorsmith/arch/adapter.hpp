// SPDX-License-Identifier: MIT
//
// tensorsmith/arch/adapter.hpp: an adapter file taken apart: modules, the parameters of each, and the embeddings beside them.
//
// Include this to merge adapters or to look into them. arch/recognize_adapter.hpp tells what a file is; arch/adapter_targets.hpp finds the layers
// that the modules belong to.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/arch/cloneofsimo.hpp"
#include "tensorsmith/arch/peft_config.hpp"
#include "tensorsmith/arch/recognize_adapter.hpp"
#include "tensorsmith/arch/textual_inversion.hpp"
#include "tensorsmith/core/json_value.hpp"
#include "tensorsmith/format/checkpoint/open.hpp"
#include "tensorsmith/io/json.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// One module of an adapter: the tensors that change one layer.
struct adapter_layer {
  std::string name;  ///< "lora_unet_mid_block_…", "unet.mid_block.….to_q"; as the file names it, or by its number (cloneofsimo)
  /// Parameter ("lora_down", "alpha", "hada_w1_a", …) and its tensor. Parameter names are those of detail::adapter_parameters.
  std::vector<std::pair<std::string_view, const catalog_entry*>> parameters{};
  std::optional<double> alpha{};  ///< from a configuration, for modules without a stored one
  bool rank_stabilised = false;   ///< that alpha is divided by √rank

  /// The tensor of a parameter, or an empty one.
  tensor_ref find(std::string_view parameter) const {
    const catalog_entry* const found = entry(parameter);
    return found ? found->tensor : tensor_ref{};
  }
  /// The entry of a parameter, or nullptr.
  const catalog_entry* entry(std::string_view parameter) const noexcept {
    for (const auto& [known, found] : parameters)
      if (known == parameter) return found;
    return nullptr;
  }
  bool has(std::string_view parameter) const noexcept { return entry(parameter) != nullptr; }
};

/// An adapter of the LoRA family. Refers to `tensors`, which it owns. Every tensor is a parameter of a module, part of an embedding, or unknown.
struct adapter {
  std::string file{};                         ///< for messages
  std::shared_ptr<const catalog> tensors{};
  adapter_description what{};
  std::vector<adapter_layer> modules{};       ///< sorted by name
  std::vector<std::string> unknown{};         ///< tensors that are no parameter of any algorithm
  std::vector<textual_inversion> embeddings{};  ///< bundled with it: bundle_emb.…, tokens of cloneofsimo
};

namespace detail {

/// The path of a module with dots below its component, without wrappers: what the patterns of a configuration are matched with.
inline std::string_view dotted_path(std::string_view module) noexcept {
  if (module.starts_with("base_model.model.")) module.remove_prefix(17);
  for (const std::string_view part : {"unet.", "text_encoder_2.", "text_encoder."})
    while (module.starts_with(part)) module.remove_prefix(part.size());
  return module;
}

/// Takes one adapter apart.
class adapter_reader {
 public:
  adapter_reader(const package& file, job& run) : file_(file), run_(run) { out_.file = file.source; }

  result<adapter> read() {
    TENSORSMITH_CHECK(collect());
    TENSORSMITH_CHECK(take_embeddings());
    auto what = recognize_adapter(*out_.tensors);
    if (!what || what->family == adapter_family::textual_inversion || what->family == adapter_family::hypernetwork) return no_adapter(what);
    out_.what = std::move(*what);
    TENSORSMITH_CHECK(out_.what.family == adapter_family::cloneofsimo ? number_modules() : split());
    TENSORSMITH_CHECK(configure());
    std::sort(out_.modules.begin(), out_.modules.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
    return std::move(out_);
  }

 private:
  failure refuse(errc code, std::string what, std::string place, std::string expected, std::string found, std::string advice = {}) const {
    return failure{.code = code, .what = std::move(what), .file = out_.file, .place = std::move(place), .expected = std::move(expected),
                   .found = std::move(found), .advice = std::move(advice)};
  }

  // --- one list of tensors -----------------------------------------------------------------------------------------------

  static bool is_list(const catalog& tensors) { return !tensors.empty() && tensors.entries()[0].name == "0" && paired_list_of(tensors).has_value(); }

  /// Whose pairs a list holds: a text encoder's layers are square, of one width.
  static std::string_view part_of_list(const catalog& tensors) {
    const std::size_t width = tensors.entries()[0].tensor.shape()[0];
    for (std::size_t i = 0; i < tensors.size(); i += 2) {
      const shape_type &up = tensors.entries()[i].tensor.shape(), &down = tensors.entries()[i + 1].tensor.shape();
      if (up[0] != width || down.size() != 2 || down[1] != width) return "unet";
    }
    return "text_encoder";
  }

  /// A name in a component's own adapter, as one of a whole pipeline. The wrapper stays: it tells what PEFT saved whole.
  static std::string below(const std::string& part, std::string_view name) {
    const std::string_view wrapper = name.starts_with("base_model.model.") ? "base_model.model." : "";
    return std::string(wrapper) + part + '.' + std::string(dotted_path(name));
  }

  /// Folders of one adapter a component, and lists without names, become one catalog with the names of whole pipelines.
  result<void> collect() {
    std::vector<catalog_entry> all;
    for (const component& part : file_.components) {
      const bool list = is_list(part.weights);
      const std::string_view owner = !part.name.empty() ? std::string_view(part.name) : list ? part_of_list(part.weights) : std::string_view();
      std::size_t i = 0;
      for (const catalog_entry& entry : part.weights.entries()) {
        catalog_entry& to = all.emplace_back(entry);
        if (list) to.name = std::string(owner) + ':' + std::to_string(i / 2) + (i % 2 == 0 ? ":up" : ":down");
        else if (!part.name.empty() && part.name != tokens_part) to.name = below(part.name, entry.name);
        ++i;
      }
      if (list)
        run_.info(out_.file, "a list of " + std::to_string(i / 2) + " pairs without names is read as cloneofsimo's for the " + std::string(owner));
    }
    catalog tensors;
    TENSORSMITH_CHECK(tensors.add_all(std::move(all)));
    out_.tensors = std::make_shared<const catalog>(std::move(tensors));
    return {};
  }

  /// A tensor that belongs to an embedding is shown to its reader; the others are not.
  result<void> take_embeddings() {
    package view;
    view.source = file_.source, view.container = file_.container;
    catalog& theirs = view.components.emplace_back().weights;
    const auto take = [&](std::string_view name) -> result<void> {
      const catalog_entry* const entry = out_.tensors->find(name);
      if (!entry || theirs.contains(name)) return {};
      if (theirs.size() == most_embeddings)
        return refuse(errc::limit, "the adapter bundles too many embeddings", {}, std::to_string(most_embeddings) + " at most", "more",
                      "no program writes such files");
      return theirs.add(entry->name, entry->tensor, entry->origin);
    };
    for (const catalog_entry& entry : out_.tensors->entries())
      if (std::string_view(entry.name).starts_with("bundle_emb.")) TENSORSMITH_CHECK(take(entry.name));
    for (const auto& [name, mark] : file_.metadata) {
      if (mark != "<embed>") continue;
      TENSORSMITH_CHECK(take(name));
      if (theirs.contains(name)) view.metadata.emplace_back(name, mark);
    }
    if (const component* tokens = file_.find(tokens_part))
      for (const catalog_entry& entry : tokens->weights.entries()) {
        TENSORSMITH_CHECK(take(entry.name));
        view.metadata.emplace_back(entry.name, "<embed>");
      }
    TENSORSMITH_TRY(out_.embeddings, read_bundled_embeddings(view));
    for (const textual_inversion& one : out_.embeddings) owned_.insert(owned_.end(), one.tensors.begin(), one.tensors.end());
    std::sort(owned_.begin(), owned_.end());
    return {};
  }
  bool is_embedding(const std::string& name) const { return std::binary_search(owned_.begin(), owned_.end(), name); }

  // --- refusals ----------------------------------------------------------------------------------------------------------

  failure no_adapter(const std::optional<adapter_description>& what) const {
    if (what)
      return refuse(errc::unsupported, "this kind of adapter cannot be merged into weights here", {}, "an adapter with the names of its modules",
                    std::string(name_of(what->family)),
                    what->family == adapter_family::textual_inversion ? "pass it as an embedding" : std::string());
    if (auto incomplete = no_module()) return std::move(*incomplete);
    std::string evidence;
    std::string found(recognize_network(*out_.tensors, evidence));
    if (found.empty()) found = model_by_names(evidence);
    return refuse(errc::unsupported, "the file is no adapter", evidence.empty() ? std::string() : "tensor " + quoted(evidence),
                  "a LoRA, LoHa, LoKr, (IA)3, GLoRA, OFT or DoRA adapter",
                  found.empty() ? std::to_string(out_.tensors->size()) + " other tensors" : found, "look at it with inspect");
  }
  /// Names of an adapter, and no module with all that its algorithm needs.
  std::optional<failure> no_module() const {
    std::size_t parameters = 0;
    adapter_key first;
    for (const catalog_entry& entry : out_.tensors->entries()) {
      adapter_key key = split_adapter_name(entry.name);
      if (key.bit == 0) continue;
      const bool telling = underscored_prefix(key.module) || has_text(entry.name, "lora_") || has_text(entry.name, ".lora.");
      if (telling && parameters++ == 0) first = std::move(key);
    }
    if (parameters == 0 || parameters * 2 < out_.tensors->size()) return std::nullopt;
    return refuse(errc::mismatch, "no module of the adapter has a complete set of parameters", "module " + quoted(first.module),
                  "lora_down and lora_up, or those of LoHa, LoKr, …", std::string(parameter_of_bit(first.bit)));
  }
  std::string model_by_names(std::string& evidence) const {
    for (const catalog_entry& entry : out_.tensors->entries()) {
      const std::string_view name = entry.name;
      evidence = entry.name;
      for (const std::string_view head : {"model.diffusion_model.", "cond_stage_model.", "conditioner."})
        if (name.starts_with(head)) return "a whole checkpoint";
      if (name.starts_with("down_blocks.") || name.starts_with("mid_block.") || name.starts_with("unet.down_blocks.")) return "the weights of a UNet";
    }
    evidence.clear();
    return {};
  }

  // --- modules by name ---------------------------------------------------------------------------------------------------

  result<void> split() {
    std::map<std::string, std::size_t> known;
    for (const catalog_entry& entry : out_.tensors->entries()) {
      if (is_embedding(entry.name)) continue;
      const adapter_key key = split_adapter_name(entry.name);
      const std::string_view parameter = parameter_of_bit(key.bit);
      if (parameter.empty()) {
        out_.unknown.push_back(entry.name);
        continue;
      }
      const auto [at, fresh] = known.emplace(key.module, out_.modules.size());
      if (fresh) out_.modules.push_back({key.module});
      adapter_layer& module = out_.modules[at->second];
      if (const catalog_entry* before = module.entry(parameter))
        return refuse(errc::mismatch, "a module has the same parameter twice", "tensor " + quoted(entry.name), "one " + std::string(parameter),
                      "also " + quoted(before->name));
      module.parameters.emplace_back(parameter, &entry);
    }
    return add_plain_numbers(known);
  }

  /// Numbers of a torch file that are no tensors: an alpha may be one.
  result<void> add_plain_numbers(const std::map<std::string, std::size_t>& known) {
    for (const auto& [path, value] : file_.scalars) {
      const std::string name = path.substr(path.rfind('/') + 1);
      const adapter_key key = split_adapter_name(name);
      if (key.bit == 0) continue;
      const auto at = known.find(key.module);
      const auto* whole = value.as_integer();
      const auto* real = value.as_double();
      if (key.bit != adapter_bit("alpha") || at == known.end() || (!whole && !real)) {
        run_.warn(out_.file, "the file has a plain number " + quoted(name) + " that is no parameter of any module and was ignored");
        continue;
      }
      const double alpha = whole ? static_cast<double>(*whole) : *real;
      if (!std::isfinite(alpha))
        return refuse(errc::numeric, "alpha is no finite number", "module " + quoted(key.module), "a finite number", std::to_string(alpha));
      out_.modules[at->second].alpha = alpha;
    }
    return {};
  }

  // --- modules by number -------------------------------------------------------------------------------------------------

  const std::string* metadata(std::string_view key) const {
    for (const auto& [known, value] : file_.metadata)
      if (known == key) return &value;
    return nullptr;
  }

  result<void> number_modules() {
    for (const catalog_entry& entry : out_.tensors->entries())
      if (cloneofsimo_part(entry.name).empty() && !is_embedding(entry.name)) out_.unknown.push_back(entry.name);
    TENSORSMITH_CHECK(number_part("unet"));
    return number_part("text_encoder");
  }

  result<void> number_part(std::string_view part) {
    std::vector<const catalog_entry*> ups, downs;
    TENSORSMITH_CHECK(find_pairs(part, ups, downs));
    if (ups.empty()) return {};
    std::vector<cloneofsimo_pair> pairs;
    for (std::size_t i = 0; i < ups.size(); ++i) pairs.push_back({ups[i]->tensor.shape(), downs[i]->tensor.shape()});
    std::optional<cloneofsimo_classes> classes;
    if (const std::string* text = metadata(part)) {
      TENSORSMITH_TRY(const std::vector<std::string> names, class_names(*text, part));
      if (part == "unet") {
        TENSORSMITH_TRY(classes, cloneofsimo_unet_classes(names, out_.file));
      } else if (names != std::vector<std::string>{"CLIPAttention"}) {
        return refuse(errc::unsupported, "the adapter numbers the layers of a class that is not known", "metadata 'text_encoder'", "CLIPAttention",
                      quoted(*text));
      }
    }
    TENSORSMITH_TRY(const std::vector<std::string> names,
                    part == "unet" ? name_cloneofsimo_unet(pairs, classes, out_.file) : name_cloneofsimo_text_encoder(pairs, out_.file));
    for (std::size_t i = 0; i < names.size(); ++i)
      out_.modules.push_back({std::string(part) + '.' + names[i], {{"lora_up", ups[i]}, {"lora_down", downs[i]}}});
    return {};
  }

  result<std::vector<std::string>> class_names(const std::string& text, std::string_view part) const {
    TENSORSMITH_TRY(const json_value list, parse_json(text, out_.file, run_.limits));
    std::vector<std::string> out;
    for (const json_value& name : list.as_array() ? *list.as_array() : json_value::array{json_value()}) {
      if (!name.as_string())
        return refuse(errc::malformed, "the metadata of the adapter do not list classes", "metadata " + quoted(part), "a list of names",
                      quoted(text));
      out.push_back(*name.as_string());
    }
    return out;
  }

  /// The tensors `part:0:up`, `part:0:down`, … in the order of their numbers.
  result<void> find_pairs(std::string_view part, std::vector<const catalog_entry*>& ups, std::vector<const catalog_entry*>& downs) const {
    std::size_t tensors = 0;
    for (const catalog_entry& entry : out_.tensors->entries()) tensors += cloneofsimo_part(entry.name) == part;
    for (std::size_t i = 0; 2 * i < tensors; ++i) {
      const std::string name = std::string(part) + ':' + std::to_string(i);
      const catalog_entry *const up = out_.tensors->find(name + ":up"), *const down = out_.tensors->find(name + ":down");
      if (!up || !down)
        return refuse(errc::mismatch, "a numbered pair of the adapter is not complete", "pair " + quoted(name), "up and down for each number",
                      up ? "up alone" : down ? "down alone" : "neither, of " + std::to_string(tensors) + " tensors");
      ups.push_back(up), downs.push_back(down);
    }
    return {};
  }

  // --- configurations ----------------------------------------------------------------------------------------------------

  /// The scales that stand beside the tensors: diffusers' lora_adapter_metadata, PEFT's adapter_config.json.
  result<void> configure() {
    if (const std::string* text = metadata("lora_adapter_metadata")) {
      TENSORSMITH_TRY(const json_value parsed, parse_json(*text, out_.file, run_.limits));
      TENSORSMITH_TRY(const auto configs, read_peft_metadata(parsed, out_.file));
      for (const auto& [part, config] : configs) TENSORSMITH_CHECK(apply(config, part));
    }
    for (const component& part : file_.components) {
      if (!part.config.as_object() || !part.config.find("peft_type")) continue;
      TENSORSMITH_TRY(const peft_config config, read_peft_config(part.config, out_.file));
      TENSORSMITH_CHECK(apply(config, part.name));
    }
    return {};
  }

  result<void> apply(const peft_config& config, std::string_view part) {
    std::size_t factors = 0, magnitudes = 0;
    const std::size_t patterns = config.alpha_pattern.size() + config.rank_pattern.size();
    if (patterns > most_matches / std::max<std::size_t>(1, out_.modules.size()))
      return refuse(errc::limit, "the adapter has too many patterns for its modules", {}, std::to_string(most_matches) + " comparisons at most",
                    std::to_string(patterns) + " patterns for " + std::to_string(out_.modules.size()) + " modules", "no program writes such files");
    for (adapter_layer& module : out_.modules) {
      if (!part.empty() && dotted_part(module.name) != part) continue;
      const bool low_rank = module.has("lora_down") || module.has("lora_embedding_A");
      if (!low_rank || underscored_prefix(module.name)) continue;
      ++factors;
      magnitudes += module.has("dora_scale");
      const std::string plain = plain_module(module.name);
      const std::string_view path = dotted_path(plain);
      const std::optional<double> alpha = config.alpha_of(path);
      if (module.alpha && alpha && *module.alpha != *alpha)
        return refuse(errc::mismatch, "two configurations of the adapter give a module different scales", "module " + quoted(module.name),
                      "alpha " + std::to_string(*module.alpha), std::to_string(*alpha));
      module.alpha = alpha;
      module.rank_stabilised = config.rank_stabilised;
      note_rank(config, module, path);
    }
    if (config.dora && factors > 0 && magnitudes == 0)
      return refuse(errc::mismatch, "the configuration says DoRA and the file has no magnitudes",
                    part.empty() ? std::string() : "part " + quoted(part), "lora_magnitude_vector beside the factors",
                    std::to_string(factors) + " modules without");
    return {};
  }

  /// Shapes decide; a configuration that says otherwise is worth a remark, once.
  void note_rank(const peft_config& config, const adapter_layer& module, std::string_view path) {
    const std::optional<double> said = config.rank_of(path);
    const tensor_ref down = module.find(module.has("lora_down") ? "lora_down" : "lora_embedding_A");
    if (!said || noted_rank_ || down.shape().empty() || static_cast<double>(down.shape()[0]) == *said) return;
    noted_rank_ = true;
    run_.warn(out_.file, "the configuration gives " + quoted(module.name) + " another rank than its tensors, which count");
  }

 public:
  /// The component of a package that holds the tokens of a `.ti.pt` beside a list of pairs.
  static constexpr std::string_view tokens_part = "tokens";

 private:
  static constexpr std::size_t most_embeddings = 4096;      // of each, its name is compared with those before it
  static constexpr std::size_t most_matches = 10'000'000;  // a pattern for each of SDXL's layers: one million

  const package& file_;
  job& run_;
  adapter out_;
  std::vector<std::string> owned_;  // tensors of embeddings, sorted
  bool noted_rank_ = false;
};

/// "X.pt" → "X.text_encoder.pt", what cloneofsimo's trainer writes beside it.
inline std::string beside(const std::string& path, std::string_view what) {
  const std::string_view ending = extension(file_name(path));
  return path.substr(0, path.size() - ending.size()) + '.' + std::string(what) + std::string(ending);
}

/// The configuration that PEFT writes beside its weights, null without. @fails as parse_json
inline result<json_value> adapter_config_in(const std::string& folder, job& run) {
  if (!os::is_regular_file(join_path(folder, "adapter_config.json"))) return json_value();
  return read_config(folder, "adapter_config.json", run.limits);
}

inline constexpr std::string_view peft_weight_names[] = {"adapter_model.safetensors", "adapter_model.bin"};

/// A folder of PEFT with its weights as one component. Nothing if it holds none.
inline result<std::optional<component>> open_peft_folder(const std::string& folder, std::string name, package& out, job& run) {
  for (const std::string_view file : peft_weight_names) {
    const std::string path = join_path(folder, file);
    if (!os::is_regular_file(path)) continue;
    TENSORSMITH_TRY(package opened, open_weights(path, {}, run));
    component part = std::move(opened.components[0]);
    part.name = std::move(name);
    TENSORSMITH_TRY(part.config, adapter_config_in(folder, run));
    if (out.container.empty()) out.container = opened.container, out.metadata = std::move(opened.metadata);
    return std::optional<component>(std::move(part));
  }
  return std::optional<component>();
}

/// @fails mismatch (no adapter in the folder)
inline result<package> open_adapter_folder(const std::string& path, job& run) {
  package out;
  out.source = path;
  TENSORSMITH_TRY(auto whole, open_peft_folder(path, {}, out, run));
  if (whole) {
    out.components.push_back(std::move(*whole));
    return out;
  }
  for (const std::string_view name : {"unet", "text_encoder", "text_encoder_2"}) {  // one adapter a component
    TENSORSMITH_TRY(auto part, open_peft_folder(join_path(path, name), std::string(name), out, run));
    if (part) out.components.push_back(std::move(*part));
  }
  if (!out.components.empty()) return out;
  for (const std::string_view name : {"pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"})
    if (const std::string file = join_path(path, name); os::is_regular_file(file)) return open_weights(file, {}, run);
  return failure{.code = errc::mismatch, .what = "the folder holds no adapter", .file = path,
                 .expected = "adapter_model.safetensors (with adapter_config.json), pytorch_lora_weights.safetensors, or one of them as .bin",
                 .found = "neither", .advice = "pass the file itself"};
}

/// The lists and tokens that belong to `X.pt`. @fails as open_weights; mismatch (a companion that is no list of pairs)
inline result<void> add_companions(const std::string& path, package& file, job& run) {
  const catalog& pairs = file.components[0].weights;
  if (pairs.empty() || pairs.entries()[0].name != "0" || !paired_list_of(pairs)) return {};
  const std::string text = beside(path, "text_encoder"), tokens = beside(path, "ti");
  const std::string_view stem = path;
  const auto is_companion = [&](std::string_view what) {
    const std::string tail = '.' + std::string(what) + std::string(extension(file_name(path)));
    return stem.ends_with(tail);
  };
  if (is_companion("text_encoder") || is_companion("ti")) return {};
  if (os::is_regular_file(text)) {
    TENSORSMITH_TRY(package other, open_weights(text, {}, run));
    if (!paired_list_of(other.components[0].weights))
      return failure{.code = errc::mismatch, .what = "the file beside the adapter is no list of pairs", .file = text,
                     .expected = "the text encoder's half of " + quoted(file_name(path)),
                     .found = std::to_string(other.components[0].weights.size()) + " other tensors"};
    file.components[0].name = "unet";
    other.components[0].name = "text_encoder";
    file.components.push_back(std::move(other.components[0]));
    run.info(path, "the text encoder's half is taken from " + quoted(text));
  }
  if (os::is_regular_file(tokens)) {
    TENSORSMITH_TRY(package other, open_weights(tokens, {}, run));
    other.components[0].name = std::string(adapter_reader::tokens_part);
    file.components.push_back(std::move(other.components[0]));
    run.info(path, "tokens are taken from " + quoted(tokens));
  }
  return {};
}

}  // namespace detail

/// Takes an opened adapter apart: what open_weights gives for a file; or one component each for "unet", "text_encoder" and "text_encoder_2" (folders
/// of PEFT). Scales come from stored alphas, from `lora_adapter_metadata` in the header, and from a component's configuration (adapter_config.json).
/// The layers of cloneofsimo's numbered pairs are those of SD1 and SD2. Remarks go to `run.notes`. Nothing but the list of tensors is read.
/// @fails unsupported (no adapter of the LoRA family, by what it is instead; configurations that are not understood), mismatch (a parameter twice;
/// numbered pairs that do not count the layers of a known model; half a pair), malformed and numeric (configurations)
inline result<adapter> read_adapter(const package& file, job& run) { return detail::adapter_reader(file, run).read(); }

/// The same for tensors alone. @fails as above
inline result<adapter> read_adapter(catalog tensors, std::string file) {
  package whole;
  whole.source = std::move(file);
  whole.components.emplace_back().weights = std::move(tensors);
  job run;
  return read_adapter(whole, run);
}

/// Opens an adapter: a file in any container, with the adapter_config.json beside PEFT's adapter_model.*, and with cloneofsimo's
/// X.text_encoder.pt and X.ti.pt beside X.pt; or a folder with PEFT's or diffusers' file names, or with one such folder for each
/// component. Pickles are read as data. @fails as open_weights and read_adapter
inline result<adapter> open_adapter(const std::string& path, job& run) {
  if (os::is_folder(path)) {
    TENSORSMITH_TRY(const package folder, detail::open_adapter_folder(path, run));
    return read_adapter(folder, run);
  }
  TENSORSMITH_TRY(package file, open_weights(path, {}, run));
  const std::string_view name = file_name(path);
  if (std::find(std::begin(detail::peft_weight_names), std::end(detail::peft_weight_names), name) != std::end(detail::peft_weight_names)) {
    TENSORSMITH_TRY(file.components[0].config, detail::adapter_config_in(std::string(parent_path(path)), run));
  }
  TENSORSMITH_CHECK(detail::add_companions(path, file, run));
  return read_adapter(file, run);
}

TENSORSMITH_END_NAMESPACE
