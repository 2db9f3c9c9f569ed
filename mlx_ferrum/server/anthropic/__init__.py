"""What Anthropic's clients send and expect."""
