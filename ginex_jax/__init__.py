"""GNN training from disk."""
