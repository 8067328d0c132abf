"""Question files of nine published benchmarks into lvpipe task folders, and captions into what each benchmark takes back."""
