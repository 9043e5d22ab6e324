"""Pictures out of a base and its adapters: prompts, samplers, drawing, and what is written beside a picture."""
