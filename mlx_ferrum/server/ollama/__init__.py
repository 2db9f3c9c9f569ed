"""What Ollama's clients send and expect."""
