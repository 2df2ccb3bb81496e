// SPDX-License-Identifier: MIT
//
// tensorsmith/format/torch/pickle_state.hpp: operands, nodes, stack, marks and memo of the pickle machine. Included by
// pickle.hpp.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/core/job.hpp"
#include "tensorsmith/format/torch/pickle_document.hpp"
#include "tensorsmith/format/torch/pickle_opcodes.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// What the persistent ids of a pickle look like: how it refers to data outside of itself.
enum class persistent_ids : std::uint8_t {
  storages,       ///< ("storage", class, key, location, numel): zip containers
  storage_views,  ///< the same with a sixth field, None or (key, offset, numel); and ("module", class, file, source): legacy streams
  numbers,        ///< numbers of tensors, and (class, file, source): tar files
  none,           ///< no data outside: a pickle of its own
};

/// What the machine works on. Functions that return false have set the error.
class pickle_state {
 public:
  pickle_state(std::shared_ptr<const std::vector<std::byte>> bytes, std::size_t start, std::string file, std::string entry,
               const limits& bounds, persistent_ids ids = persistent_ids::storages, std::size_t bias = 0)
      : bytes_(*bytes), at_(start), file_(std::move(file)), entry_(std::move(entry)), limits_(bounds), ids_(ids) {
    doc_.bias_ = bias;
    doc_.input_ = std::move(bytes);
    limits_.pickle_depth = std::min<std::uint64_t>(limits_.pickle_depth, 60000);  // depths are kept in 16 bits
  }

  /// True if the machine failed because the bytes ended: with more of them it may succeed.
  bool starved() const noexcept { return starved_; }

 protected:
  using id = pickle_document::id;
  using node = pickle_document::node;
  static constexpr id nothing = pickle_document::nothing;

  bool fail(errc code, std::string what, std::string expected = {}, std::string found = {}, std::string advice = {}) {
    if (error_) return false;
    std::string place = entry_.empty() ? "" : entry_ + ", ";
    if (op_at_ < bytes_.size()) place += "opcode " + pickle_opcode_name(op_) + " at ";
    place += "byte offset " + std::to_string(doc_.bias_ + op_at_);
    error_ = failure{.code = code,
                     .what = std::move(what),
                     .file = file_,
                     .place = std::move(place),
                     .expected = std::move(expected),
                     .found = std::move(found),
                     .advice = std::move(advice)};
    return false;
  }

  // --- bytes -------------------------------------------------------------------------------------------------------

  bool has(std::uint64_t count) {
    if (count <= bytes_.size() - at_) return true;
    starved_ = true;
    return fail(errc::malformed, "the pickle ends inside an operand", std::to_string(count) + " bytes",
                std::to_string(bytes_.size() - at_) + " left");
  }
  /// An unsigned little-endian operand, or nothing (error_ is set).
  std::optional<std::uint64_t> number(std::size_t width) {
    if (!has(width)) return std::nullopt;
    std::uint64_t value = 0;
    for (std::size_t i = width; i-- > 0;) value = (value << 8) | std::to_integer<std::uint64_t>(bytes_[at_ + i]);
    at_ += width;
    return value;
  }
  /// The text up to a line feed.
  std::optional<std::string_view> line() {
    const std::size_t most = static_cast<std::size_t>(std::min<std::uint64_t>(limits_.name_bytes, bytes_.size() - at_));
    const std::string_view rest(reinterpret_cast<const char*>(bytes_.data() + at_), most);
    const std::size_t end = rest.find('\n');
    if (end == rest.npos) {
      starved_ = most == bytes_.size() - at_;
      if (starved_)
        fail(errc::malformed, "a text operand does not end", "a line feed", "the end of the data");
      else
        fail(errc::limit, "a text operand is too long", std::to_string(most) + " bytes at most", "more",
             "raise it with --max-name");
      return std::nullopt;
    }
    at_ += end + 1;
    return rest.substr(0, end);
  }

  // --- nodes, stack, memo ------------------------------------------------------------------------------------------

  id add(pickle_kind kind, std::uint32_t a = nothing, std::uint32_t b = nothing, std::uint16_t tag = 0, std::uint8_t flags = 0) {
    doc_.nodes_.push_back(node{kind, flags, tag, static_cast<std::uint32_t>(op_at_), a, b});
    return static_cast<id>(doc_.nodes_.size() - 1);
  }
  id add_wide(pickle_kind kind, std::uint64_t value) {
    return add(kind, static_cast<std::uint32_t>(value), static_cast<std::uint32_t>(value >> 32));
  }
  /// A node over characters of the input.
  id add_input(pickle_kind kind, std::size_t offset, std::size_t length) {
    return add(kind, static_cast<std::uint32_t>(offset), static_cast<std::uint32_t>(length));
  }
  /// A node over characters that are not in the input as such.
  id add_own(pickle_kind kind, std::string_view text, std::uint16_t tag = 0) {
    const id n = add(kind, static_cast<std::uint32_t>(doc_.own_.size()), static_cast<std::uint32_t>(text.size()), tag,
                     pickle_document::own_text);
    doc_.own_ += text;
    if (const std::size_t most = bytes_.size() + (1u << 20); doc_.own_.size() > std::min<std::size_t>(most, 0x7FFFFFFF))
      fail(errc::limit, "the pickle makes the same texts again and again", std::to_string(most) + " bytes of them at most", "more",
           "no program writes such files");
    return n;
  }
  bool push(id n) {
    stack_.push_back(n);
    return true;
  }
  std::size_t floor() const noexcept { return marks_.empty() ? 0 : marks_.back(); }
  bool depth_of_stack(std::size_t count) {
    if (stack_.size() - floor() >= count) return true;
    return fail(errc::malformed, "the pickle takes values that are not on its stack", std::to_string(count) + " values",
                std::to_string(stack_.size() - floor()));
  }
  id pop() {
    const id n = stack_.back();
    stack_.pop_back();
    return n;
  }
  /// Takes the topmost mark away; returns where its items begin on the stack.
  std::optional<std::size_t> take_mark() {
    if (marks_.empty()) {
      fail(errc::malformed, "there is no MARK on the stack", "a MARK", "none");
      return std::nullopt;
    }
    const std::size_t first = marks_.back();
    marks_.pop_back();
    return first;
  }
  bool mark() {
    if (marks_.size() >= 4 * limits_.pickle_depth)
      return fail(errc::limit, "the pickle nests too deep", std::to_string(4 * limits_.pickle_depth) + " marks at most", "more",
                  "raise it with --max-pickle-depth");
    marks_.push_back(stack_.size());
    return true;
  }
  bool is_container(id n) const {
    switch (doc_.kind(n)) {
      case pickle_kind::list:
      case pickle_kind::tuple:
      case pickle_kind::dict:
      case pickle_kind::set:
      case pickle_kind::object:
      case pickle_kind::storage:
      case pickle_kind::reference:
        return true;
      default:
        return false;
    }
  }
  /// Notes that `child` lies in `parent`.
  bool nest(id parent, id child) {
    const std::uint64_t depth = is_container(child) ? doc_.nodes_[child].tag + std::uint64_t{1} : 1;
    if (depth > limits_.pickle_depth)
      return fail(errc::limit, "the pickle nests too deep", std::to_string(limits_.pickle_depth) + " levels at most",
                  std::to_string(depth), "raise it with --max-pickle-depth");
    std::uint16_t& tag = doc_.nodes_[parent].tag;
    if (child != parent) tag = std::max(tag, static_cast<std::uint16_t>(depth));
    return true;
  }
  bool make_tuple(std::size_t first) {
    if (first == stack_.size()) return push(empty_tuple_);
    const id n = add(pickle_kind::tuple, static_cast<std::uint32_t>(doc_.items_.size()),
                     static_cast<std::uint32_t>(stack_.size() - first));
    for (std::size_t i = first; i < stack_.size(); ++i) {
      if (!nest(n, stack_[i])) return false;
      doc_.items_.push_back(stack_[i]);
    }
    stack_.resize(first);
    return push(n);
  }
  /// Appends stack_[first, …) to a list, dict, set or object and takes them off the stack.
  bool extend(id target, std::size_t first) {
    const bool object = doc_.kind(target) == pickle_kind::object;
    std::uint32_t& head = object ? doc_.objects_[doc_.nodes_[target].a].head : doc_.nodes_[target].a;
    std::uint32_t& tail = object ? doc_.objects_[doc_.nodes_[target].a].tail : doc_.nodes_[target].b;
    for (std::size_t i = first; i < stack_.size(); ++i) {
      if (!nest(target, stack_[i])) return false;
      const std::uint32_t position = static_cast<std::uint32_t>(doc_.items_.size());
      if (tail == nothing || doc_.runs_[tail].first + doc_.runs_[tail].count != position) {
        doc_.runs_.push_back({position, 0, nothing});
        const std::uint32_t fresh = static_cast<std::uint32_t>(doc_.runs_.size() - 1);
        (tail == nothing ? head : doc_.runs_[tail].next) = fresh;
        tail = fresh;
      }
      doc_.items_.push_back(stack_[i]);
      ++doc_.runs_[tail].count;
    }
    stack_.resize(first);
    return true;
  }

  bool put(std::uint64_t key) {
    if (!depth_of_stack(1)) return false;
    // Keys come in order in all real files: a table. Any other key goes into a tree, which stays small.
    if (key < at_ + 64) {
      if (key >= memo_.size()) memo_.resize(static_cast<std::size_t>(key) + 1, nothing);
      if (memo_[key] == nothing && far_memo_.erase(key) == 0) ++memo_count_;
      memo_[key] = stack_.back();
    } else {
      if (far_memo_.insert_or_assign(key, stack_.back()).second) ++memo_count_;
      constexpr std::size_t most = 65536;
      if (far_memo_.size() > most)
        return fail(errc::limit, "the pickle uses its memo out of all order", std::to_string(most) + " keys out of order at most",
                    "more", "no program writes such files");
    }
    return true;
  }
  bool get(std::uint64_t key) {
    if (key < memo_.size() && memo_[key] != nothing) return push(memo_[key]);
    const auto far = far_memo_.find(key);
    if (far != far_memo_.end()) return push(far->second);
    return fail(errc::malformed, "the pickle reads memo " + std::to_string(key) + ", which was never set");
  }
  bool memo_line(bool store) {
    const auto text = line();
    if (!text) return false;
    std::uint32_t key = 0;
    const auto end = std::from_chars(text->data(), text->data() + text->size(), key);
    if (end.ec != std::errc{} || end.ptr != text->data() + text->size())
      return fail(errc::malformed, "the memo key is no number", "a decimal number", quoted(*text));
    return store ? put(key) : get(key);
  }

  const std::vector<std::byte>& bytes_;
  std::size_t at_;
  std::string file_, entry_;
  limits limits_;
  pickle_document doc_;
  std::deque<id> stack_;  // grows without a copy of it all
  std::vector<std::size_t> marks_;
  std::vector<id> memo_;
  std::map<std::uint64_t, id> far_memo_;
  std::uint64_t memo_count_ = 0;
  std::optional<failure> error_;
  std::uint8_t op_ = 0;
  std::size_t op_at_ = 0;
  persistent_ids ids_;
  bool starved_ = false;
  id none_ = 0, false_ = 0, true_ = 0, empty_tuple_ = 0;
};

TENSORSMITH_END_NAMESPACE
