"""Weights in and out: Hugging Face safetensors folders to our modules and back. No pickle is ever read."""
