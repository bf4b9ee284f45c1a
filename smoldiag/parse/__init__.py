"""Text or bytes in, facts out: pure, no files, no subprocess."""
