"""Export of model folders to ONNX."""
