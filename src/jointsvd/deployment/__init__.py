"""Networks made to run elsewhere: inference form, ONNX, int8. In order: inference, onnx_runtime, export,
quantize_shared, quantize, profiled, engines."""
