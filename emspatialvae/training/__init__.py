"""How a model learns: epochs, batches, what is asked of a model in each."""
