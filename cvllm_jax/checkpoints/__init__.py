"""Where weights come from: GGUF files, Hugging Face folders and the hub."""
