"""What a model keeps of the sequences it reads and writes."""
