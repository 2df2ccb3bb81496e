# SPDX-License-Identifier: MIT
#
# Runs the chain in a folder that holds the model under the name that README.md opens, and looks at what came out.
file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})
file(COPY ${MODEL}/ DESTINATION ${WORK}/sd15)
execute_process(COMMAND ${PROGRAM} WORKING_DIRECTORY ${WORK} RESULT_VARIABLE code)
if(NOT code EQUAL 0)
  message(FATAL_ERROR "the chain of README.md failed: ${code}")
endif()
foreach(part IN ITEMS text_encoder unet vae_encoder vae_decoder)
  if(NOT EXISTS ${WORK}/sd15-onnx/${part}/model.onnx)
    message(FATAL_ERROR "the chain of README.md wrote no ${part}/model.onnx")
  endif()
endforeach()
