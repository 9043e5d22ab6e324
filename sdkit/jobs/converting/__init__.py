"""What `sdkit.convert` is made of: checkpoints and adapters, their options, and how recipes tell of them."""
