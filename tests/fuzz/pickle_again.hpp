// SPDX-License-Identifier: MIT
//
// tests/fuzz/pickle_again.hpp: a pickle_document written as a pickle again, and the comparison of two documents.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "fuzz/mutate_pickle.hpp"
#include "tensorsmith/format/torch/pickle_document.hpp"

namespace fuzz {

/// Writes the values of a document; what is shared stays shared.
class pickle_again {
 public:
  using id = tensorsmith::pickle_document::id;
  explicit pickle_again(const tensorsmith::pickle_document& doc) : doc_(doc) {}

  /// False for documents with a cycle through a tuple or an object: Python writes those in a way of its own.
  bool write(std::string& out) {
    text_ = "\x80\x04";
    if (!put(doc_.root())) return false;
    out = std::move(text_) + ".";
    return true;
  }

 private:
  using kind = tensorsmith::pickle_kind;

  void remember(id n) {
    known_.emplace(n, static_cast<std::uint32_t>(known_.size()));
    text_ += "r" + little_endian(known_[n], 4);
  }
  bool put_items(id n, const char* open, const char* close) {
    text_ += open;
    for (const id item : doc_.items(n))
      if (!put(item)) return false;
    text_ += close;
    return true;
  }
  bool container(id n, const char* made, const char* filled) {
    text_ += made;
    remember(n);
    return put_items(n, "(", filled);
  }
  /// Tuples, objects, storages: known only when complete.
  template <class Parts>
  bool composed(id n, Parts&& parts) {
    if (!open_.emplace(n, true).second || !parts()) return false;
    open_.erase(n);
    remember(n);
    return true;
  }

  bool put(id n) {
    if (const auto known = known_.find(n); known != known_.end()) return text_ += "j" + little_endian(known->second, 4), true;
    switch (doc_.kind(n)) {
      case kind::none: return text_ += 'N', true;
      case kind::boolean: return text_ += doc_.boolean(n) ? '\x88' : '\x89', true;
      case kind::integer: return text_ += "\x8A\x08" + little_endian(static_cast<std::uint64_t>(doc_.integer(n)), 8), true;
      case kind::big_integer:
        return text_ += std::string("\x8A") + static_cast<char>(doc_.text(n).size()) + std::string(doc_.text(n)), true;
      case kind::real: {
        std::string bits = little_endian(std::bit_cast<std::uint64_t>(doc_.real(n)), 8);
        return text_ += "G" + std::string(bits.rbegin(), bits.rend()), true;
      }
      case kind::text: return text_ += pickled_text(doc_.text(n)), true;
      case kind::bytes: return text_ += "B" + little_endian(doc_.text(n).size(), 4) + std::string(doc_.text(n)), true;
      case kind::global: return text_ += pickled_global(doc_.module(n), doc_.name(n)), true;
      case kind::list: return container(n, "]", "e");
      case kind::dict: return container(n, "}", "u");
      case kind::set: return container(n, "\x8F", "\x90");
      case kind::tuple:
        if (doc_.count(n) == 0) return text_ += ')', true;
        return composed(n, [&] { return put_items(n, "(", "t"); });
      case kind::storage: return composed(n, [&] { return put(doc_.persistent(n)) && (text_ += 'Q', true); });
      case kind::object: return composed(n, [&] { return object(n); });
      default: return false;
    }
  }
  bool object(id n) {
    constexpr id nothing = tensorsmith::pickle_document::nothing;
    if (!put(doc_.callable(n)) || !put(doc_.arguments(n))) return false;
    if (doc_.keywords(n) != nothing && !put(doc_.keywords(n))) return false;
    text_ += doc_.keywords(n) != nothing ? '\x92' : 'R';
    if (doc_.count(n) > 0 && !put_items(n, "(", "e")) return false;
    if (doc_.state(n) == nothing) return true;
    return put(doc_.state(n)) && (text_ += 'b', true);
  }

  const tensorsmith::pickle_document& doc_;
  std::string text_;
  std::unordered_map<id, std::uint32_t> known_;
  std::unordered_map<id, bool> open_;
};

/// True if two documents hold the same values, shared in the same places. Says where they differ.
inline bool same_document(const tensorsmith::pickle_document& a, const tensorsmith::pickle_document& b, std::string& where) {
  using tensorsmith::pickle_kind;
  using id = tensorsmith::pickle_document::id;
  std::unordered_map<id, id> partner;
  std::vector<std::pair<id, id>> todo{{a.root(), b.root()}};
  while (!todo.empty()) {
    const auto [x, y] = todo.back();
    todo.pop_back();
    where = "node made at byte " + std::to_string(a.at(x)) + ", " + std::string(name_of(a.kind(x)));
    if (a.kind(x) != b.kind(y)) return false;
    switch (a.kind(x)) {
      case pickle_kind::none: continue;
      case pickle_kind::boolean:
        if (a.boolean(x) != b.boolean(y)) return false;
        continue;
      case pickle_kind::integer:
        if (a.integer(x) != b.integer(y)) return false;
        continue;
      case pickle_kind::real:
        if (std::bit_cast<std::uint64_t>(a.real(x)) != std::bit_cast<std::uint64_t>(b.real(y))) return false;
        continue;
      case pickle_kind::big_integer:
      case pickle_kind::text:
      case pickle_kind::bytes:
      case pickle_kind::global:
        if (a.text(x) != b.text(y)) return false;
        continue;
      default: break;
    }
    const auto [known, fresh] = partner.emplace(x, y);
    if (!fresh) {
      if (known->second != y) return false;
      continue;
    }
    const auto left = a.children(x), right = b.children(y);
    if (left.size() != right.size()) return false;
    if (a.kind(x) == pickle_kind::object && a.count(x) != b.count(y)) return false;  // items and state apart
    for (std::size_t i = 0; i < left.size(); ++i) todo.emplace_back(left[i], right[i]);
  }
  return true;
}

}  // namespace fuzz
