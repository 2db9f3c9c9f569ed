"""What OpenAI's clients send and expect."""
