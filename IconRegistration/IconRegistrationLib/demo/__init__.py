"""The generated phantom and its plots."""
