"""The layers that stand in for those of a model while an adapter is live or trained."""
