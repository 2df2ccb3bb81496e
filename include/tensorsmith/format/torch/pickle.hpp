// SPDX-License-Identifier: MIT
//
// tensorsmith/format/torch/pickle.hpp: Python's pickle format, protocols 2 to 5, read as data. Nothing is executed.
//
// Include this to turn the bytes of a pickle into a pickle_document. The machine has no recursion; every length is compared
// with the bytes that are left before anything is allocated.
#pragma once

#include <bit>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensorsmith/format/torch/pickle_state.hpp"

TENSORSMITH_BEGIN_NAMESPACE

/// Runs one pickle program. Use through parse_pickle.
class pickle_machine : private pickle_state {
 public:
  using pickle_state::pickle_state;
  using pickle_state::starved;

  /// Runs up to STOP. With `whole`, bytes behind STOP are an error.
  result<pickle_document> run(bool whole) {
    if (bytes_.size() > limits_.pickle_bytes || bytes_.size() > 0x7FFFFFFF)
      fail(errc::limit, "the pickle is too large", std::to_string(limits_.pickle_bytes) + " bytes at most",
           std::to_string(bytes_.size()), "raise it with --max-pickle");
    none_ = add(pickle_kind::none);
    false_ = add(pickle_kind::boolean, 0);
    true_ = add(pickle_kind::boolean, 1);
    empty_tuple_ = add(pickle_kind::tuple, 0, 0);
    const std::size_t start = at_;
    std::uint64_t opcodes = 0;
    while (!error_ && doc_.root_ == pickle_document::nothing) {
      op_at_ = at_;
      if (at_ == bytes_.size()) {
        starved_ = true;
        fail(errc::malformed, "the pickle has no STOP", "an opcode", "the end of the data");
        break;
      }
      op_ = std::to_integer<std::uint8_t>(bytes_[at_++]);
      if (op_at_ == start && op_ != 0x80)
        fail(errc::unsupported, "the pickle does not name its protocol", "PROTO 2 to 5",
             "another opcode: protocol 0 or 1, or no pickle");
      else if (++opcodes > limits_.pickle_opcodes)
        fail(errc::limit, "the pickle has too many opcodes", std::to_string(limits_.pickle_opcodes) + " at most", "more",
             "raise it with --max-pickle-opcodes");
      else
        step(start);
    }
    if (!error_ && whole && at_ != bytes_.size())
      fail(errc::malformed, std::to_string(bytes_.size() - at_) + " trailing bytes follow STOP", "the end of the data",
           std::to_string(bytes_.size() - at_) + " bytes");
    if (error_) return std::move(*error_);
    doc_.end_ = at_;
    return std::move(doc_);
  }

 private:
  using id = pickle_document::id;

  bool step(std::size_t start) {
    switch (op_) {
      case 0x80:
        return protocol(start);
      case 0x95:
        return frame();
      case '.':
        return stop();
      case '(':
        return mark();
      case '}':
        return push(add(pickle_kind::dict));
      case ']':
        return push(add(pickle_kind::list));
      case 0x8F:
        return push(add(pickle_kind::set));
      case ')':
        return push(empty_tuple_);
      case 'N':
        return push(none_);
      case 0x88:
        return push(true_);
      case 0x89:
        return push(false_);
      case 'K':
      case 'M':
      case 'J':
      case 0x8A:
      case 0x8B:
      case 'G':
        return binary_number();
      case 'I':
      case 'L':
      case 'F':
        return text_number();
      case 'X':
        return counted(pickle_kind::text, 4);
      case 0x8C:
        return counted(pickle_kind::text, 1);
      case 0x8D:
        return counted(pickle_kind::text, 8);
      case 'U':
        return counted(pickle_kind::text, 1);
      case 'T':
        return counted(pickle_kind::text, 4);
      case 'C':
        return counted(pickle_kind::bytes, 1);
      case 'B':
        return counted(pickle_kind::bytes, 4);
      case 0x8E:
      case 0x96:
        return counted(pickle_kind::bytes, 8);
      case 'S':
        return quoted_text();
      case 'V':
        return escaped_text();
      default:
        return step_on_values();
    }
  }
  /// The opcodes that take values from the stack.
  bool step_on_values() {
    switch (op_) {
      case 't':
        return tuple_from_mark();
      case 0x85:
      case 0x86:
      case 0x87:
        return depth_of_stack(op_ - 0x84U) && make_tuple(stack_.size() - (op_ - 0x84U));
      case 'l':
        return from_mark(pickle_kind::list);
      case 'd':
        return from_mark(pickle_kind::dict);
      case 0x91:
        return from_mark(pickle_kind::set);
      case 'a':
        return depth_of_stack(2) && append(stack_.size() - 1);
      case 's':
        return depth_of_stack(3) && set_items(stack_.size() - 2);
      case 'e':
      case 'u':
      case 0x90:
        return onto_mark();
      case '0':
        return drop();
      case '1':
        return drop_mark();
      case '2':
        return depth_of_stack(1) && push(stack_.back());
      case 'p':
        return memo_line(true);
      case 'g':
        return memo_line(false);
      case 'q':
      case 'r':
      case 0x94:
        return put_binary();
      case 'h':
      case 'j':
        return get_binary();
      case 'c':
        return global_line();
      case 0x93:
        return stack_global();
      case 'R':
      case 0x81:
        return depth_of_stack(2) && call(pickle_document::nothing);
      case 0x92:
        return call_with_keywords();
      case 'i':
      case 'o':
        return old_object();
      case 'b':
        return build();
      case 'Q':
        return persistent_id();
      case 'P':
        return fail(errc::malformed, "a persistent id is a line of text", "a tuple (\"storage\", …)", "text");
      default:
        return refuse();
    }
  }

  bool refuse() {
    for (const auto& row : detail::opcode_rows)
      if (row.code == op_)
        return fail(errc::unsupported, "the opcode has no place in a weight file",
                    "none of EXT1, EXT2, EXT4, NEXT_BUFFER, READONLY_BUFFER", std::string(row.name));
    return fail(errc::malformed, "there is no such opcode", "an opcode of pickle protocol 2 to 5", pickle_opcode_name(op_));
  }
  bool protocol(std::size_t start) {
    const auto version = number(1);
    if (!version) return false;
    if (op_at_ != start) return fail(errc::unsupported, "PROTO stands inside the pickle", "PROTO once, as the first opcode");
    if (*version < 2 || *version > 5)
      return fail(errc::unsupported, "the pickle's protocol is not supported", "2 to 5", std::to_string(*version));
    return true;
  }
  bool frame() {
    const auto length = number(8);
    return length && has(*length);
  }
  bool stop() {
    if (!depth_of_stack(1)) return false;
    if (stack_.size() != 1 || !marks_.empty())
      return fail(errc::malformed, "values are left on the stack at the end", "1 value and no mark",
                  std::to_string(stack_.size()) + " values and " + std::to_string(marks_.size()) + " marks");
    doc_.root_ = stack_.back();
    return true;
  }

  // --- numbers and texts ---------------------------------------------------------------------------------------------

  bool push_integer(std::int64_t value) { return push(add_wide(pickle_kind::integer, static_cast<std::uint64_t>(value))); }
  bool binary_number() {
    const std::size_t width = op_ == 'K' || op_ == 0x8A ? 1 : op_ == 'M' ? 2 : op_ == 'G' ? 8 : 4;
    const auto value = number(width);
    if (!value) return false;
    if (op_ == 'J') return push_integer(static_cast<std::int32_t>(static_cast<std::uint32_t>(*value)));
    if (op_ == 0x8A || op_ == 0x8B) return long_integer(*value);
    if (op_ != 'G') return push_integer(static_cast<std::int64_t>(*value));
    std::uint64_t bits = 0;  // BINFLOAT is big-endian
    for (int i = 0; i < 8; ++i) bits = (bits << 8) | ((*value >> (8 * i)) & 0xFF);
    return push(add_wide(pickle_kind::real, bits));
  }
  bool long_integer(std::uint64_t length) {
    if (length > limits_.pickle_integer_bytes)
      return fail(errc::limit, "the integer is too large", std::to_string(limits_.pickle_integer_bytes) + " bytes at most",
                  length > 0x7FFFFFFF ? "a negative length" : std::to_string(length), "raise it with --max-pickle-integer");
    if (!has(length)) return false;
    const std::size_t first = at_;
    at_ += static_cast<std::size_t>(length);
    const bool negative = length > 0 && (bytes_[at_ - 1] & std::byte{0x80}) != std::byte{0};
    std::uint64_t value = negative ? ~std::uint64_t{0} : 0;
    bool wide = false;
    for (std::size_t i = static_cast<std::size_t>(length); i-- > 0;) {
      const auto byte = std::to_integer<std::uint64_t>(bytes_[first + i]);
      if (i >= 8)
        wide = wide || byte != (negative ? 0xFFU : 0U);
      else
        value = (value << 8) | byte;
    }
    wide = wide || (length > 8 && ((value >> 63) != 0) != negative);
    return wide ? push(add_input(pickle_kind::big_integer, first, static_cast<std::size_t>(length)))
                : push_integer(static_cast<std::int64_t>(value));
  }
  bool text_number() {
    auto text = line();
    if (!text) return false;
    if (op_ == 'I' && (*text == "00" || *text == "01")) return push(*text == "01" ? true_ : false_);
    if (op_ == 'L' && !text->empty() && text->back() == 'L') text->remove_suffix(1);
    if (op_ != 'F' && text->size() > 40)
      return fail(errc::limit, "the integer is too large", "40 digits at most", std::to_string(text->size()),
                  "no option raises this");
    std::string_view digits = *text;
    if (digits.size() > 1 && digits[0] == '+' && digits[1] != '-') digits.remove_prefix(1);
    const char *first = digits.data(), *last = digits.data() + digits.size();
    double real = 0;
    std::int64_t integer = 0;
    const auto end = op_ == 'F' ? std::from_chars(first, last, real) : std::from_chars(first, last, integer);
    if (end.ec == std::errc::result_out_of_range && op_ != 'F')
      return fail(errc::limit, "the integer in text form does not fit 64 bits", "64 bits at most", quoted(*text),
                  "no option raises this");
    if (end.ec != std::errc{} || end.ptr != last)
      return fail(errc::malformed, "the text is no number", "a number in C notation", quoted(*text));
    return op_ == 'F' ? push(add_wide(pickle_kind::real, std::bit_cast<std::uint64_t>(real))) : push_integer(integer);
  }
  bool counted(pickle_kind kind, std::size_t width) {
    const auto length = number(width);
    if (!length || !has(*length)) return false;
    const std::size_t first = at_;
    at_ += static_cast<std::size_t>(*length);
    const bool raw = op_ == 'U' || op_ == 'T';
    return push(add(kind, static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(*length), 0,
                    raw ? pickle_document::raw_text : std::uint8_t{0}));
  }
  static int hex_digit(char c) noexcept {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
  }
  /// The number of `count` hexadecimal digits at `at`, or nothing.
  static std::optional<std::uint32_t> hex_number(std::string_view text, std::size_t at, std::size_t count) noexcept {
    if (text.size() - at < count) return std::nullopt;
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const int digit = hex_digit(text[at + i]);
      if (digit < 0) return std::nullopt;
      value = (value << 4) | static_cast<std::uint32_t>(digit);
    }
    return value;
  }
  static void append_utf8(std::string& out, std::uint32_t point) {
    const auto put_byte = [&](std::uint32_t byte) { out += static_cast<char>(static_cast<unsigned char>(byte)); };
    if (point < 0x80) return put_byte(point);
    if (point < 0x800) return put_byte(0xC0 | (point >> 6)), put_byte(0x80 | (point & 0x3F));
    if (point < 0x10000) {
      put_byte(0xE0 | (point >> 12)), put_byte(0x80 | ((point >> 6) & 0x3F)), put_byte(0x80 | (point & 0x3F));
      return;
    }
    put_byte(0xF0 | (point >> 18)), put_byte(0x80 | ((point >> 12) & 0x3F)), put_byte(0x80 | ((point >> 6) & 0x3F)),
        put_byte(0x80 | (point & 0x3F));
  }
  /// STRING: Python's repr of a str, with its escapes.
  bool quoted_text() {
    const auto text = line();
    if (!text) return false;
    if (text->size() < 2 || (text->front() != '\'' && text->front() != '"') || text->front() != text->back())
      return fail(errc::malformed, "the string is not in quotes", "'…' or \"…\"", quoted(*text));
    const std::string_view inner = text->substr(1, text->size() - 2);
    std::string out;
    for (std::size_t i = 0; i < inner.size(); ++i) {
      if (inner[i] != '\\') {
        out += inner[i];
        continue;
      }
      const char c = ++i < inner.size() ? inner[i] : '\0';
      constexpr std::string_view letters = "\\'\"nrtabfv0";
      constexpr std::string_view values("\\'\"\n\r\t\a\b\f\v\0", 11);
      const auto byte = c == 'x' ? hex_number(inner, i + 1, 2) : std::nullopt;
      if (byte) {
        out += static_cast<char>(static_cast<unsigned char>(*byte));
        i += 2;
      } else if (c != '\0' && letters.find(c) != letters.npos) {
        out += values[letters.find(c)];
      } else {
        return fail(errc::malformed, "the string has an unknown escape", "an escape of Python's repr", quoted(*text));
      }
    }
    return push(add_own(pickle_kind::text, out));
  }
  /// UNICODE: raw-unicode-escape, Latin-1 with \uXXXX and \UXXXXXXXX.
  bool escaped_text() {
    const auto text = line();
    if (!text) return false;
    std::string out;
    for (std::size_t i = 0; i < text->size(); ++i) {
      const char c = (*text)[i], kind = i + 1 < text->size() ? (*text)[i + 1] : '\0';
      if (c != '\\' || (kind != 'u' && kind != 'U')) {
        append_utf8(out, static_cast<unsigned char>(c));
        continue;
      }
      const std::size_t digits = kind == 'u' ? 4 : 8;
      const auto point = hex_number(*text, i + 2, digits);
      if (!point || *point > 0x10FFFF)
        return fail(errc::malformed, "the string has a damaged escape", "\\uXXXX or \\UXXXXXXXX", quoted(*text));
      append_utf8(out, *point);
      i += 1 + digits;
    }
    return push(add_own(pickle_kind::text, out));
  }

  // --- containers ------------------------------------------------------------------------------------------------------

  bool tuple_from_mark() {
    const auto first = take_mark();
    return first && make_tuple(*first);
  }
  bool from_mark(pickle_kind kind) {
    const auto first = take_mark();
    if (!first) return false;
    if (kind == pickle_kind::dict && (stack_.size() - *first) % 2 != 0)
      return fail(errc::malformed, "a dict gets a key without a value", "pairs",
                  std::to_string(stack_.size() - *first) + " values");
    const id n = add(kind);
    return extend(n, *first) && push(n);
  }
  bool onto_mark() {
    const auto first = take_mark();
    if (!first) return false;
    if (*first <= floor())
      return fail(errc::malformed, "the pickle takes values that are not on its stack", "a container below the mark", "none");
    if (op_ == 'u') return set_items(*first);
    return append(*first);
  }
  /// True for objects whose class is not known: whatever is put into them is kept.
  bool is_opaque(id n) const { return doc_.kind(n) == pickle_kind::object && doc_.maker(n) == torch_symbol::unknown; }
  bool wrong_target(std::string_view wanted) {
    const id n = stack_.back();
    const std::string found = doc_.kind(n) == pickle_kind::object ? doc_.class_of(n) : std::string(name_of(doc_.kind(n)));
    return fail(errc::malformed, "the value cannot take items", std::string(wanted), found);
  }
  bool append(std::size_t first) {
    const id target = stack_[first - 1];
    const pickle_kind wanted = op_ == 0x90 ? pickle_kind::set : pickle_kind::list;
    if (doc_.kind(target) == wanted || is_opaque(target)) return extend(target, first);
    stack_.resize(first);
    return wrong_target(name_of(wanted));
  }
  bool set_items(std::size_t first) {
    const id target = stack_[first - 1];
    if ((stack_.size() - first) % 2 != 0)
      return fail(errc::malformed, "a dict gets a key without a value", "pairs",
                  std::to_string(stack_.size() - first) + " values");
    if (doc_.kind(target) == pickle_kind::dict || is_opaque(target)) return extend(target, first);
    stack_.resize(first);
    return wrong_target("a dict");
  }
  bool drop() {
    if (stack_.size() > floor()) return stack_.pop_back(), true;
    return take_mark().has_value();
  }
  bool drop_mark() {
    const auto first = take_mark();
    if (first) stack_.resize(*first);
    return first.has_value();
  }
  bool put_binary() {
    if (op_ == 0x94) return put(memo_count_);
    const auto key = number(op_ == 'q' ? 1 : 4);
    return key && put(*key);
  }
  bool get_binary() {
    const auto key = number(op_ == 'h' ? 1 : 4);
    return key && get(*key);
  }

  // --- globals and objects -----------------------------------------------------------------------------------------------

  bool admit_global(std::string_view module, std::string_view name) {
    if (limits_.allow_suspicious || !is_blocked_global(module, name)) return true;
    // pickle.dump of a tensor packs its storage so; torch.save never does.
    if (ids_ == persistent_ids::none && symbol_of(module, name) == torch_symbol::packed_storage) return true;
    return fail(errc::unsupported,
                "the pickle names " + quoted(std::string(module) + "." + std::string(name)) + ", which no weight file needs",
                "names of tensors and containers", "a way to run code",
                "nothing was run; --allow-suspicious reads the weights all the same");
  }
  /// Pushes a global; its text "module\nname" lies in the input or, with `own`, is copied.
  bool push_global(std::size_t offset, std::string_view both, bool own) {
    const std::string_view module = both.substr(0, both.find('\n')), name = both.substr(both.find('\n') + 1);
    if (!admit_global(module, name)) return false;
    const auto tag = static_cast<std::uint16_t>(symbol_of(module, name));
    return push(own ? add_own(pickle_kind::global, both, tag)
                    : add(pickle_kind::global, static_cast<std::uint32_t>(offset), static_cast<std::uint32_t>(both.size()), tag));
  }
  bool global_line() {
    const std::size_t first = at_;
    const auto module = line();
    if (!module) return false;
    const auto name = line();
    return name && push_global(first, {module->data(), module->size() + 1 + name->size()}, false);
  }
  bool stack_global() {
    if (!depth_of_stack(2)) return false;
    const id name = pop(), module = pop();
    if (doc_.kind(name) != pickle_kind::text || doc_.kind(module) != pickle_kind::text)
      return fail(errc::malformed, "a global needs two strings", "a module and a name",
                  std::string(name_of(doc_.kind(module))) + " and " + std::string(name_of(doc_.kind(name))));
    if (doc_.text(name).size() > limits_.name_bytes || doc_.text(module).size() > limits_.name_bytes)
      return fail(errc::limit, "the name of a global is too long", std::to_string(limits_.name_bytes) + " bytes at most", "more",
                  "raise it with --max-name");
    if (doc_.text(name).find('\n') != std::string_view::npos || doc_.text(module).find('\n') != std::string_view::npos)
      return fail(errc::malformed, "the name of a global has a line feed in it", "one line", quoted(doc_.text(name)));
    return push_global(0, std::string(doc_.text(module)) + "\n" + std::string(doc_.text(name)), true);
  }
  bool call_with_keywords() {
    if (!depth_of_stack(3)) return false;
    const id keywords = pop();
    if (doc_.kind(keywords) != pickle_kind::dict)
      return fail(errc::malformed, "keyword arguments are no dict", "a dict", std::string(name_of(doc_.kind(keywords))));
    return call(doc_.count(keywords) == 0 ? pickle_document::nothing : keywords);
  }
  bool old_object() {
    id callable = pickle_document::nothing;
    if (op_ == 'i') {
      if (!global_line()) return false;
      callable = pop();
    }
    const auto first = take_mark();
    if (!first) return false;
    std::size_t arguments = *first;
    if (op_ == 'o') {
      if (arguments == stack_.size())
        return fail(errc::malformed, "the pickle takes values that are not on its stack", "a class", "nothing");
      callable = stack_[arguments++];
    }
    if (!make_tuple(arguments)) return false;
    const id packed = pop();
    stack_.resize(*first);
    stack_.push_back(callable);
    stack_.push_back(packed);
    return call(pickle_document::nothing);
  }
  /// REDUCE and its kin: containers are made, tensors and unknown objects are noted down with callable and arguments.
  bool call(id keywords) {
    const id arguments = pop(), callable = pop();
    const pickle_kind kind = doc_.kind(callable);
    if (doc_.kind(arguments) != pickle_kind::tuple)
      return fail(errc::malformed, "the arguments of a call are no tuple", "a tuple", std::string(name_of(doc_.kind(arguments))));
    if (kind != pickle_kind::global && !is_opaque(callable))
      return fail(errc::malformed, "the value cannot be called", "a global", std::string(name_of(kind)));
    const torch_symbol symbol = kind == pickle_kind::global ? doc_.symbol(callable) : torch_symbol::unknown;
    if (symbol != torch_symbol::unknown) {
      if (keywords != pickle_document::nothing) return bad_call(callable, "no keyword arguments", arguments);
      if (is_container_maker(symbol)) return make_container(symbol, callable, doc_.items(arguments), arguments);
    }
    doc_.objects_.push_back(
        {callable, arguments, keywords, pickle_document::nothing, pickle_document::nothing, pickle_document::nothing});
    const id n = add(pickle_kind::object, static_cast<std::uint32_t>(doc_.objects_.size() - 1));
    return nest(n, callable) && nest(n, arguments) && (keywords == pickle_document::nothing || nest(n, keywords)) && push(n);
  }
  bool bad_call(id callable, std::string expected, id arguments) {
    return fail(errc::malformed, quoted(doc_.full_name(callable)) + " is called with wrong arguments", std::move(expected),
                std::to_string(doc_.count(arguments)) + " arguments");
  }
  static bool is_container_maker(torch_symbol s) noexcept {
    switch (s) {
      case torch_symbol::ordered_dict:
      case torch_symbol::default_dict:
      case torch_symbol::counter:
      case torch_symbol::plain_dict:
      case torch_symbol::plain_list:
      case torch_symbol::plain_tuple:
      case torch_symbol::set:
      case torch_symbol::bytes:
      case torch_symbol::bytearray:
      case torch_symbol::encode:
      case torch_symbol::size:
        return true;
      default:
        return false;
    }
  }
  bool make_container(torch_symbol symbol, id callable, std::vector<id> given, id arguments) {
    const auto is = [&](std::size_t i, pickle_kind k) { return i < given.size() && doc_.kind(given[i]) == k; };
    const bool sequence = is(0, pickle_kind::list) || is(0, pickle_kind::tuple) || is(0, pickle_kind::set);
    switch (symbol) {
      case torch_symbol::default_dict:
        if (!given.empty()) given.erase(given.begin());
        [[fallthrough]];
      case torch_symbol::ordered_dict:
      case torch_symbol::counter:
      case torch_symbol::plain_dict:
        return make_dict(callable, given, arguments);
      case torch_symbol::plain_list:
      case torch_symbol::set: {
        if (!given.empty() && !(given.size() == 1 && sequence)) return bad_call(callable, "one list or nothing", arguments);
        const id n = add(symbol == torch_symbol::set ? pickle_kind::set : pickle_kind::list);
        return extend_with(n, given.empty() ? given : doc_.items(given[0])) && push(n);
      }
      case torch_symbol::plain_tuple:
      case torch_symbol::size: {
        if (given.empty()) return push(empty_tuple_);
        if (given.size() != 1 || !sequence) return bad_call(callable, "one tuple", arguments);
        const std::size_t first = stack_.size();
        for (const id item : doc_.items(given[0])) stack_.push_back(item);
        return make_tuple(first);
      }
      case torch_symbol::bytes:
      case torch_symbol::bytearray:
      case torch_symbol::encode:
        if (given.empty() && symbol != torch_symbol::encode) return push(add_own(pickle_kind::bytes, {}));
        if (given.size() == 1 && is(0, pickle_kind::bytes)) return push(given[0]);
        if (given.size() == 2 && is(0, pickle_kind::text) && is(1, pickle_kind::text))
          return encode_latin1(callable, given[0], given[1]);
        return bad_call(callable, "a string and 'latin1'", arguments);
      default:
        return bad_call(callable, "another global", arguments);
    }
  }
  bool extend_with(id target, const std::vector<id>& values) {
    const std::size_t first = stack_.size();
    stack_.insert(stack_.end(), values.begin(), values.end());
    return extend(target, first);
  }
  bool make_dict(id callable, const std::vector<id>& given, id arguments) {
    const id n = add(pickle_kind::dict, pickle_document::nothing, pickle_document::nothing, 0, pickle_document::mapping);
    if (given.empty()) return push(n);
    if (given.size() > 1) return bad_call(callable, "one dict or list of pairs", arguments);
    std::vector<id> pairs;
    switch (doc_.kind(given[0])) {
      case pickle_kind::dict:
        pairs = doc_.items(given[0]);
        break;
      case pickle_kind::list:
      case pickle_kind::tuple:
        for (const id pair : doc_.items(given[0])) {
          const bool good =
              (doc_.kind(pair) == pickle_kind::tuple || doc_.kind(pair) == pickle_kind::list) && doc_.count(pair) == 2;
          if (!good) return bad_call(callable, "a list of pairs", arguments);
          for (const id part : doc_.items(pair)) pairs.push_back(part);
        }
        break;
      default:
        return bad_call(callable, "one dict or list of pairs", arguments);
    }
    return extend_with(n, pairs) && push(n);
  }
  /// Bytes in protocol 2: a text whose characters, all below 256, stand for one byte each.
  bool encode_latin1(id callable, id text, id encoding) {
    const std::string_view coding = doc_.text(encoding);
    if (coding != "latin1" && coding != "latin-1")
      return fail(errc::unsupported, quoted(doc_.full_name(callable)) + " uses an unknown encoding", "'latin1'", quoted(coding));
    const std::string_view from = doc_.text(text);
    std::string out;
    out.reserve(from.size());
    for (std::size_t i = 0; i < from.size(); ++i) {
      const auto lead = static_cast<unsigned char>(from[i]);
      if (lead < 0x80) {
        out += from[i];
        continue;
      }
      const auto next = i + 1 < from.size() ? static_cast<unsigned char>(from[i + 1]) : 0U;
      if ((lead != 0xC2 && lead != 0xC3) || (next & 0xC0U) != 0x80)  // U+0080 to U+00FF are two bytes in UTF-8
        return fail(errc::malformed, "a text that stands for bytes has other characters", "characters below 256",
                    "byte offset " + std::to_string(i));
      out += static_cast<char>(static_cast<unsigned char>(((lead & 3U) << 6) | (next & 0x3FU)));
      ++i;
    }
    return push(add_own(pickle_kind::bytes, out));
  }

  bool build() {
    if (!depth_of_stack(2)) return false;
    const id state = pop(), target = stack_.back();
    if (doc_.kind(target) == pickle_kind::object) {
      id& kept = doc_.objects_[doc_.nodes_[target].a].state;
      if (kept != pickle_document::nothing)
        return fail(errc::malformed, "an object gets its state twice", "one BUILD", doc_.class_of(target));
      kept = state;
      return nest(target, state);
    }
    if (doc_.kind(target) != pickle_kind::dict || (doc_.nodes_[target].flags & pickle_document::mapping) == 0)
      return fail(errc::unsupported, "the value cannot have attributes", "an object or an OrderedDict",
                  std::string(name_of(doc_.kind(target))));
    if (doc_.kind(state) != pickle_kind::dict)
      return fail(errc::unsupported, "the attributes of a dict are no dict", "a dict", std::string(name_of(doc_.kind(state))));
    const std::vector<id> pairs = doc_.items(state);
    for (std::size_t i = 0; i < pairs.size(); i += 2)  // a module's versions: nothing that a reader of weights needs
      if (!doc_.is_text(pairs[i], "_metadata"))
        return fail(
            errc::unsupported, "the dict has an unknown attribute", "'_metadata'",
            doc_.kind(pairs[i]) == pickle_kind::text ? quoted(doc_.text(pairs[i])) : std::string(name_of(doc_.kind(pairs[i]))));
    return true;
  }

  /// What a persistent id stands for: a storage, a class with its source, a number.
  bool persistent_id() {
    if (!depth_of_stack(1)) return false;
    const id pid = pop();
    const pickle_kind kind = doc_.kind(pid);
    if (ids_ == persistent_ids::none)
      return fail(errc::unsupported, "the pickle refers to data outside of itself", "values", "a persistent id",
                  "open the file of torch.save that this pickle was taken from");
    if (ids_ == persistent_ids::numbers && (kind == pickle_kind::integer || kind == pickle_kind::text))
      return push(add(pickle_kind::reference, pid));
    if (kind != pickle_kind::tuple)
      return fail(errc::malformed, "the persistent id is no tuple", "(\"storage\", class, key, location, numel)",
                  std::string(name_of(kind)));
    const std::vector<id> parts = doc_.items(pid);
    if (ids_ == persistent_ids::numbers) return module_class(parts, 0);
    if (!parts.empty() && doc_.is_text(parts[0], "module")) {
      if (ids_ == persistent_ids::storage_views) return module_class(parts, 1);
      return fail(errc::unsupported, "the file holds a pickled module with its source", "a storage", "\"module\"");
    }
    const std::size_t fields = ids_ == persistent_ids::storage_views ? 6 : 5;
    if (parts.size() != fields)
      return fail(errc::malformed, "the persistent id has a wrong number of fields", std::to_string(fields),
                  std::to_string(parts.size()));
    return storage_fields(parts) && push(add(pickle_kind::storage, pid));
  }
  /// A class that was pickled with its source: the class, as if it had none.
  bool module_class(const std::vector<id>& parts, std::size_t at) {
    if (parts.size() != at + 3 || doc_.kind(parts[at]) != pickle_kind::global)
      return fail(errc::malformed, "the persistent id of a class is wrong", "a class, its file and its source",
                  std::to_string(parts.size()) + " fields");
    return push(parts[at]);
  }
  bool storage_fields(const std::vector<id>& parts) {
    const auto wrong = [&](const char* field, const char* expected, id n) {
      return fail(errc::malformed, std::string("field ") + field + " of the persistent id is wrong", expected,
                  doc_.kind(n) == pickle_kind::integer  ? std::to_string(doc_.integer(n))
                  : doc_.kind(n) == pickle_kind::global ? quoted(doc_.full_name(n))
                                                        : std::string(name_of(doc_.kind(n))));
    };
    const auto is_count = [&](id n) { return doc_.kind(n) == pickle_kind::integer && doc_.integer(n) >= 0; };
    if (!doc_.is_text(parts[0], "storage")) return wrong("0", "\"storage\"", parts[0]);
    if (doc_.kind(parts[1]) != pickle_kind::global || doc_.symbol(parts[1]) != torch_symbol::storage_class)
      return wrong("1 (class)", "a storage class", parts[1]);
    if (doc_.kind(parts[2]) != pickle_kind::text) return wrong("2 (key)", "a string", parts[2]);
    if (doc_.kind(parts[3]) != pickle_kind::text) return wrong("3 (location)", "a string", parts[3]);
    if (!is_count(parts[4])) return wrong("4 (numel)", "a number of elements from 0 to 2^63 - 1", parts[4]);
    if (parts.size() < 6 || doc_.kind(parts[5]) == pickle_kind::none) return true;
    const char* view = "None or (key, offset, numel)";
    if (doc_.kind(parts[5]) != pickle_kind::tuple || doc_.count(parts[5]) != 3) return wrong("5 (view)", view, parts[5]);
    const std::vector<id> of = doc_.items(parts[5]);
    if (doc_.kind(of[0]) != pickle_kind::text || !is_count(of[1]) || !is_count(of[2])) return wrong("5 (view)", view, parts[5]);
    return true;
  }
};

/// Reads the pickle that starts at `start`. `file` and `entry` ("zip entry 'archive/data.pkl'") are named in messages. With
/// `whole`, the pickle must end with the bytes.
/// @fails malformed, limit (bytes, opcodes, depth, integers, names), unsupported (protocol, blocked globals, buffers).
inline result<pickle_document> parse_pickle(std::shared_ptr<const std::vector<std::byte>> bytes, std::string file,
                                            std::string entry, const limits& bounds = {}, std::size_t start = 0,
                                            bool whole = true, persistent_ids ids = persistent_ids::storages) {
  return pickle_machine(std::move(bytes), start, std::move(file), std::move(entry), bounds, ids).run(whole);
}

TENSORSMITH_END_NAMESPACE
