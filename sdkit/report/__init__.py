"""What a person looks at after a run: its page, its charts, its sheet of samples, made from its log."""
