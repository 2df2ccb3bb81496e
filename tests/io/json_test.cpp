// SPDX-License-Identifier: MIT
#include "tensorsmith/io/json.hpp"

#include <clocale>

#include "support/catch.hpp"
#include "support/paths.hpp"

namespace ts = tensorsmith;
using namespace std::string_view_literals;

namespace {

std::string verdict(std::string_view text) {
  const auto value = ts::parse_json(text, "c.json");
  return value ? "accepted" : value.error().message();
}

}  // namespace

TEST_CASE("JSON is read as written and keeps the order of keys") {
  const auto v = ts::parse_json(R"( {"z": [1, -2, 2.5, 1e3, true, null], "a": {"b": "x\n\u00e9\ud83d\ude00"}, "e": {}} )", "c.json");
  REQUIRE(v);
  const auto& members = *v->as_object();
  CHECK(members[0].first == "z");
  CHECK(members[1].first == "a");
  const auto& z = *v->find("z")->as_array();
  CHECK(*z[0].as_integer() == 1);
  CHECK(*z[1].as_integer() == -2);
  CHECK(*z[2].as_double() == 2.5);
  CHECK(*z[3].as_double() == 1000);
  CHECK(*z[4].as_bool());
  CHECK(z[5].is_null());
  CHECK(*v->find("a")->find("b")->as_string() == "x\né😀");
}

TEST_CASE("JSON text is laid out as Python lays it out") {
  const auto v = ts::parse_json(R"({"a":[1,2.5,"x\n\u00e9\u0001\""],"b":{},"c":[],"d":[1e-5,0.00085,100000.0,1e22,1.0,-0.0,0.1,9223372036854775807]})", "c.json");
  REQUIRE(v);
  CHECK(ts::write_json(*v) ==
        "{\n  \"a\": [\n    1,\n    2.5,\n    \"x\\né\\u0001\\\"\"\n  ],\n  \"b\": {},\n  \"c\": [],\n  \"d\": [\n    1e-05,\n    "
        "0.00085,\n    100000.0,\n    1e+22,\n    1.0,\n    -0.0,\n    0.1,\n    9223372036854775807\n  ]\n}");
  CHECK(ts::write_json(*v->find("a"), 0) == "[1, 2.5, \"x\\né\\u0001\\\"\"]");
  CHECK(*ts::parse_json(ts::write_json(*v), "again") == *v);
  CHECK(ts::write_json(ts::json_value("a\xff"), 0) == "\"a\xEF\xBF\xBD\"");
}

TEST_CASE("JSON text is UTF-8 whatever the bytes of keys and strings; each wrong byte becomes U+FFFD") {
  const std::string r = "\xEF\xBF\xBD";
  const auto text = [](std::string_view bytes) { return ts::write_json(ts::json_value(bytes), 0); };
  CHECK(text("model.\x80nnx_data") == "\"model." + r + "nnx_data\"");
  CHECK(text("\xC0\x80|\xE0\x80\x80|\xED\xA0\x80") == "\"" + r + r + "|" + r + r + r + "|" + r + r + r + "\"");  // overlong, a surrogate
  CHECK(text("\xF4\x90\x80\x80|\xF0\x9F\x98") == "\"" + r + r + r + r + "|" + r + r + r + "\"");               // too large, cut off
  CHECK(text("\xC3\\\xC3\"\xC3\xA9") == "\"" + r + "\\\\" + r + "\\\"é\"");  // what follows a wrong byte is escaped as always
  ts::json_value document;
  document.set("k\xFF", ts::json_value::array{"\x80", "ok"});
  for (const int indent : {0, 2}) {
    const std::string written = ts::write_json(document, indent);
    std::size_t bad = 0;
    CHECK(ts::is_utf8(written, bad));
    const auto again = ts::parse_json(written, "again");
    REQUIRE(again);
    CHECK(*again == *ts::parse_json("{\"k" + r + "\": [\"" + r + "\", \"ok\"]}", "wanted"));
  }
}

TEST_CASE("numbers neither depend on the locale when read nor when written (ENV-01)") {
  const std::string before = std::setlocale(LC_ALL, nullptr);
  if (!std::setlocale(LC_ALL, "de_DE.UTF-8")) std::setlocale(LC_ALL, "C");  // the check is as good as the locales that are installed
  CHECK(ts::write_json(*ts::parse_json("[0.125, 1234.5]", "c.json"), 0) == "[0.125, 1234.5]");
  std::setlocale(LC_ALL, before.c_str());
}

TEST_CASE("malformed JSON is refused with its place (CFG-01)") {
  CHECK(verdict("") == "FMT c.json: byte offset 0: invalid JSON: unexpected end of input (found the end of the text)");
  CHECK(verdict("{\"a\":1,}") == "FMT c.json: byte offset 7 at '/a': invalid JSON: unexpected '}' (found '}')");
  CHECK(verdict("{} {}") == "FMT c.json: byte offset 3: invalid JSON: unexpected '{' (found '{')");
  CHECK(verdict("{}\0{}"sv) == "FMT c.json: byte offset 2: a NUL byte in JSON text");
  CHECK(verdict("\xEF\xBB\xBF{}") ==
        "FMT c.json: byte offset 0: a byte order mark before JSON text (expected '{' or another value); save the file as UTF-8 without it");
  CHECK(verdict("[\"a\xFF\"]") == "FMT c.json: byte offset 3: invalid JSON: invalid UTF-8 in a string (found '\\xff')");
  CHECK(verdict("{\"a\":1,\"\\u0061\":2}") ==
        "FMT c.json: byte offset 15 at '/a': the key 'a' appears twice in one object (expected unique keys, found it at byte "
        "offsets 4 and 15)");
  CHECK(verdict("{\"n\":18446744073709551616}") ==
        "FMT c.json: byte offset 26 at '/n': the integer is out of range (expected an integer of 64 bits, found '18446744073709551616')");
  CHECK(verdict("{\"n\":1e999}") == "FMT c.json: byte offset 11 at '/n': the number is out of range (expected a number that a double holds)");
  for (const std::string_view bad : {"nul", "// c\n{}", "[1] x", "[NaN]", "[Infinity]", "[00]", "[+1]", "[.5]", "[1.]", "'a'", "[\"\\x41\"]",
                                     "[\"\\ud800\"]", "[\"\\uZZZZ\"]", "[\"a", "[\"\t\"]", "{\"a\" 1}", "{a:1}", "[1 2]", "]", "\xC0\x80"})
    CHECK(verdict(bad).starts_with("FMT c.json: byte offset "));
}

TEST_CASE("nested duplicates are found, equal keys of different objects are fine") {
  CHECK(verdict(R"({"a":{"b":1,"c":{"d":1,"d":2}}})").find("at '/a/c/d': the key 'd' appears twice") != std::string::npos);
  CHECK(verdict(R"({"a":{"a":1},"b":[{"a":1},{"a":2}]})") == "accepted");
}

TEST_CASE("depth and the number of values are bounded (ST-24, CFG-01)") {
  CHECK(verdict(std::string(64, '[') + std::string(64, ']')) == "accepted");
  const std::string deep = verdict("{\"a\":" + std::string(1'000'000, '['));
  CHECK(deep.starts_with("LIM c.json: byte offset 69 at '/a/0/0"));
  CHECK(deep.find("JSON is nested too deeply (expected at most 64 levels)") != std::string::npos);
  std::string many = "[";
  for (int i = 0; i < 3'000'000; ++i) many += "0,";
  CHECK(verdict(many + "0]").find("JSON has too many values for its length") != std::string::npos);
}

TEST_CASE("files have a longest length") {
  const support::temp_folder folder;
  {
    auto out = ts::output_file::create(folder / "c.json", 20);
    REQUIRE(out);
  }
  CHECK(ts::read_json_file(folder / "c.json", 19).error().code == ts::errc::limit);
  CHECK(ts::read_json_file(folder / "c.json", 20).error().code == ts::errc::malformed);
}
