"""One family of models, one file: how it makes conditioning and calls its denoiser."""
