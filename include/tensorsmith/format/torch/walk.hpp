// SPDX-License-Identifier: MIT
//
// tensorsmith/format/torch/walk.hpp: where the weights sit in a checkpoint's top-level object, and what is left out of it.
//
// Included by read.hpp. The walk has no recursion, refuses cycles, and looks at no more values than a pickle may have opcodes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/json_value.hpp"
#include "tensorsmith/format/torch/tensors.hpp"
#include "tensorsmith/tensor/catalog.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Part of a checkpoint that was left out on purpose: "optimizer_states", "callbacks".
struct torch_ignored {
  std::string path;                  ///< keys from the top, joined with '/'
  std::string kind;                  ///< "a list", "an object"
  std::size_t tensors = 0;           ///< tensors inside
  std::vector<std::string> classes;  ///< Python classes named inside that mean nothing here, at most 16

  /// "optimizer_states: a list, 392 tensors, classes torch.optim.AdamW".
  std::string text() const {
    std::string out = detail::printable(path) + ": " + kind;
    if (tensors > 0) out += ", " + std::to_string(tensors) + (tensors == 1 ? " tensor" : " tensors");
    for (std::size_t i = 0; i < classes.size(); ++i) out += (i == 0 ? ", classes " : ", ") + classes[i];
    return out;
  }
};

/// What a torch checkpoint holds.
struct torch_checkpoint {
  catalog tensors;                     ///< in the order of the file, named below `selected`
  std::string selected;                ///< path of the dict the tensors come from: "state_dict"; empty for the top
  std::vector<torch_ignored> ignored;  ///< everything that is neither tensor nor scalar
  std::vector<std::pair<std::string, json_value>> scalars;  ///< "global_step" → 470000; numpy scalars become numbers
  std::vector<note> notes;
};

namespace detail {

/// Finds the weights in the values of a pickle.
class torch_walk {
 public:
  using id = pickle_document::id;
  static constexpr id none = pickle_document::nothing;
  torch_walk(const pickle_document& doc, torch_tensors& tensors, std::string file, std::string entry, const limits& bounds)
      : doc_(doc), tensors_(tensors), file_(std::move(file)), entry_(std::move(entry)), limits_(bounds) {}

  /// `select`: path of the dict to read, keys joined with '/'; empty to find it.
  result<torch_checkpoint> run(std::string_view select) {
    id node = doc_.root();
    TENSORSMITH_TRY(node, select.empty() ? find_weights(node) : follow(node, select));
    out_.selected = path_;
    TENSORSMITH_CHECK(visit(node, {}, path_));
    while (!frames_.empty()) TENSORSMITH_CHECK(next());
    if (out_.tensors.empty())
      return fail(errc::unsupported, doc_.root(), "the checkpoint holds no tensors", "a dict of tensors",
                  doc_.kind(doc_.root()) == pickle_kind::dict ? "keys " + keys_of(doc_.root()) : describe(doc_.root()));
    return std::move(out_);
  }

 private:
  struct frame {
    id owner;
    std::vector<id> items;  // key, value, … or values
    bool pairs;
    std::size_t at = 0;
    std::string prefix;  // of tensor names, with its dot
    std::string path;    // from the top, for messages
  };

  failure fail(errc code, id n, std::string what, std::string expected = {}, std::string found = {},
               std::string advice = {}) const {
    return failure{.code = code,
                   .what = std::move(what),
                   .file = file_,
                   .place = entry_ + ", byte offset " + std::to_string(doc_.at(n)),
                   .expected = std::move(expected),
                   .found = std::move(found),
                   .advice = std::move(advice)};
  }
  std::string describe(id n) const {
    return doc_.kind(n) == pickle_kind::object ? doc_.class_of(n) : std::string(name_of(doc_.kind(n)));
  }
  std::string keys_of(id dict) const {
    std::string out;
    const std::vector<id> pairs = doc_.items(dict);
    for (std::size_t i = 0; i < std::min<std::size_t>(pairs.size(), 20); i += 2)
      out += (i ? ", " : "") + (doc_.kind(pairs[i]) == pickle_kind::text ? quoted(doc_.text(pairs[i])) : describe(pairs[i]));
    return pairs.empty() ? "none" : pairs.size() > 20 ? out + ", …" : out;
  }
  std::string key_text(id key) const {
    switch (doc_.kind(key)) {
      case pickle_kind::text:
        return std::string(doc_.text(key));
      case pickle_kind::integer:
        return "<" + std::to_string(doc_.integer(key)) + ">";
      case pickle_kind::global:
        return "<" + doc_.full_name(key) + ">";
      default:
        return "<" + describe(key) + ">";
    }
  }
  static std::string joined(const std::string& path, const std::string& key) { return path.empty() ? key : path + "/" + key; }

  // --- choosing --------------------------------------------------------------------------------------------------------

  /// The value of a text key, or none.
  id value_of(id dict, std::string_view key) const {
    id found = none;
    doc_.each_pair(dict, [&](id k, id value) {
      if (doc_.is_text(k, key)) found = value;
    });
    return found;
  }

  result<id> find_weights(id node) {
    constexpr std::string_view wrappers[] = {"model", "net", "params", "params_ema", "generator", "module"};
    for (std::uint64_t depth = 0; depth < limits_.pickle_depth && doc_.kind(node) == pickle_kind::dict; ++depth) {
      std::string key = "state_dict";
      id inner = value_of(node, key);
      if (inner == none || (doc_.kind(inner) != pickle_kind::dict && !is_module(inner))) {
        inner = none;
        bool here = false;
        doc_.each_pair(node, [&](id, id value) { here = here || torch_tensors::is_torch_tensor(doc_, value); });
        if (here) return node;
        for (const std::string_view wrapper : wrappers) {
          const id value = value_of(node, wrapper);
          if (value == none || (doc_.kind(value) != pickle_kind::dict && !is_module(value))) continue;
          TENSORSMITH_TRY(const std::size_t held, survey(value, nullptr));
          if (held == 0) continue;
          inner = value;
          key = wrapper;
          break;
        }
      }
      if (inner == none) return node;
      TENSORSMITH_CHECK(descend(node, key, inner));
      node = inner;
    }
    return node;
  }

  result<id> follow(id node, std::string_view select) {
    for (std::size_t at = 0; at <= select.size();) {
      const std::size_t end = std::min(select.find('/', at), select.size());
      const std::string key(select.substr(at, end - at));
      const id inner = doc_.kind(node) == pickle_kind::dict ? value_of(node, key) : none;
      if (inner == none)
        return fail(errc::usage, node, "there is no " + quoted(key) + " to select",
                    doc_.kind(node) == pickle_kind::dict ? "one of " + keys_of(node) : "a dict", quoted(select));
      TENSORSMITH_CHECK(descend(node, key, inner));
      node = inner;
      at = end + 1;
    }
    return node;
  }

  /// Goes into `key` of a dict and lists what is beside it.
  result<void> descend(id dict, const std::string& key, id inner) {
    const std::vector<id> pairs = doc_.items(dict);
    for (std::size_t i = 0; i + 1 < pairs.size(); i += 2) {
      if (pairs[i + 1] == inner && doc_.is_text(pairs[i], key)) continue;
      TENSORSMITH_CHECK(set_aside(pairs[i + 1], joined(path_, key_text(pairs[i]))));
    }
    path_ = joined(path_, key);
    return {};
  }

  // --- leaving out -----------------------------------------------------------------------------------------------------

  result<void> spend(id n) {
    if (++visits_ <= limits_.pickle_opcodes) return {};
    return fail(errc::limit, n, "the checkpoint's values are shared so often that walking them takes too long",
                std::to_string(limits_.pickle_opcodes) + " steps at most", "more", "raise it with --max-pickle-opcodes");
  }
  /// Counts the tensors in a value, each shared value once; collects the unknown classes.
  result<std::size_t> survey(id start, std::vector<std::string>* classes) {
    if (seen_.size() != doc_.size()) seen_.assign(doc_.size(), 0);
    ++epoch_;
    std::size_t tensors = 0;
    std::vector<id> open{start};
    seen_[start] = epoch_;
    while (!open.empty()) {
      const id n = open.back();
      open.pop_back();
      TENSORSMITH_CHECK(spend(n));
      if (torch_tensors::is_tensor(doc_, n)) {
        ++tensors;
        continue;
      }
      if (classes && doc_.kind(n) == pickle_kind::global && doc_.symbol(n) == torch_symbol::unknown && classes->size() < 16) {
        const std::string name = doc_.full_name(n);
        const std::string shown = quoted(name) == "'" + name + "'" ? name : quoted(name);
        if (std::find(classes->begin(), classes->end(), shown) == classes->end()) classes->push_back(shown);
      }
      for (const id child : doc_.children(n))
        if (seen_[child] != epoch_) {
          seen_[child] = epoch_;
          open.push_back(child);
        }
    }
    return tensors;
  }
  result<void> set_aside(id value, const std::string& path) {
    if (auto scalar = scalar_of(value)) {
      const std::string* text = scalar->as_string();
      TENSORSMITH_CHECK(afford(value, sizeof(out_.scalars[0]) + path.size() + (text ? text->size() : 0)));
      out_.scalars.emplace_back(path, std::move(*scalar));
      return {};
    }
    torch_ignored left{path, std::string(name_of(doc_.kind(value))), 0, {}};
    if (doc_.kind(value) == pickle_kind::object) left.kind += " of " + quoted(doc_.class_of(value));
    TENSORSMITH_TRY(left.tensors, survey(value, &left.classes));
    std::size_t bytes = sizeof left + path.size() + left.kind.size();
    for (const std::string& name : left.classes) bytes += sizeof name + name.size();
    TENSORSMITH_CHECK(afford(value, bytes));
    out_.ignored.push_back(std::move(left));
    return {};
  }
  /// What is listed beside the tensors must stay small, however often a small file repeats itself.
  result<void> afford(id value, std::size_t bytes) {
    constexpr std::uint64_t most = 32u << 20;  // a vocabulary of 250,000 words
    left_out_bytes_ += bytes;
    if (left_out_bytes_ <= most) return {};
    return fail(errc::limit, value, "the checkpoint has too much beside its tensors", std::to_string(most) + " bytes of names and values at most",
                "more", "no program writes such files");
  }

  std::optional<json_value> scalar_of(id n) const {
    switch (doc_.kind(n)) {
      case pickle_kind::none:
        return json_value();
      case pickle_kind::boolean:
        return json_value(doc_.boolean(n));
      case pickle_kind::integer:
        return json_value(doc_.integer(n));
      case pickle_kind::real:
        return json_value(doc_.real(n));
      case pickle_kind::text:
        return json_value(doc_.text(n));
      case pickle_kind::object:
        return doc_.maker(n) == torch_symbol::numpy_scalar ? numpy_scalar_of(doc_, n) : std::nullopt;
      default:
        return std::nullopt;
    }
  }
  // --- walking ---------------------------------------------------------------------------------------------------------

  /// A dict of plain values so long that nobody wants each of them listed: a vocabulary.
  bool is_table(id dict) const {
    if (doc_.count(dict) < 2000) return false;
    bool plain = true;
    doc_.each_pair(dict, [&](id, id value) { plain = plain && doc_.children(value).empty(); });
    return plain;
  }
  /// A whole module that was pickled: an object whose state has _parameters and _modules.
  bool is_module(id n) const {
    if (doc_.kind(n) != pickle_kind::object || doc_.maker(n) != torch_symbol::unknown) return false;
    const id state = doc_.state(n);
    if (state == pickle_document::nothing || doc_.kind(state) != pickle_kind::dict) return false;
    const id parameters = value_of(state, "_parameters"), modules = value_of(state, "_modules");
    return parameters != none && modules != none && doc_.kind(parameters) == pickle_kind::dict &&
           doc_.kind(modules) == pickle_kind::dict;
  }

  result<void> enter(id owner, std::vector<id> items, bool pairs, std::string prefix, std::string path) {
    for (const frame& f : frames_)
      if (f.owner == owner)
        return fail(errc::malformed, owner, "the value at " + quoted(path) + " contains itself", "no cycle",
                    f.path.empty() ? "the top-level value" : quoted(f.path));
    if (frames_.size() >= limits_.pickle_depth)
      return fail(errc::limit, owner, "the checkpoint nests too deep", std::to_string(limits_.pickle_depth) + " levels at most",
                  "more", "raise it with --max-pickle-depth");
    frames_.push_back(frame{owner, std::move(items), pairs, 0, std::move(prefix), std::move(path)});
    return {};
  }

  result<void> next() {
    frame& top = frames_.back();
    if (top.at >= top.items.size()) {
      frames_.pop_back();
      return {};
    }
    if (!top.pairs) {
      const std::string index = std::to_string(top.at);
      return visit(top.items[top.at++], top.prefix + index, joined(top.path, index));
    }
    const id key = top.items[top.at], value = top.items[top.at + 1];
    top.at += 2;
    const std::string path = joined(top.path, key_text(key));
    if (doc_.kind(key) != pickle_kind::text) return set_aside(value, path);
    const std::string_view name = doc_.text(key);
    std::size_t bad = 0;
    if (!is_utf8(name, bad))
      return fail(errc::malformed, key, "a name is no UTF-8", "UTF-8", quoted(name) + ", wrong at byte " + std::to_string(bad));
    if (top.prefix.size() + name.size() > limits_.name_bytes)
      return fail(errc::limit, key, "a name is too long", std::to_string(limits_.name_bytes) + " bytes at most",
                  std::to_string(top.prefix.size() + name.size()), "raise it with --max-name");
    return visit(value, top.prefix + std::string(name), path);
  }

  result<void> visit(id value, std::string name, const std::string& path) {
    TENSORSMITH_CHECK(spend(value));
    if (torch_tensors::is_tensor(doc_, value)) {
      if (out_.tensors.size() >= limits_.tensors)
        return fail(errc::limit, value, "the checkpoint has too many tensors", std::to_string(limits_.tensors) + " at most",
                    "more", "raise it with --max-tensors");
      if (name.empty() && frames_.empty()) name = "tensor";
      TENSORSMITH_TRY(tensor_ref tensor, tensors_.make(value, path.empty() ? name : path));
      return out_.tensors.add(std::move(name), std::move(tensor), file_ + ": " + detail::printable(path));
    }
    const std::string prefix = name.empty() ? name : name + ".";
    switch (doc_.kind(value)) {
      case pickle_kind::dict:
        if (is_table(value)) return set_aside(value, path);
        return enter(value, doc_.items(value), true, prefix, path);
      case pickle_kind::list:
      case pickle_kind::tuple: {
        TENSORSMITH_TRY(const std::size_t held, survey(value, nullptr));
        if (held > 0) return enter(value, doc_.items(value), false, prefix, path);
        return set_aside(value, path);
      }
      case pickle_kind::object: {
        if (is_module(value)) return visit_module(value, prefix, path);
        std::vector<std::string> classes;
        TENSORSMITH_TRY(const std::size_t held, survey(value, &classes));
        if (held > 0)
          return fail(errc::unsupported, value,
                      std::to_string(held) + (held == 1 ? " tensor lies" : " tensors lie") + " inside an opaque object at " +
                          quoted(path),
                      "a dict of tensors", quoted(doc_.class_of(value)), "save the state_dict of the model alone");
        return set_aside(value, path);
      }
      default:
        return set_aside(value, path);
    }
  }

  /// Parameters, buffers and submodules of a pickled module, under the names its state_dict would have.
  result<void> visit_module(id module, const std::string& prefix, const std::string& path) {
    const id state = doc_.state(module);
    std::vector<id> items = doc_.items(value_of(state, "_parameters"));
    std::vector<std::string_view> transient;
    if (const id names = value_of(state, "_non_persistent_buffers_set"); names != none && doc_.kind(names) == pickle_kind::set)
      for (const id n : doc_.items(names))
        if (doc_.kind(n) == pickle_kind::text) transient.push_back(doc_.text(n));
    if (const id buffers = value_of(state, "_buffers"); buffers != none && doc_.kind(buffers) == pickle_kind::dict) {
      const std::vector<id> pairs = doc_.items(buffers);
      for (std::size_t i = 0; i + 1 < pairs.size(); i += 2) {
        const bool kept = doc_.kind(pairs[i]) != pickle_kind::text ||
                          std::find(transient.begin(), transient.end(), doc_.text(pairs[i])) == transient.end();
        if (kept)
          items.insert(items.end(), {pairs[i], pairs[i + 1]});
        else
          TENSORSMITH_CHECK(set_aside(pairs[i + 1], joined(path, key_text(pairs[i]))));
      }
    }
    const std::vector<id> modules = doc_.items(value_of(state, "_modules"));
    items.insert(items.end(), modules.begin(), modules.end());
    std::vector<id> present;
    for (std::size_t i = 0; i + 1 < items.size(); i += 2)
      if (doc_.kind(items[i + 1]) != pickle_kind::none) present.insert(present.end(), {items[i], items[i + 1]});
    return enter(module, std::move(present), true, prefix, path);
  }

  const pickle_document& doc_;
  torch_tensors& tensors_;
  std::string file_, entry_;
  limits limits_;
  torch_checkpoint out_;
  std::string path_;
  std::vector<frame> frames_;
  std::vector<std::uint32_t> seen_;
  std::uint32_t epoch_ = 0;
  std::uint64_t visits_ = 0, left_out_bytes_ = 0;
};

}  // namespace detail

TENSORSMITH_END_NAMESPACE
