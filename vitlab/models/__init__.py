"""The models, one file each, and the registry that maps names to them."""
