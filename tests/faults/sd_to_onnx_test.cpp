// SPDX-License-Identifier: MIT
//
// sd-to-onnx with bad input, a full disk, a kill: the right exit status, a message that says what and where, nothing left behind.
#include <sys/mount.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include "examples/run.hpp"
#include "support/catch.hpp"

namespace {

using namespace programs;
using strings = std::vector<std::string>;

/// Exit statuses: 2 for a bad command line, 10 and up for the codes in their order.
enum status : int { USE = 2, FMT = 10, LIM, UNS, PTH, ITG, MIS, NUM, IO, NOSPC, NET, BUSY, DENY, CANC };

constexpr std::array<const char*, 13> code_names = {"FMT", "LIM", "UNS", "PTH", "ITG", "MIS", "NUM", "IO", "NOSPC", "NET", "BUSY", "DENY", "CANC"};

std::string make(const support::temp_folder& work, const std::string& family, const std::string& form, const std::string& name) {
  const outcome run = programs::run("make-tiny-sd", {work / name, "--family", family, "--form", form});
  INFO(run.err);
  REQUIRE(run.status == 0);
  return work / name;
}

/// Runs the conversion, which must be refused with `code` and a message that holds all of `pieces`, and leave nothing behind.
void refused(const support::temp_folder& work, const strings& arguments, int code, const strings& pieces, const run_options& how = {}) {
  CAPTURE(arguments);
  const auto before = listing(work.path());
  const auto begin = std::chrono::steady_clock::now();
  strings all = arguments;
  all.push_back("--json");
  const outcome run = programs::run("sd-to-onnx", all, how);
  CAPTURE(run.err, run.out);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(20));
  CHECK(run.status == code);
  const std::string name = code == USE ? "USE" : code >= FMT && code <= CANC ? code_names[static_cast<std::size_t>(code - FMT)] : "?";
  CHECK(run.err.find("sd-to-onnx: " + name + ' ') != std::string::npos);
  for (const std::string& piece : pieces) {
    CAPTURE(piece);
    CHECK(run.err.find(piece) != std::string::npos);
  }
  CHECK(listing(work.path()) == before);
  const auto document = nlohmann::json::parse(run.out, nullptr, false);
  REQUIRE(document.is_object());
  CHECK(document["status"] == "failed");
  CHECK(document["error"]["code"] == name);
  CHECK(document["error"]["exit_status"] == code);
  CHECK(run.err.find(document["error"]["message"].get<std::string>()) != std::string::npos);
}

struct safetensors_file {
  nlohmann::ordered_json header;
  std::string data;
};

safetensors_file read_safetensors(const fs::path& path) {
  const std::string all = read_text(path);
  std::uint64_t length = 0;
  std::memcpy(&length, all.data(), sizeof length);
  return {nlohmann::ordered_json::parse(all.substr(8, length)), all.substr(8 + length)};
}

void write_safetensors(const fs::path& path, const safetensors_file& file) {
  std::string header = file.header.dump();
  header.append((8 - header.size() % 8) % 8, ' ');
  const std::uint64_t length = header.size();
  write_text(path, std::string(reinterpret_cast<const char*>(&length), sizeof length) + header + file.data);
}

/// A zip archive of stored entries, as torch writes, without any care for what is in it.
class zip_writer {
 public:
  void add(const std::string& name, const std::string& bytes, const std::string& name_in_directory = {}) {
    const std::string& listed = name_in_directory.empty() ? name : name_in_directory;
    const auto offset = static_cast<std::uint32_t>(body_.size());
    const std::string common = le(0, 2) + le(0, 2) + le(0, 4) + le(crc(bytes), 4) + le(bytes.size(), 4) + le(bytes.size(), 4);
    body_ += "PK\3\4" + le(20, 2) + common + le(name.size(), 2) + le(0, 2) + name + bytes;
    directory_ += "PK\1\2" + le(20, 2) + le(20, 2) + common + le(listed.size(), 2) + le(0, 2) + le(0, 2) + le(0, 2) + le(0, 2) + le(0, 4) +
                  le(offset, 4) + listed;
    ++count_;
  }
  std::string finish() const {
    return body_ + directory_ + "PK\5\6" + le(0, 2) + le(0, 2) + le(count_, 2) + le(count_, 2) + le(directory_.size(), 4) +
           le(body_.size(), 4) + le(0, 2);
  }

 private:
  static std::string le(std::uint64_t value, int bytes) {
    std::string out;
    for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i));
    return out;
  }
  static std::uint32_t crc(const std::string& bytes) {
    std::uint32_t sum = 0xFFFFFFFFu;
    for (const char c : bytes) {
      sum ^= static_cast<unsigned char>(c);
      for (int i = 0; i < 8; ++i) sum = (sum >> 1) ^ (0xEDB88320u & (0u - (sum & 1u)));
    }
    return ~sum;
  }
  std::string body_, directory_;
  unsigned count_ = 0;
};

/// A tmpfs of `bytes`, where this process may mount one.
class small_disk {
 public:
  small_disk(const std::string& path, const std::string& bytes) : path_(path) {
    fs::create_directories(path);
    mounted_ = ::mount("tmpfs", path.c_str(), "tmpfs", 0, ("size=" + bytes).c_str()) == 0;
  }
  ~small_disk() {
    if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  small_disk(const small_disk&) = delete;
  small_disk& operator=(const small_disk&) = delete;
  explicit operator bool() const { return mounted_; }

 private:
  std::string path_;
  bool mounted_ = false;
};

}  // namespace

TEST_CASE("damaged safetensors files are refused") {
  const support::temp_folder work;
  const std::string file = make(work, "sd1", "safetensors", "m.safetensors");
  const std::string good = read_text(file);
  SECTION("truncated data") {
    write_text(file, good.substr(0, good.size() - 100));
    refused(work, {file, work / "out"}, FMT, {"m.safetensors", std::to_string(good.size() - 100)});
  }
  SECTION("truncated header") {
    write_text(file, good.substr(0, 1000));
    refused(work, {file, work / "out"}, FMT, {"m.safetensors"});
  }
  SECTION("a header of 2^63 bytes") {
    write_text(file, std::string("\0\0\0\0\0\0\0\x80", 8) + good.substr(8));
    refused(work, {file, work / "out"}, LIM, {"m.safetensors", "9223372036854775808"});
  }
  SECTION("a header above the limit") {
    refused(work, {file, work / "out", "--max-header", "4K"}, LIM, {"m.safetensors", "4096", "--max-header"});
  }
  SECTION("overlapping tensors") {
    safetensors_file parts = read_safetensors(file);
    auto& first = parts.header["model.diffusion_model.out.2.bias"]["data_offsets"];
    first = parts.header["model.diffusion_model.time_embed.0.bias"]["data_offsets"];
    first[1] = first[0].get<std::uint64_t>() + 16;
    write_safetensors(file, parts);
    refused(work, {file, work / "out"}, FMT, {"m.safetensors", "model.diffusion_model."});
  }
  SECTION("an empty file") {
    write_text(file, "");
    refused(work, {file, work / "out"}, FMT, {"m.safetensors"});
  }
  SECTION("no file") { refused(work, {work / "none.safetensors", work / "out"}, IO, {"none.safetensors"}); }
}

TEST_CASE("a pickle that calls os.system is refused and not run") {
  const support::temp_folder work;
  const std::string mark = work / "was-run";
  zip_writer zip;
  zip.add("archive/data.pkl", "\x80\x02" "cposix\nsystem\nX" + std::string(1, static_cast<char>(("touch " + mark).size())) + std::string(3, '\0') +
                                  "touch " + mark + "\x85R.");
  zip.add("archive/version", "3\n");
  write_text(work / "evil.ckpt", zip.finish());
  refused(work, {work / "evil.ckpt", work / "out"}, UNS, {"evil.ckpt", "posix", "system"});
  CHECK_FALSE(fs::exists(mark));
}

TEST_CASE("zip entries that disagree are refused") {
  const support::temp_folder work;
  zip_writer zip;
  zip.add("archive/data.pkl", "\x80\x02}.", "archive/other.pkl");
  zip.add("archive/version", "3\n");
  write_text(work / "odd.ckpt", zip.finish());
  refused(work, {work / "odd.ckpt", work / "out"}, FMT, {"odd.ckpt", "other.pkl"});
}

TEST_CASE("a wrong checksum in a checkpoint is found") {
  const support::temp_folder work;
  const std::string file = make(work, "sd1", "ckpt", "m.ckpt"), folder = make(work, "sd1", "diffusers", "folder");
  std::string bytes = read_text(file);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  write_text(file, bytes);
  refused(work, {file, work / "out", "--tokenizer", folder}, ITG, {"m.ckpt", "CRC"});
  const outcome run = programs::run("sd-to-onnx", {file, work / "out", "--tokenizer", folder, "--no-crc"});
  CHECK(run.status == 0);
}

TEST_CASE("models that do not fit together are refused") {
  const support::temp_folder work;
  const std::string folder = make(work, "sd1", "diffusers", "model");
  const fs::path weights = fs::path(folder) / "unet/diffusion_pytorch_model.safetensors";
  SECTION("a missing tensor") {
    safetensors_file parts = read_safetensors(weights);
    parts.header["conv_on.bias"] = parts.header["conv_in.bias"];
    parts.header.erase("conv_in.bias");
    write_safetensors(weights, parts);
    refused(work, {folder, work / "out"}, MIS, {"conv_in.bias", "unet", "[32]"});
  }
  SECTION("an unexpected tensor") {
    safetensors_file parts = read_safetensors(weights);
    parts.header["surprise.weight"] = {{"dtype", "F32"}, {"shape", {1}}, {"data_offsets", {parts.data.size(), parts.data.size() + 4}}};
    parts.data += std::string(4, '\0');
    write_safetensors(weights, parts);
    refused(work, {folder, work / "out"}, MIS, {"surprise.weight"});
  }
  SECTION("a tensor of wrong shape") {
    safetensors_file parts = read_safetensors(weights);
    parts.header["conv_in.weight"]["shape"] = {4, 32, 3, 3};
    write_safetensors(weights, parts);
    refused(work, {folder, work / "out"}, MIS, {"conv_in.weight", "[32, 4, 3, 3]", "[4, 32, 3, 3]"});
  }
  SECTION("a missing component") {
    fs::remove_all(fs::path(folder) / "vae");
    refused(work, {folder, work / "out"}, MIS, {"vae"});
  }
}

TEST_CASE("a checkpoint without text encoder says what to do") {
  const support::temp_folder work;
  const std::string file = make(work, "sd1", "safetensors", "m.safetensors");
  safetensors_file parts = read_safetensors(file), kept;
  for (const auto& [name, info] : parts.header.items()) {
    if (name.starts_with("cond_stage_model.")) continue;
    auto copy = info;
    if (name != "__metadata__") {
      const auto first = info["data_offsets"][0].get<std::uint64_t>(), last = info["data_offsets"][1].get<std::uint64_t>();
      copy["data_offsets"] = {kept.data.size(), kept.data.size() + last - first};
      kept.data += parts.data.substr(first, last - first);
    }
    kept.header[name] = copy;
  }
  write_safetensors(file, kept);
  refused(work, {file, work / "out"}, MIS, {"text_encoder", "--components"});
  const outcome run = programs::run("sd-to-onnx", {file, work / "out", "--components", "unet,vae", "--quiet"});
  INFO(run.err);
  CHECK(run.status == 0);
}

TEST_CASE("unknown architectures are refused by name") {
  const support::temp_folder work;
  const auto with = [&](const std::string& name) {
    safetensors_file file;
    file.header[name] = {{"dtype", "F32"}, {"shape", {2, 2}}, {"data_offsets", {0, 16}}};
    file.data = std::string(16, '\0');
    write_safetensors(work / "m.safetensors", file);
  };
  with("double_blocks.0.img_attn.qkv.weight");
  refused(work, {work / "m.safetensors", work / "out"}, UNS, {"m.safetensors", "Flux"});
  with("encoder.something.weight");
  refused(work, {work / "m.safetensors", work / "out"}, UNS, {"m.safetensors"});
}

TEST_CASE("absurd configurations are refused") {
  const support::temp_folder work;
  const std::string folder = make(work, "sd1", "diffusers", "model");
  const fs::path path = fs::path(folder) / "unet/config.json";
  const auto good = nlohmann::json::parse(read_text(path));
  const std::vector<std::pair<std::string, nlohmann::json>> cases = {
      {"norm_num_groups", 0},        {"norm_num_groups", 31},
      {"block_out_channels", nlohmann::json::array()},
      {"block_out_channels", {-32, 64, 64}},
      {"block_out_channels", {1ull << 62, 64, 64}},
      {"block_out_channels", "many"},
      {"layers_per_block", 1000000000},
      {"layers_per_block", 0},
      {"attention_head_dim", 0},     {"attention_head_dim", -8},
      {"cross_attention_dim", -1},   {"cross_attention_dim", 1e300},
      {"in_channels", 0},            {"down_block_types", {"NoSuchBlock2D", "DownBlock2D", "DownBlock2D"}},
      {"act_fn", "mish"},            {"norm_eps", -1.0},
      {"transformer_layers_per_block", 1000000000},
  };
  SECTION("numbers and names") {
    for (const auto& [key, value] : cases) {
      auto config = good;
      config[key] = value;
      CAPTURE(key, value.dump());
      write_text(path, config.dump());
      const auto before = listing(work.path());
      const outcome run = programs::run("sd-to-onnx", {folder, work / "out"});
      CAPTURE(run.err);
      CHECK((run.status == FMT || run.status == LIM || run.status == UNS || run.status == MIS));
      CHECK(run.err.find("unet") != std::string::npos);
      CHECK(run.err.find(key) != std::string::npos);
      CHECK(listing(work.path()) == before);
    }
  }
  SECTION("heads that do not divide the channels") {
    auto config = good;
    config["attention_head_dim"] = 7;
    write_text(path, config.dump());
    refused(work, {folder, work / "out"}, MIS, {"down_blocks.0.attentions.0.proj_in.weight", "[28, 32, 1, 1]", "[32, 32, 1, 1]"});
  }
  SECTION("no JSON") {
    write_text(path, "{\"in_channels\": 4,");
    refused(work, {folder, work / "out"}, FMT, {"unet/config.json"});
  }
  SECTION("nested without end") {
    write_text(path, std::string(100000, '['));
    refused(work, {folder, work / "out"}, LIM, {"unet/config.json", "64"});
  }
}

TEST_CASE("an output that exists is kept") {
  const support::temp_folder work;
  const std::string folder = make(work, "sd1", "diffusers", "model");
  write_text(work / "out/precious.txt", "old");
  refused(work, {folder, work / "out"}, PTH, {"out", "--force"});
  CHECK(contents(work / "out") == std::map<std::string, std::string>{{"precious.txt", "old"}});
  const outcome run = programs::run("sd-to-onnx", {folder, work / "out", "--force", "--quiet"});
  CHECK(run.status == 0);
  CHECK_FALSE(fs::exists(work / "out/precious.txt"));
  CHECK(listing(work.path()) == strings{"model", "out"});
}

TEST_CASE("a full disk") {
  const support::temp_folder work;
  const std::string folder = make(work, "sd1", "diffusers", "model");
  SECTION("no space left") {
    const small_disk disk(work / "disk", "1m");
    if (!disk) WARN("this process may not mount a tmpfs: the test with a limit on file sizes has to do");
    if (disk) {
      refused(work, {folder, work / "disk/out"}, NOSPC, {"out"});
      CHECK(listing(work / "disk").empty());
    }
  }
  SECTION("a limit on the size of files") {
    const auto before = listing(work.path());
    const outcome run = programs::run("sd-to-onnx", {folder, work / "out", "--quiet"}, {.file_size = 100000});
    CAPTURE(run.err);
    CHECK((run.status == NOSPC || run.status == IO));
    CHECK(run.err.find("out") != std::string::npos);
    CHECK(listing(work.path()) == before);
  }
}

TEST_CASE("a killed run leaves what the next one removes") {
  const support::temp_folder work;
  const std::string folder = make(work, "sdxl", "diffusers", "model");
  const auto staging = [&] {
    for (const std::string& name : listing(work.path()))
      if (name.starts_with(".out.")) return name;
    return std::string();
  };
  bool killed = false;
  for (int attempt = 0; attempt < 40 && !killed; ++attempt) {
    fs::remove_all(work / "out");
    const outcome run = programs::run("sd-to-onnx", {folder, work / "out", "--quiet", "--threads", "1", "--tile", "4K"},
                                      {.meanwhile = [&](pid_t child) {
                                        const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
                                        while (staging().empty() && std::chrono::steady_clock::now() < end)
                                          if (fs::exists(work / "out")) break;
                                        ::kill(child, SIGKILL);
                                      }});
    killed = run.status == 128 + SIGKILL && !staging().empty();
  }
  REQUIRE(killed);
  CHECK_FALSE(fs::exists(work / "out"));
  const outcome run = programs::run("sd-to-onnx", {folder, work / "out", "--quiet"});
  CHECK(run.status == 0);
  CHECK(listing(work.path()) == strings{"model", "out"});
}

TEST_CASE("an interrupted run ends cleanly") {
  const support::temp_folder work;
  const std::string folder = make(work, "sdxl", "diffusers", "model");
  bool interrupted = false;
  for (int attempt = 0; attempt < 40 && !interrupted; ++attempt) {
    fs::remove_all(work / "out");
    const outcome run = programs::run("sd-to-onnx", {folder, work / "out", "--quiet", "--threads", "1", "--tile", "4K"},
                                      {.meanwhile = [&](pid_t child) {
                                        const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
                                        while (listing(work.path()).size() < 2 && std::chrono::steady_clock::now() < end) {
                                        }
                                        ::kill(child, SIGTERM);
                                      }});
    interrupted = run.status == 128 + SIGTERM;
    if (!interrupted) continue;
    CHECK(run.err.find("sd-to-onnx: CANC ") != std::string::npos);
    CHECK(listing(work.path()) == strings{"model"});
  }
  CHECK(interrupted);
}
