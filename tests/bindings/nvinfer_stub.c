/* The C symbols that TensorRT's Python bindings take from libnvinfer, libnvinfer_plugin and libnvonnxparser.
   Each returns a null pointer: enough to import the bindings and to make and call calibrators, not to build. */
#define NULL_FUNCTION(name) void *name(void) { return 0; }
NULL_FUNCTION(createInferBuilder_INTERNAL)
NULL_FUNCTION(createInferRefitter_INTERNAL)
NULL_FUNCTION(createInferRuntime_INTERNAL)
NULL_FUNCTION(createNvOnnxParserRefitter_INTERNAL)
NULL_FUNCTION(createNvOnnxParser_INTERNAL)
NULL_FUNCTION(getBuilderPluginRegistry)
NULL_FUNCTION(getNvOnnxParserVersion)
NULL_FUNCTION(getPluginRegistry)
NULL_FUNCTION(initLibNvInferPlugins)
