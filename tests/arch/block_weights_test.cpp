// SPDX-License-Identifier: MIT
//
// Lists of block weights: which number belongs to which block.
#include <numeric>
#include <vector>

#include "support/catch.hpp"
#include "tensorsmith/arch/block_weights.hpp"

namespace ts = tensorsmith;

namespace {

/// The list 1, 2, 3, … of a length: a weight tells its position.
ts::block_weights counted(std::size_t n) {
  std::vector<double> list(n);
  std::iota(list.begin(), list.end(), 1.0);
  auto made = ts::block_weights::from(list);
  REQUIRE(made);
  return *made;
}

}  // namespace

TEST_CASE("positions in the lists of 12, 17, 20 and 26 numbers") {
  const ts::block_weights sdxl = counted(12), sd1 = counted(17), sdxl_conv = counted(20), all = counted(26);
  CHECK(sdxl.text_encoder() == 1);
  CHECK(sdxl.of_ldm("input_blocks.4.1.proj_in") == 2);
  CHECK(sdxl.of_ldm("input_blocks.8.1.proj_in") == 5);
  CHECK(sdxl.of_ldm("middle_block.1.proj_in") == 6);
  CHECK(sdxl.of_ldm("output_blocks.0.1.proj_in") == 7);
  CHECK(sdxl.of_ldm("output_blocks.5.1.proj_in") == 12);
  CHECK(sdxl.of_ldm("input_blocks.1.0.in_layers.0") == 1);  // not named: 1
  CHECK(sd1.of_ldm("input_blocks.1.1.proj_in") == 2);
  CHECK(sd1.of_ldm("input_blocks.8.1.proj_in") == 7);
  CHECK(sd1.of_ldm("middle_block.1.proj_in") == 8);
  CHECK(sd1.of_ldm("output_blocks.3.1.proj_in") == 9);
  CHECK(sd1.of_ldm("output_blocks.11.1.proj_in") == 17);
  CHECK(sdxl_conv.of_ldm("input_blocks.0.0") == 2);
  CHECK(sdxl_conv.of_ldm("middle_block.0.in_layers.2") == 11);
  CHECK(sdxl_conv.of_ldm("output_blocks.8.0.in_layers.2") == 20);
  CHECK(all.of_ldm("input_blocks.11.0.in_layers.2") == 13);
  CHECK(all.of_ldm("middle_block.2.in_layers.2") == 14);
  CHECK(all.of_ldm("output_blocks.11.1.proj_out") == 26);
  CHECK(all.of_ldm("time_embed.0") == 1);
  CHECK(all.of_diffusers("down_blocks.1.attentions.0.proj_in", {}) == 6);  // input_blocks.4
  const auto wrong = ts::block_weights::from(std::vector<double>(16, 1.0));
  REQUIRE_FALSE(wrong);
  CHECK(wrong.error().message() == "USE a list of block weights has the wrong length (expected 17 or 26 numbers for SD1 and SD2, 12 or 20 for SDXL, found 16)");
}
