"""Takes a trained model elsewhere: ONNX, StableHLO, safetensors with a model card."""
