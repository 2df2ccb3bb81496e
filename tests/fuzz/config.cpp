// SPDX-License-Identifier: MIT
//
// Fuzzing parse_json, parse_yaml_subset and everything that reads configurations; and what derives configurations from shapes,
// which come from the document's member "weights": {name: shape}. A document stays the same when written and read again; a
// derived configuration is one that the readers accept.
#include "fuzz/property.hpp"
#include "tensorsmith/arch/autoencoder_kl.hpp"
#include "tensorsmith/arch/clip_text.hpp"
#include "tensorsmith/arch/config_overrides.hpp"
#include "tensorsmith/arch/derive_config.hpp"
#include "tensorsmith/arch/detect.hpp"
#include "tensorsmith/arch/ldm_yaml.hpp"
#include "tensorsmith/arch/pipeline_index.hpp"
#include "tensorsmith/arch/prediction.hpp"
#include "tensorsmith/arch/unet2d_condition.hpp"
#include "tensorsmith/io/json.hpp"
#include "tensorsmith/tensor/stored.hpp"

namespace {

using namespace tensorsmith;

template <class T>
bool accepted(const result<T>& outcome) {
  if (!outcome) fuzz::check_refusal(outcome.error());
  return bool(outcome);
}

/// Tensors of the shapes in a document, without bytes.
catalog shapes_of(const json_value& weights) {
  static const auto nothing = std::make_shared<memory_source>("shapes", std::vector<std::byte>{});
  catalog out;
  const json_value::object* members = weights.as_object();
  for (std::size_t i = 0; members && i < members->size(); ++i) {
    const auto& [name, extents] = (*members)[i];
    const json_value::array* list = extents.as_array();
    shape_type shape;
    std::size_t elements = 1;
    for (std::size_t k = 0; list && k < list->size() && k < 8; ++k) {
      const std::int64_t* extent = (*list)[k].as_integer();
      if (!extent || *extent < 0 || *extent >= std::int64_t{1} << 48) break;
      if (__builtin_mul_overflow(elements, static_cast<std::size_t>(*extent), &elements) || elements >= std::size_t{1} << 48) break;
      shape.push_back(static_cast<std::size_t>(*extent));
    }
    if (!out.add(name, {stored_tensor(nothing, 0, dtype::f16, std::move(shape), name), 0}, quoted(name))) break;
  }
  return out;
}

void read_as_configurations(const json_value& document) {
  catalog none;
  const catalog_parameters parameters(none, "text_encoder", "m");
  accepted(read_unet2d_condition_config(document, "unet/config.json"));
  accepted(read_autoencoder_kl_config(document, "vae/config.json"));
  accepted(read_clip_text_config(document, "text_encoder/config.json", parameters));
  family_vote vote;
  vote_of_config(vote, document);
  accepted(vote.outcome());
  (void)detail::component_of_config(document);
  for (const io_interface& io : {interface_diffusers(), interface_optimum(), interface_onnx_web()})
    (void)write_json(onnx_pipeline_index(document, io, {"unet", "vae_decoder"}));
}

void derive(const catalog& weights) {
  const catalog_parameters parameters(weights, "text_encoder", "m");
  if (const auto shape = clip_shape_of(weights); accepted(shape))
    if (const auto derived = derive_clip_config("text_encoder", *shape, clip_activation::gelu, "float16"); accepted(derived))
      accepted(read_clip_text_config(derived->config, "derived", parameters));
  for (const sd_family family : {sd_family::sd1, sd_family::sd2, sd_family::sdxl}) {
    if (const auto shape = vae_shape_of(weights); accepted(shape))
      if (const auto derived = derive_vae_config(*shape, family, 512); accepted(derived))
        accepted(read_autoencoder_kl_config(derived->config, "derived"));
    if (const auto shape = unet_shape_of(weights); accepted(shape)) {
      family_vote vote;
      vote_of_unet(vote, *shape);
      accepted(vote.outcome());
      if (const auto derived = derive_unet_config(*shape, family); accepted(derived))
        accepted(read_unet2d_condition_config(derived->config, "derived"));
    }
  }
  if (const auto parts = split_checkpoint(weights); accepted(parts)) {
    family_vote vote;
    vote_of_parts(vote, *parts);
    accepted(vote.outcome());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::memory_bound bound(size);
  const std::string_view text = fuzz::as_text({data, size});
  if (const auto yaml = parse_yaml_subset(text, "m.yaml"); accepted(yaml)) {
    accepted(read_ldm_settings(*yaml, "m.yaml"));
    (void)write_json(*yaml);
  }
  const auto document = parse_json(text, "config.json", fuzz::limits_for(size));
  if (!document) return fuzz::check_refusal(document.error()), 0;
  for (const int indent : {0, 2}) {
    const std::string written = write_json(*document, indent);
    const auto again = parse_json(written, "again.json");
    if (!again) fuzz::violated("written JSON can be read", again.error().message());
    if (!(*again == *document)) fuzz::violated("JSON stays", written);
    if (write_json(*again, indent) != written) fuzz::violated("JSON is written in one way", written);
  }
  read_as_configurations(*document);
  if (const json_value* weights = document->find("weights")) derive(shapes_of(*weights));
  return 0;
}
