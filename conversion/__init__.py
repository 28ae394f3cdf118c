"""Offline quantization, installed as `exllama.conversion`."""
