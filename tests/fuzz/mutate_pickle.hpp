// SPDX-License-Identifier: MIT
//
// tests/fuzz/mutate_pickle.hpp: mutations of pickles: whole opcodes are inserted, removed and exchanged; values are made that
// leave the stack as they found it but for themselves.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fuzz/mutate.hpp"

namespace fuzz {

/// The opcodes of a pickle, each with its operand, as far as they can be told.
inline std::vector<std::string> split_opcodes(std::string_view pickle) {
  std::vector<std::string> out;
  const auto line_end = [&](std::size_t from) { return std::min(pickle.find('\n', from), pickle.size() - 1) + 1; };
  for (std::size_t at = 0; at < pickle.size();) {
    const std::size_t left = pickle.size() - at - 1;
    std::size_t length = 0;
    const auto counted = [&](std::size_t width) {
      if (left < width) return left;
      const std::uint64_t bytes = number_at(pickle, at + 1, width);
      return bytes > left - width ? left : width + static_cast<std::size_t>(bytes);
    };
    switch (static_cast<unsigned char>(pickle[at])) {
      case 'K': case 0x80: case 'q': case 'h': case 0x82: length = 1; break;
      case 'M': case 0x83: length = 2; break;
      case 'J': case 'r': case 'j': case 0x84: length = 4; break;
      case 'G': case 0x95: length = 8; break;
      case 0x8C: case 'U': case 'C': case 0x8A: length = counted(1); break;
      case 'X': case 'T': case 'B': case 0x8B: length = counted(4); break;
      case 0x8D: case 0x8E: case 0x96: length = counted(8); break;
      case 'I': case 'L': case 'F': case 'S': case 'V': case 'p': case 'g': case 'P':
        length = line_end(at + 1) - at - 1;
        break;
      case 'c': case 'i':
        length = line_end(std::min(line_end(at + 1), pickle.size() - 1)) - at - 1;
        break;
      default: break;
    }
    length = std::min(length, left);
    out.emplace_back(pickle.substr(at, 1 + length));
    at += 1 + length;
  }
  return out;
}

inline std::string pickled_text(std::string_view text) { return "X" + little_endian(text.size(), 4) + std::string(text); }
inline std::string pickled_number(std::uint64_t value) {
  return value < 256 ? "K" + little_endian(value, 1) : std::string("\x8A\x08") + little_endian(value, 8);
}
inline std::string pickled_global(std::string_view module, std::string_view name) {
  return "c" + std::string(module) + "\n" + std::string(name) + "\n";
}
inline std::string pickled_tuple(const std::vector<std::size_t>& values) {
  std::string out = "(";
  for (const std::size_t value : values) out += pickled_number(value);
  return out + "t";
}

/// Makes values.
class pickle_values {
 public:
  explicit pickle_values(dice& roll) : roll_(roll) {}

  /// Opcodes that leave one value on the stack.
  std::string value(int depth) {
    switch (roll_.below(depth > 0 ? 14 : 7)) {
      case 0: return "N";
      case 1: return roll_.once_in(2) ? "\x88" : "\x89";
      case 2: return pickled_number(roll_.once_in(3) ? odd_number(roll_) : roll_.below(20));
      case 3: return pickled_text(name());
      case 4: return "h" + little_endian(roll_.below(12), 1);
      case 5: return "G" + little_endian(odd_number(roll_), 8);
      case 6: return ")";
      case 7: return sequence("(", depth, 1, "t");
      case 8: return sequence("](", depth, 1, "e");
      case 9: return sequence("}(", depth, 2, "u");
      case 10: return sequence(pickled_global("collections", "OrderedDict") + ")R(", depth, 2, "u");
      case 11: return object(depth);
      case 12: return "B" + little_endian(3, 4) + "abc";
      default: return tensor();
    }
  }

  std::string tensor() {
    constexpr std::string_view classes[] = {"FloatStorage", "HalfStorage", "BFloat16Storage", "LongStorage", "ByteStorage", "DoubleStorage",
                                            "BoolStorage", "ComplexFloatStorage", "CharStorage", "IntStorage"};
    std::vector<std::size_t> shape = small_shape(roll_), strides(shape.size(), 1);
    for (std::size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * (shape[i] ? shape[i] : 1);
    if (roll_.once_in(4)) std::reverse(strides.begin(), strides.end());
    if (roll_.once_in(6) && !strides.empty()) strides[roll_.below(strides.size())] = roll_.below(4);
    const bool third = roll_.once_in(5);
    constexpr std::string_view types[] = {"float32", "bfloat16", "float8_e4m3fn", "uint16", "uint64", "float8_e5m2", "int8", "complex64"};
    std::string out = pickled_global("torch._utils", third ? "_rebuild_tensor_v3" : "_rebuild_tensor_v2") + "((" + pickled_text("storage") +
                      pickled_global(third ? "torch.storage" : "torch", third ? "UntypedStorage" : roll_.one_of(classes)) +
                      pickled_text(std::to_string(roll_.below(3))) + pickled_text("cpu") +
                      pickled_number(roll_.once_in(3) ? roll_.below(70) : product(shape)) + "tQ" +
                      pickled_number(roll_.once_in(5) ? roll_.below(9) : 0) +
                      pickled_tuple(shape) + pickled_tuple(strides) + "\x89" + pickled_global("collections", "OrderedDict") + ")R";
    if (third) out += pickled_global("torch", roll_.one_of(types));
    out += "tR";
    if (roll_.once_in(6)) {
      out = pickled_global("torch._utils", "_rebuild_parameter") + out + "\x88" + pickled_global("collections", "OrderedDict") + ")R\x87R";
    }
    return out;
  }

  std::string name() {
    constexpr std::string_view names[] = {"w", "bias", "state_dict", "model", "_parameters", "_modules", "_buffers", "global_step", "a.b", "storage",
                                          "_metadata", "\xC3\xA9", "epoch", "optimizer_states", "params_ema", "module"};
    return std::string(roll_.one_of(names)) + (roll_.once_in(3) ? std::to_string(roll_.below(9)) : "");
  }

 private:
  std::string sequence(std::string open, int depth, std::size_t width, std::string_view close) {
    for (std::size_t i = roll_.below(4); i-- > 0;) {
      if (width == 2) open += pickled_text(name());
      open += value(depth - 1);
    }
    return open.append(close);
  }

  std::string object(int depth) {
    constexpr std::array<std::array<std::string_view, 2>, 14> globals = {{
        {"argparse", "Namespace"}, {"pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"}, {"numpy.core.multiarray", "scalar"},
        {"numpy", "dtype"}, {"numpy.core.multiarray", "_reconstruct"}, {"numpy", "ndarray"}, {"torch", "Size"}, {"torch", "device"},
        {"builtins", "set"}, {"_codecs", "encode"}, {"torch.nn.modules.linear", "Linear"}, {"builtins", "list"}, {"collections", "defaultdict"},
        {"torch._tensor", "_rebuild_from_type_v2"}}};
    if (roll_.once_in(5)) return numpy_value();
    const auto& [module, name_of] = roll_.one_of(globals);
    std::string out = pickled_global(module, name_of);
    if (roll_.once_in(4)) return out;
    out += sequence("(", depth, 1, "t") + (roll_.once_in(2) ? "R" : "\x81");
    if (roll_.once_in(2)) out += value(depth - 1) + "b";
    if (roll_.once_in(4)) out += sequence("(", depth, 2, "u");
    return out;
  }

  /// numpy's scalar, or an array with its state.
  std::string numpy_value() {
    constexpr std::string_view kinds[] = {"f4", "f8", "i8", "u1", "b1", "f2", "i4", "c8", "U1", "O8"};
    const std::string_view kind = roll_.one_of(kinds);
    const auto width = static_cast<std::size_t>(kind[1] - '0');
    const std::string type = pickled_global("numpy", "dtype") + pickled_text(kind) + "\x89\x88\x87R(K\x03" + 
                             pickled_text(roll_.once_in(6) ? ">" : "<") +
                             "NNNJ\xFF\xFF\xFF\xFFJ\xFF\xFF\xFF\xFFK" + std::string(1, '\0') + "tb";
    const std::vector<std::size_t> shape = small_shape(roll_);
    const auto raw = [&](std::size_t bytes) { return "B" + little_endian(bytes, 4) + std::string(bytes, 'n'); };
    if (roll_.once_in(2)) return pickled_global("numpy.core.multiarray", "scalar") + type + raw(width) + "\x86R";
    return pickled_global("numpy.core.multiarray", "_reconstruct") + pickled_global("numpy", "ndarray") + "K" + std::string(1, '\0') + "\x85" +
           raw(1) + "\x87R(K\x01" + pickled_tuple(shape) + type + (roll_.once_in(4) ? "\x88" : "\x89") +
           raw(product(shape) * width + (roll_.once_in(8) ? 1 : 0)) + "tb";
  }

  dice& roll_;
};

/// Changes one opcode, or puts a value where another one was.
inline bool mutate_pickle(std::string& pickle, dice& roll, std::size_t most) {
  pickle_values make(roll);
  if (pickle.size() < 3 || roll.once_in(60)) {  // from nothing: a dict of a few values
    pickle = "\x80\x02}(";
    for (std::size_t i = 1 + roll.below(5); i-- > 0;) pickle += pickled_text(make.name()) + (roll.once_in(2) ? make.tensor() : make.value(3));
    pickle += "u.";
    return pickle.size() <= most;
  }
  std::vector<std::string> ops = split_opcodes(pickle);
  const std::size_t at = roll.below(ops.size());
  const auto place = ops.begin() + static_cast<std::ptrdiff_t>(at);
  switch (roll.below(10)) {
    case 0: ops.erase(place); break;
    case 1: ops.insert(place, ops[roll.below(ops.size())]); break;
    case 2: std::swap(ops[at], ops[roll.below(ops.size())]); break;
    case 3: {  // a stretch once more
      const std::size_t end = std::min(ops.size(), at + 1 + roll.below(12));
      const std::vector<std::string> stretch(place, ops.begin() + static_cast<std::ptrdiff_t>(end));
      ops.insert(ops.begin() + static_cast<std::ptrdiff_t>(roll.below(ops.size())), stretch.begin(), stretch.end());
      break;
    }
    case 4: {
      constexpr std::string_view single[] = {"\x94", "2", "(", "1", "0", "a", "e", "s", "u", "b", "R", "\x81", "\x85", "\x86", "\x87", "t",
                                             "l", "d", "]", "}", "\x8F", "\x90", "\x91", "o", "\x92", "\x93", "Q", ".",
                                             "\x95", "q\1", "h\1"};
      ops.insert(place, std::string(roll.one_of(single)));
      break;
    }
    case 5:  // an operand, its length with it
      if (const std::string& op = ops[at]; op.size() >= 5 && op[0] == 'X') {
        std::string text = op.substr(5);
        mutate_bytes(text, text.size() + 16);
        ops[at] = pickled_text(text);
      } else {
        mutate_bytes(ops[at], ops[at].size() + 4);
      }
      break;
    case 6: ops[at] = pickled_number(odd_number(roll)); break;
    default: {  // a new value in the place of a simple one
      for (std::size_t i = at; i < ops.size(); ++i) {
        const char c = ops[i][0];
        if (c != 'N' && c != 'K' && c != 'X' && c != '\x88' && c != '\x89' && c != 'M' && c != 'h' && c != ')') continue;
        ops[i] = make.value(3);
        break;
      }
    }
  }
  pickle.clear();
  for (const std::string& op : ops) pickle += op;
  return pickle.size() <= most;
}

}  // namespace fuzz
