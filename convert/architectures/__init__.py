"""Converters, one file for each class of transformers: `LlamaForCausalLM` is in llama.py. See ../architecture.py."""
