// SPDX-License-Identifier: MIT
//
// tensorsmith/format/torch/pickle_document.hpp: what a pickle builds, as plain data: nodes that may be shared, no objects.
//
// Include this to walk the values of a pickle. pickle.hpp makes one; tensors.hpp finds the tensors in it.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/error.hpp"
#include "tensorsmith/format/torch/symbols.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Kinds of pickled values.
enum class pickle_kind : std::uint8_t {
  none,
  boolean,
  integer,
  big_integer,
  real,
  text,
  bytes,
  list,
  tuple,
  dict,
  set,
  global,   ///< a name of Python: module and name
  object,   ///< what a callable would make of arguments: callable, arguments, state, items; never made
  storage,    ///< a persistent id: its tuple
  reference,  ///< a persistent id that is only a number: a tensor described elsewhere (tar files of torch 0.1)
};

constexpr std::string_view name_of(pickle_kind kind) noexcept {
  constexpr std::string_view names[] = {"None",     "a boolean", "an integer", "a large integer", "a float",
                                        "a string", "bytes",     "a list",     "a tuple",         "a dict",
                                        "a set",    "a global",  "an object",  "a storage",     "a reference"};
  return names[static_cast<std::size_t>(kind)];
}

namespace detail {
/// Text of a file that reads better without quotes: as it is, or quoted where it holds what a terminal must not see.
inline std::string printable(std::string text) {
  std::string safe = quoted(text);
  return safe.size() == text.size() + 2 ? std::move(text) : std::move(safe);
}
}  // namespace detail

/// The values of one pickle. Nodes are numbered; a node may be part of several others, even of itself. 16 bytes a node, so
/// that a pickle costs a small multiple of its bytes whatever it says.
class pickle_document {
 public:
  using id = std::uint32_t;
  static constexpr id nothing = 0xFFFFFFFF;

  id root() const noexcept { return root_; }
  /// Offset behind STOP in the bytes that were parsed: where the next pickle of a stream starts.
  std::size_t end() const noexcept { return end_; }
  std::size_t size() const noexcept { return nodes_.size(); }
  pickle_kind kind(id n) const noexcept { return nodes_[n].kind; }
  /// Offset of the opcode that made the node.
  std::size_t at(id n) const noexcept { return bias_ + nodes_[n].at; }

  bool boolean(id n) const noexcept { return nodes_[n].a != 0; }
  std::int64_t integer(id n) const noexcept { return static_cast<std::int64_t>(wide(n)); }
  double real(id n) const noexcept { return std::bit_cast<double>(wide(n)); }
  /// Characters of a text, bytes of a bytes or a big integer (two's complement, little-endian).
  std::string_view text(id n) const noexcept {
    const node& v = nodes_[n];
    const char* base = v.flags & own_text ? own_.data() : reinterpret_cast<const char*>(input_->data());
    return {base + v.a, v.b};
  }
  /// Where the characters of a text or bytes lie in the bytes that were parsed, if they lie there as such.
  std::optional<std::size_t> input_offset(id n) const noexcept {
    if (nodes_[n].flags & own_text) return std::nullopt;
    return nodes_[n].a;
  }
  /// True for bytes, and for a str of Python 2, which stands for bytes as well.
  bool is_byte_string(id n) const noexcept {
    return kind(n) == pickle_kind::bytes || (kind(n) == pickle_kind::text && (nodes_[n].flags & raw_text) != 0);
  }
  bool is_text(id n, std::string_view value) const noexcept { return kind(n) == pickle_kind::text && text(n) == value; }

  std::string_view module(id global) const noexcept { return text(global).substr(0, text(global).find('\n')); }
  std::string_view name(id global) const noexcept { return text(global).substr(text(global).find('\n') + 1); }
  torch_symbol symbol(id global) const noexcept { return static_cast<torch_symbol>(nodes_[global].tag); }
  /// "module.name".
  std::string full_name(id global) const { return std::string(module(global)) + "." + std::string(name(global)); }

  /// Number of items of a container (of a dict: keys and values).
  std::size_t count(id n) const noexcept {
    if (kind(n) == pickle_kind::tuple) return nodes_[n].b;
    std::size_t sum = 0;
    for (std::uint32_t s = first_run(n); s != nothing; s = runs_[s].next) sum += runs_[s].count;
    return sum;
  }
  /// Items of a list, tuple, set; key, value, key, value… of a dict; what was appended to an object.
  std::vector<id> items(id n) const {
    std::vector<id> out;
    out.reserve(count(n));
    if (kind(n) == pickle_kind::tuple) {
      for (std::uint32_t i = 0; i < nodes_[n].b; ++i) out.push_back(items_[nodes_[n].a + i]);
      return out;
    }
    for (std::uint32_t s = first_run(n); s != nothing; s = runs_[s].next)
      for (std::uint32_t i = 0; i < runs_[s].count; ++i) out.push_back(items_[runs_[s].first + i]);
    return out;
  }
  /// Calls `see(key, value)` for each pair of a dict, in order, without a copy of them all.
  template <class See>
  void each_pair(id dict, See&& see) const {
    id key = nothing;
    for (std::uint32_t s = first_run(dict); s != nothing; s = runs_[s].next)
      for (std::uint32_t i = 0; i < runs_[s].count; ++i) {
        const id item = items_[runs_[s].first + i];
        if (key == nothing) {
          key = item;
        } else {
          see(key, item);
          key = nothing;
        }
      }
  }

  id callable(id object) const noexcept { return objects_[nodes_[object].a].callable; }
  id arguments(id object) const noexcept { return objects_[nodes_[object].a].arguments; }  ///< a tuple
  id keywords(id object) const noexcept { return objects_[nodes_[object].a].keywords; }    ///< a dict, or nothing
  id state(id object) const noexcept { return objects_[nodes_[object].a].state; }          ///< what BUILD gave, or nothing
  /// What the callable of an object means; unknown unless it is a known global.
  torch_symbol maker(id object) const noexcept {
    const id c = callable(object);
    return kind(c) == pickle_kind::global ? symbol(c) : torch_symbol::unknown;
  }
  /// The tuple of a storage, the number (or a text of digits) of a reference.
  id persistent(id storage) const noexcept { return nodes_[storage].a; }
  /// The global an object came from, for messages: "pytorch_lightning.callbacks.ModelCheckpoint".
  std::string class_of(id object) const {
    id c = object;
    for (int i = 0; i < 8 && kind(c) == pickle_kind::object; ++i) c = callable(c);
    return kind(c) == pickle_kind::global ? detail::printable(full_name(c)) : std::string(name_of(kind(c)));
  }

  /// Everything directly below a node.
  std::vector<id> children(id n) const {
    std::vector<id> out;
    switch (kind(n)) {
      case pickle_kind::list:
      case pickle_kind::tuple:
      case pickle_kind::dict:
      case pickle_kind::set:
        return items(n);
      case pickle_kind::object:
        out = items(n);
        for (const id c : {callable(n), arguments(n), keywords(n), state(n)})
          if (c != nothing) out.push_back(c);
        return out;
      case pickle_kind::storage:
      case pickle_kind::reference:
        return {persistent(n)};
      default:
        return out;
    }
  }

 private:
  friend class pickle_state;
  friend class pickle_machine;
  // flags: text lies in own_; a dict that Python gave attributes; a str of Python 2
  static constexpr std::uint8_t own_text = 1, mapping = 2, raw_text = 4;

  struct node {
    pickle_kind kind;
    std::uint8_t flags;
    std::uint16_t tag;  // depth of a container, symbol of a global
    std::uint32_t at, a, b;
  };
  struct run {
    std::uint32_t first, count, next;
  };  // items_[first, first + count), then another run
  struct object_parts {
    id callable, arguments, keywords, state;
    std::uint32_t head, tail;
  };

  std::uint64_t wide(id n) const noexcept { return nodes_[n].a | (static_cast<std::uint64_t>(nodes_[n].b) << 32); }
  std::uint32_t first_run(id n) const noexcept {
    return kind(n) == pickle_kind::object ? objects_[nodes_[n].a].head : nodes_[n].a;
  }

  std::shared_ptr<const std::vector<std::byte>> input_;
  std::string own_;
  std::deque<node> nodes_;
  std::deque<id> items_;
  std::deque<run> runs_;
  std::deque<object_parts> objects_;
  id root_ = nothing;
  std::size_t end_ = 0, bias_ = 0;
};

TENSORSMITH_END_NAMESPACE
