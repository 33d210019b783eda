"""Knows no models: bytes → Header, for GGUF and safetensors."""
