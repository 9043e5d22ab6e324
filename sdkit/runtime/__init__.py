"""Models brought to life: loading, live adapters, losses. The only floor that knows diffusers and transformers."""
