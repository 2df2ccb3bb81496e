// SPDX-License-Identifier: MIT
//
// tests/fuzz/mutate_legacy.hpp: mutations of what torch wrote before 1.6: one pickle of a stream changes, or one member of a tar
// file, whose sizes and checksums follow.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fuzz/mutate_pickle.hpp"

namespace fuzz {

/// Pickles one after the other, then anything: one of the pickles changes, or the rest.
inline bool mutate_stream(std::string& file, dice& roll, std::size_t most) {
  std::vector<std::string> pickles;
  std::size_t at = 0;
  while (at < file.size() && file[at] == '\x80' && pickles.size() < 64) {
    std::string one;
    for (std::string& op : split_opcodes(std::string_view(file).substr(at))) {
      one += op;
      if (op == ".") break;
    }
    at += one.size();
    pickles.push_back(std::move(one));
  }
  std::string rest = file.substr(at);
  const std::size_t chosen = roll.below(pickles.size() + 1);
  if (chosen == pickles.size()) {
    if (rest.size() >= 8 && roll.once_in(3))
      rest.replace(roll.below(rest.size() - 7), 8, little_endian(roll.once_in(2) ? odd_number(roll) : roll.below(40), 8));
    else
      mutate_bytes(rest, std::min(most, rest.size() + 32));
  } else if (roll.once_in(12)) {
    pickles.insert(pickles.begin() + static_cast<std::ptrdiff_t>(chosen), pickles[roll.below(pickles.size())]);
  } else if (!mutate_pickle(pickles[chosen], roll, most)) {
    return false;
  }
  file.clear();
  for (const std::string& one : pickles) file += one;
  file += rest;
  return file.size() <= most;
}

inline std::string octal(std::size_t value, int digits) {
  std::string out(static_cast<std::size_t>(digits), '0');
  for (std::size_t i = out.size(); i-- > 0; value /= 8) out[i] = static_cast<char>('0' + value % 8);
  return out;
}

/// One member of a tar file changes: its header's fields or its contents.
inline bool mutate_tar(std::string& file, dice& roll, std::size_t most) {
  struct member {
    std::string header, contents;
  };
  std::vector<member> members;
  for (std::size_t at = 0; file.size() - at >= 512 && file[at] != '\0';) {
    std::size_t size = 0;
    for (std::size_t i = at + 124; i < at + 135 && file[i] >= '0' && file[i] <= '7'; ++i) size = 8 * size + static_cast<std::size_t>(file[i] - '0');
    if (size > file.size() - at - 512) return false;
    members.push_back({file.substr(at, 512), file.substr(at + 512, size)});
    at = std::min(file.size(), at + 512 + (size + 511) / 512 * 512);
  }
  if (members.empty()) return false;
  member& m = members[roll.below(members.size())];
  switch (roll.below(12)) {
    case 0: m.header[roll.below(100)] = static_cast<char>(roll.below(128)); break;
    case 1: m.header[156] = roll.one_of(std::string_view("0\0005xgLK12", 9)); break;
    case 2: members.push_back(members[roll.below(members.size())]); break;
    case 3: members.erase(members.begin() + (&m - members.data())); break;
    default:
      if (!mutate_stream(m.contents, roll, most)) return false;
  }
  file.clear();
  for (member& each : members) {
    each.header.replace(124, 12, octal(each.contents.size(), 11) + '\0');
    each.header.replace(148, 8, "        ");
    std::size_t sum = 0;
    for (const char c : each.header) sum += static_cast<unsigned char>(c);
    each.header.replace(148, 8, octal(sum, 6) + '\0' + ' ');
    file += each.header + each.contents;
    file.resize((file.size() + 511) / 512 * 512);
  }
  file.resize(file.size() + 1024);
  return file.size() <= most;
}

inline bool mutate_legacy(std::string& file, dice& roll, std::size_t most) {
  return file.size() > 262 && file.compare(257, 5, "ustar") == 0 ? mutate_tar(file, roll, most) : mutate_stream(file, roll, most);
}

}  // namespace fuzz
