"""`--batch`: texts after the prompts of a file, many at once, and the results in another file."""
